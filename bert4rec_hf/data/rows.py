"""Which rows of a table are read: `--where column=value`."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import polars as pl

VALUES_SHOWN = 10


class Table(Protocol):
    """A file with named columns."""

    path: Path

    @property
    def columns(self) -> list[str]: ...

    def read(self, columns: dict[str, str]) -> Iterator[pl.DataFrame]:
        """Read blocks of rows with `line` and the columns, our name → the name in the file."""


class Condition(NamedTuple):
    """A column has one of some values, or none of them."""

    column: str
    is_wanted: bool
    values: list[str]

    def __str__(self) -> str:
        return ", ".join(f"{self.column}{'=' if self.is_wanted else '!='}{v}" for v in self.values)


def parse_conditions(where: list[str]) -> list[Condition]:
    """Read `column=value` and `column!=value`; several values of one column go together.

    >>> parse_conditions(["event=buy", "event=rent", "country!=uk"])[0].values
    ['buy', 'rent']

    Raises:
        ValueError: A text is neither.
    """
    conditions: dict[tuple[str, bool], Condition] = {}
    for text in where:
        column, sign, value = text.partition("=")
        is_wanted = not column.endswith("!")
        column = column.removesuffix("!").strip()
        if not (sign and column):
            raise ValueError(f"where must be like event=purchase or event!=view, got {text!r}")
        condition = conditions.setdefault((column, is_wanted), Condition(column, is_wanted, []))
        condition.values.append(value.strip())
    return list(conditions.values())


def ask_columns(conditions: list[Condition]) -> dict[str, str]:
    """Name the columns that conditions are about: our name → the name in the table."""
    return {f"where {place}": condition.column for place, condition in enumerate(conditions)}


def meet_conditions(block: pl.DataFrame, conditions: list[Condition]) -> pl.Series:
    """(rows,) whether each row of a block meets all conditions.

    Args:
        block: With the columns that `ask_columns` names.
        conditions: May be none.
    """
    is_kept = pl.Series([True]).new_from_index(0, block.height)
    for name, condition in zip(ask_columns(conditions), conditions, strict=True):
        is_kept &= _as_texts(block[name]).is_in(condition.values) == condition.is_wanted
    return is_kept


def _as_texts(column: pl.Series) -> pl.Series:
    return column.cast(pl.String).fill_null("").str.strip_chars()


def select_rows(
    table: Table, columns: dict[str, str], where: list[str], dropped: Counter
) -> Callable[[], Iterator[pl.DataFrame]]:
    """Read a table's rows that meet all conditions.

    Args:
        table: All there is.
        columns: Our name → the name in the table.
        where: As of PreparationConfig.
        dropped: Counts the other rows, under `where`.

    Raises:
        ValueError: A condition names no column, or no row meets all of them.
    """
    conditions = parse_conditions(where)
    for condition in conditions:
        if condition.column not in table.columns:
            raise ValueError(
                f"where names {condition.column!r}; the columns of {table.path.name} are "
                f"{', '.join(map(repr, table.columns))}"
            )
    asked = ask_columns(conditions)

    def read() -> Iterator[pl.DataFrame]:
        dropped["where"], num_kept = 0, 0
        values: list[set[str]] = [set() for _ in conditions]
        for block in table.read(columns | asked):
            is_kept = meet_conditions(block, conditions)
            for name, its_values in zip(asked, values, strict=True):
                if len(its_values) <= VALUES_SHOWN:
                    texts = _as_texts(block[name])
                    its_values.update(texts.unique().head(VALUES_SHOWN + 1))
            dropped["where"] += int((~is_kept).sum())
            num_kept += int(is_kept.sum())
            yield block.filter(is_kept).drop(list(asked))
        if not num_kept:
            raise ValueError(
                f"no row of {table.path.name} has {' and '.join(map(str, conditions))}; "
                + "; ".join(
                    f"the values of {condition.column} are {_list(found)}"
                    for condition, found in zip(conditions, values, strict=True)
                )
            )

    return read if conditions else lambda: table.read(columns)


def _list(values: set[str]) -> str:
    shown = sorted(values)[:VALUES_SHOWN]
    return ", ".join(map(repr, shown)) + (", …" if len(values) > VALUES_SHOWN else "")
