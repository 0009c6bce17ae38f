"""Where the parts meet: from one experiment file to a trained, measured model folder."""
