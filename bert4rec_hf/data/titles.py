"""Titles of items, from the files that public datasets bring beside their interactions."""

import ast
import csv
import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl


def read_titles(path: Path, items: Iterable[str]) -> dict[str, str]:
    """Read the titles of the given items from a file whose name says its format.

    Args:
        path: Plain or gzipped; `.json` or `.jsonl`, or an ending of TITLE_TABLES.
        items: Raw items; those without a title are left out of the result.
    """
    name = path.name.removesuffix(".gz")
    tables = [table for ending, table in TITLE_TABLES.items() if name.endswith(ending)]
    if tables:
        rows = titles_from_table(path, *tables[0])
    elif name.endswith((".json", ".jsonl")):
        rows = titles_from_json_lines(path)
    else:
        endings = ", ".join([*TITLE_TABLES, ".json", ".jsonl"])
        raise ValueError(f"titles are read from files that end with {endings}, got {path.name}")
    titles = {item: " ".join(title.split()) for item, title in rows if title}
    return {item: titles[item] for item in items if titles.get(item)}


def titles_from_table(
    path: Path, separator: str, header: list[str] | None
) -> Iterator[tuple[str, str]]:
    """Read pairs of item and title from separated columns.

    Args:
        path: UTF-8, or ISO-8859-1 as in the older MovieLens files.
        separator: A comma goes together with quotes.
        header: Names of the columns where the file has none.
    """
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("iso-8859-1")
    lines = text.replace("\r\n", "\n").split("\n")
    rows = csv.reader(lines) if separator == "," else (line.split(separator) for line in lines)
    header = header or [name.split(":")[0] for name in next(rows)]
    item = next((place for place, name in enumerate(header) if name in ITEM_COLUMNS), None)
    title = next((place for place, name in enumerate(header) if name in TITLE_COLUMNS), None)
    if item is None or title is None:
        raise ValueError(
            f"{path.name} needs one of the columns {', '.join(ITEM_COLUMNS)} and one of "
            f"{', '.join(TITLE_COLUMNS)}; its columns are {', '.join(map(repr, header))}"
        )
    return ((row[item], row[title]) for row in rows if len(row) > max(item, title))


def titles_from_json_lines(path: Path) -> Iterable[tuple[str, str]]:
    """Read pairs of item and title from Amazon's metadata, which in 2014 is Python literals."""
    open_text = gzip.open if path.suffix == ".gz" else Path.open
    with open_text(path, "rt", encoding="utf-8") as file:
        if file.readline().startswith("{'"):
            file.seek(0)
            return [read_literal(line, path) for line in file]
    columns = dict.fromkeys(["parent_asin", "asin", "title"], pl.String)
    lines = pl.scan_ndjson(path.resolve().as_uri(), schema=columns)
    item = pl.coalesce("parent_asin", "asin")
    return lines.select(item, "title").collect(engine="streaming").iter_rows()


def read_literal(line: str, path: Path) -> tuple[str, str]:
    """Read item and title from one line of Python."""
    try:
        record = ast.literal_eval(line)
        return record["asin"], record.get("title", "")
    except (SyntaxError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path.name} has a line that is no dict with 'asin': {line[:80]!r}; is it complete?"
        ) from error


ITEM_COLUMNS = ("item", "item_id", "movieId")
TITLE_COLUMNS = ("title", "movie_title")
TITLE_TABLES = {
    "movies.dat": ("::", ["item", "title"]),
    "u.item": ("|", ["item", "title"]),
    ".item": ("\t", None),
    ".csv": (",", None),
}
"""Ending of the file name → separator, and the header where the file has none."""
