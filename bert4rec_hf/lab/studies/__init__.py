"""One experiment trained many times over, and what comes of it."""
