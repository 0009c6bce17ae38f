"""Model folders and their cards, as a model hub wants them."""
