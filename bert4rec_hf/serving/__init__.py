"""A trained folder in use."""
