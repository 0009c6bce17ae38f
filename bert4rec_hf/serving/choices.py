"""Choices of a request, in a module that a command line can import to show its help."""

UNKNOWN_ITEMS = ("error", "skip")
COLD_HISTORIES = ("error", "mask", "popular", "empty")
USERS_PER_PART = 8_192
