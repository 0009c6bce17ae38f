"""Names that others chose, as text of a card."""

from typing import Any

SPECIAL = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "`": "'"}
"""What would end a cell, open a tag or begin code."""


def escape(text: str) -> str:
    r"""Let a name be one line that is shown as it is.

    >>> escape("a|b\n--- <script>")
    'a\\|b --- &lt;script&gt;'
    """
    return " ".join("".join(SPECIAL.get(letter, letter) for letter in text).split())


def escape_all(content: Any) -> Any:
    """Escape every string in nested lists and dicts, the keys of which are kept."""
    if isinstance(content, str):
        return escape(content)
    if isinstance(content, dict):
        return {key: escape_all(value) for key, value in content.items()}
    return [escape_all(value) for value in content] if isinstance(content, list) else content


def fence(text: str) -> str:
    """Keep text from ending the block of code that it stands in."""
    return text.replace("```", "'''")
