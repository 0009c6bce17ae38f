"""Titles of items, from the files that public datasets bring beside their interactions."""

from collections.abc import Collection, Iterator
from pathlib import Path

import polars as pl

from .files import NotUtf8Error
from .json_lines import JsonLines
from .parquet import Parquet
from .rows import Table
from .separated import SeparatedText


class MissingColumnsError(ValueError):
    """A file of titles has no column of items, or none of titles."""


def read_titles(
    path: Path, items: Collection[str], item_column: str = "", title_column: str = ""
) -> dict[str, str]:
    """Read the titles of the given items from a file whose name says its format.

    Args:
        path: May be compressed; `.json`, `.jsonl`, `.parquet`, or an ending of TITLE_TABLES.
        items: Raw items; those without a title are left out of the result.
        item_column: Looked for before ITEM_COLUMNS.
        title_column: In place of TITLE_COLUMNS.

    Raises:
        MissingColumnsError: There is no column of items or titles.
        ValueError: The file cannot be read, or its format is unknown.
    """
    try:
        return _collect_titles(open_table(path, ""), items, item_column, title_column)
    except NotUtf8Error:
        # As the older files of MovieLens are.
        table = open_table(path, "iso-8859-1")
        return _collect_titles(table, items, item_column, title_column)


def open_table(path: Path, encoding: str) -> Table:
    """Describe a file of titles by the ending of its name."""
    name = path.name
    for ending in (".gz", ".bz2", ".xz", ".zst"):
        name = name.removesuffix(ending)
    if name.endswith((".json", ".jsonl")):
        return JsonLines(path=path, encoding=encoding)
    if name.endswith(".parquet"):
        return Parquet(path=path)
    tables = [table for ending, table in TITLE_TABLES.items() if name.endswith(ending)]
    if not tables:
        endings = ", ".join([*TITLE_TABLES, ".json", ".jsonl", ".parquet"])
        raise ValueError(f"titles are read from files that end with {endings}, got {path.name}")
    separator, header = tables[0]
    table = SeparatedText(
        path=path, separator=separator, quote='"' if separator == "," else "", encoding=encoding
    )
    if not header:
        return table
    others = len(table.first_line.split(separator)) - len(header)
    names = (*header, *(f"column {number}" for number in range(others)))
    return SeparatedText(path=path, separator=separator, names=names, encoding=encoding)


def _collect_titles(
    table: Table, items: Collection[str], item_column: str, title_column: str
) -> dict[str, str]:
    """Read items and titles; of several titles of an item, the last one counts."""
    plain = {name.split(":")[0]: name for name in reversed(table.columns)}
    item_names = [name for name in (item_column, *ITEM_COLUMNS) if name in plain]
    title_names = (title_column,) if title_column else TITLE_COLUMNS
    title_names = [name for name in title_names if name in plain]
    if not (item_names and title_names):
        raise MissingColumnsError(
            f"{table.path.name} needs one of the columns {', '.join(ITEM_COLUMNS)} and one of "
            f"{title_column or ', '.join(TITLE_COLUMNS)}; its columns are "
            f"{', '.join(map(repr, table.columns))}; name them by item_column and title_column"
        )
    columns = {f"item {place}": plain[name] for place, name in enumerate(item_names)}
    wanted = set(items)
    titles: dict[str, str] = {}
    for item, title in _read_pairs(table, columns, plain[title_names[0]]):
        if item in wanted and title:
            titles[item] = " ".join(title.split())
    return {item: titles[item] for item in items if titles.get(item)}


def _read_pairs(
    table: Table, columns: dict[str, str], title: str
) -> Iterator[tuple[str | None, str | None]]:
    """Read pairs of item and title; the item is the first of the columns that is not empty."""
    for block in table.read(columns | {"title": title}):
        block = block.cast(dict.fromkeys([*columns, "title"], pl.String))
        item = pl.coalesce(*columns).str.strip_chars()
        yield from block.select(item, "title").iter_rows()


ITEM_COLUMNS = ("item", "item_id", "movieId", "parent_asin", "asin", "id")
TITLE_COLUMNS = ("title", "movie_title", "movie_name", "book_title", "name", "item_name")
TITLE_TABLES = {
    "movies.dat": ("::", ["item", "title"]),
    "u.item": ("|", ["item", "title"]),
    ".item": ("\t", None),
    ".csv": (",", None),
}
"""Ending of the file name → separator, and the header where the file has none."""
