"""Laws and intervals fitted to what studies measured."""
