"""Names of users and items as they stand in files: what is missing, and what is written twice."""

import ast
import json
from typing import NamedTuple

import polars as pl

from .vocabulary import SPECIAL_TOKENS

MISSING = ("nan", "NA", "N/A", "<NA>", "NaT", "null", "None", r"\N", "-1", "-1.0")
"""How files say that there is nobody; letter case does not matter, and blank is always missing."""

DECIMAL, NUMBER, FRACTION = r"^-?\d+\.0+$", r"^-?\d+(\.0+)?$", r"\.0+$"
"""Whole numbers written with a fraction, all whole numbers, and that fraction."""

LARGEST_EXACT = 2**53
"""Integers up to here are exact as float64."""


class Names(NamedTuple):
    """The names of a column, each once."""

    names: pl.Series
    """(codes,) as they are used: without blanks around them; null where missing."""

    written: pl.Series
    """(codes,) as they stand in the file."""

    notes: list[str]
    """What a user should know."""


def read_names(column: pl.Series, kind: str, missing: list[str]) -> Names:
    """List the names of a categorical column by their codes.

    Where all names are whole numbers, some of them like `101.0`, they are written without `.0`.

    Args:
        column: (interactions,) of a dictionary of its own.
        kind: `user` or `item`, for notes.
        missing: How the file says that there is no name.
    """
    names, written = list_names(column, missing)
    num_blank = (names != written.set(names.is_null(), None)).sum()
    is_decimal = names.str.contains(DECIMAL)
    if not is_decimal.any():
        return Names(names, written, note_names(kind, num_blank))
    whole = names.str.replace(FRACTION, "")
    if names.str.contains(NUMBER).all():
        example = _first(written, is_decimal)
        return Names(whole, written, note_names(kind, num_blank, read_as_integer=example))
    is_both = is_decimal & whole.is_in(names.implode())
    example = _first(names, is_both) if is_both.any() else ""
    return Names(names, written, note_names(kind, num_blank, int(is_both.sum()), example))


def list_names(column: pl.Series, missing: list[str]) -> tuple[pl.Series, pl.Series]:
    """List the names of a categorical column by their codes, without blanks around them.

    Args:
        column: (interactions,) of a dictionary of its own.
        missing: How the file says that there is no name.

    Returns:
        (codes,) names, null where missing, and as they stand in the file.
    """
    found = column.unique().drop_nulls()
    places = found.to_physical()
    written = pl.Series([None], dtype=pl.String).new_from_index(0, (places.max() or 0) + 1)
    written = written.scatter(places, found.cast(pl.String)) if len(found) else written
    names = written.str.strip_chars()
    is_missing = names.str.to_lowercase().is_in([word.lower() for word in ["", *missing]])
    return names.set(is_missing.fill_null(False), None), written


def note_names(
    kind: str, num_blank: int, num_both: int = 0, both: str = "", read_as_integer: str = ""
) -> list[str]:
    """Say what a user should know of the names of a column.

    Args:
        kind: `user` or `item`.
        num_blank: Names with blanks around them.
        num_both: Names like `101.0` where `101` occurs too, and `both` is the first of them.
        both: See num_both.
        read_as_integer: The first name like `101.0` where all are whole numbers.
    """
    notes = []
    if num_blank:
        notes.append(f"{num_blank:,} {kind}s had blanks around their names, which were removed")
    if read_as_integer:
        notes.append(f"{kind}s like {read_as_integer} were read as integers")
    if num_both:
        notes.append(
            f"warning: {num_both:,} {kind}s occur both with and without .0, such as "
            f"{both} and {both.split('.')[0]}; they are treated as different {kind}s"
        )
    return notes


def find_unusable(names: pl.Series, kind: str) -> dict[int, str]:
    """Tell which names cannot be used, by their codes, and why."""
    faults = {}
    suspicious = names.is_in(SPECIAL_TOKENS) | names.str.contains(r"^[\[{].*[\]}]$|\x00")
    for code in suspicious.arg_true():
        name = names[code]
        if "\x00" in name:
            faults[code] = f"has {_a(kind)} with a NUL character or half of a surrogate pair"
        elif kind == "item" and name in SPECIAL_TOKENS:
            faults[code] = f"has an item named {name!r} like a special token, rename it"
        elif is_collection(name):
            faults[code] = (
                f"has a list or object as {kind}, one {kind} a row is expected; --explode makes "
                "rows of a list in JSON or parquet"
            )
    return faults


def is_collection(name: str) -> bool:
    """Tell whether a text is a list or an object of JSON or Python."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return isinstance(parse(name), list | dict | set)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return False


def float_names(column: pl.Series, kind: str) -> pl.Series:
    """Write a float column of whole numbers as integers; NaN is missing.

    Raises:
        ValueError: A number has a fraction, or is too large to be exact.
    """
    column = column.cast(pl.Float64).fill_nan(None)
    is_wrong = (column != column.round()) | (column.abs() > LARGEST_EXACT)
    if is_wrong.any():
        raise ValueError(
            f"row {is_wrong.arg_max() + 1} has the {kind} {column.filter(is_wrong)[0]!r}, which is "
            "not a whole number, or too large to be exact; write ids as integers or texts"
        )
    return column.cast(pl.Int64)


def near_misses(names: pl.Series, catalog: pl.Series) -> pl.DataFrame:
    """Find names that are in a catalog but for leading zeros, `.0` or blanks.

    Returns:
        `name`, and the item of the catalog that it resembles.
    """
    resembles = _plain(catalog.alias("item")).unique("plain", keep="any")
    return _plain(names.unique().alias("name")).join(resembles, on="plain").drop("plain")


def _plain(names: pl.Series) -> pl.DataFrame:
    plain = names.str.strip_chars().str.replace(r"\.0+$", "").str.strip_chars_start("0")
    return names.to_frame().with_columns(plain=plain)


def _a(kind: str) -> str:
    return "an item" if kind == "item" else f"a {kind}"


def _first(names: pl.Series, chosen: pl.Series) -> str:
    return names.filter(chosen.fill_null(False)).min()
