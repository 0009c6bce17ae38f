"""What commands do with the interactions of a shop; imported once the command line is parsed."""
