"""What `bert4rec NAME` runs, one module a command."""
