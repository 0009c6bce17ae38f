"""What a training would take, calculated before anything is rented; and how well that is known."""
