"""Histories in the shapes that people have them in, and answers in the same shape.

One history or several, as lists or numpy arrays; a dict or Series by user; a polars or pandas frame
of interactions, or of one history per row.
"""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl


class HistoryBatch(NamedTuple):
    """Histories to be read, and how their answers are handed back."""

    histories: list[Any]
    """Raw items of each history, oldest first; not checked yet."""

    users: list[Any] | None = None
    """Whose histories they are, where the input says so."""

    kind: str = "several"
    """`one`, `several`, `by_user`, `polars` or `pandas`."""

    def name(self, row: int) -> str:
        """What a message calls a history."""
        return f"history {row}" if self.users is None else f"user {self.users[row]!r}"


def read_histories(histories: Any) -> HistoryBatch:
    """Take histories as they come.

    >>> read_histories(["alien", "heat"]).histories
    [['alien', 'heat']]
    >>> batch = read_histories({"ann": ["alien"], "bob": []})
    >>> batch.users, batch.histories
    (['ann', 'bob'], [['alien'], []])

    Args:
        histories: A list or array of raw items, oldest first; a list, array or Series of such; a
            mapping from user to such; or a polars or pandas frame with the columns `user` and
            `item`, and `timestamp` where the order of the rows is not that of time; or `user` and
            `items`, a list per row. Columns and arrays of integers are read as texts.

    Raises:
        ValueError: It is a text or the like, or a frame lacks a column.
    """
    if isinstance(histories, Mapping):
        values = [_as_list(each) for each in histories.values()]
        return HistoryBatch(values, list(histories), "by_user")
    if isinstance(histories, pl.LazyFrame):
        histories = histories.collect()
    if isinstance(histories, pl.DataFrame):
        return _read_frame(histories, "polars")
    if is_pandas(histories, "DataFrame"):
        return _read_frame(pl.from_pandas(histories), "pandas")
    values = _as_list(histories)
    if not isinstance(values, list | tuple):
        raise ValueError(f"histories must be a list of raw items, got {histories!r}")
    if any(is_history(each) for each in values):
        return HistoryBatch([_as_list(each) for each in values])
    return HistoryBatch([values], None, "one")


def is_history(value: Any) -> bool:
    """Whether a value is several items and not one."""
    return isinstance(value, list | tuple | np.ndarray | pl.Series) or is_pandas(value, "Series")


def is_pandas(value: Any, kind: str) -> bool:
    """Whether a value is of pandas, which may not be installed."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, getattr(pandas, kind))


def _as_list(values: Any) -> Any:
    """Turn arrays and Series into lists, integers in them into texts; leave the rest alone."""
    if is_pandas(values, "Series"):
        values = values.to_numpy()
    if isinstance(values, pl.Series):
        if values.dtype.is_integer():
            values = values.cast(pl.String)
        elif isinstance(values.dtype, pl.List) and values.dtype.inner.is_integer():
            values = values.cast(pl.List(pl.String))
        return values.to_list()
    if isinstance(values, np.ndarray):
        if values.ndim == 0:
            return values.item()
        if np.issubdtype(values.dtype, np.integer):
            values = values.astype(str)
        return values.tolist()
    return values


def _read_frame(frame: pl.DataFrame, kind: str) -> HistoryBatch:
    """Put together the history of each user, in the order in which users first occur."""
    if "items" in frame.columns:
        _require(frame, ("user", "items"))
    else:
        _require(frame, ("user", "item"))
        items = pl.col("item")
        if "timestamp" in frame.columns:
            items = items.sort_by("timestamp", maintain_order=True)
        frame = frame.group_by("user", maintain_order=True).agg(items=items)
    return HistoryBatch(_as_list(frame["items"]), frame["user"].to_list(), kind)


def _require(frame: pl.DataFrame, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ValueError(
            f"a frame of histories needs the columns {' and '.join(columns)}, got "
            f"{', '.join(map(repr, frame.columns))}; rename them"
        )


def answer(batch: HistoryBatch, rows: Sequence[Sequence[Any]]) -> Any:
    """Hand back what each history is recommended in the shape in which histories came."""
    return ANSWERS[batch.kind](batch, rows)


def answer_vectors(batch: HistoryBatch, vectors: np.ndarray, problems: Collection[int]) -> Any:
    """Hand back the vectors of histories in the shape in which histories came.

    Args:
        batch: What came.
        vectors: (histories, hidden)
        problems: Rows that could not be read, which have no user's place in the answer.
    """
    if batch.users is None:
        return vectors[0] if batch.kind == "one" else vectors
    rows = [row for row in range(len(vectors)) if row not in problems]
    users = [batch.users[row] for row in rows]
    if batch.kind == "by_user":
        return dict(zip(users, vectors[rows], strict=True))
    frame = vector_frame(pl.Series("user", batch.users).gather(rows), vectors[rows])
    return frame.to_pandas() if batch.kind == "pandas" else frame


def vector_frame(users: pl.Series, vectors: np.ndarray) -> pl.DataFrame:
    """Two columns: the names, and a list of float32 for each."""
    width = pl.Array(pl.Float32, vectors.shape[1])
    return pl.DataFrame({users.name: users, "vector": pl.Series(vectors, dtype=width)})


def _to_polars(batch: HistoryBatch, rows: Sequence[Sequence[Any]]) -> pl.DataFrame:
    """One row per recommendation: user, rank from 1, item, score and title."""
    counts = [len(row) for row in rows]
    flat = [each for row in rows for each in row]
    users = pl.Series("user", batch.users)
    places = pl.Series(np.repeat(np.arange(len(rows)), counts), dtype=pl.UInt32)
    ranks = [rank for count in counts for rank in range(1, count + 1)]
    return pl.DataFrame(
        {
            "user": users.gather(places),
            "rank": pl.Series(ranks, dtype=pl.Int32),
            "item": pl.Series([each.item for each in flat], dtype=pl.String),
            "score": pl.Series([each.score for each in flat], dtype=pl.Float32),
            "title": pl.Series([each.title for each in flat], dtype=pl.String),
        }
    )


ANSWERS: dict[str, Callable[[HistoryBatch, Sequence[Sequence[Any]]], Any]] = {
    "one": lambda batch, rows: rows[0],
    "several": lambda batch, rows: list(rows),
    "by_user": lambda batch, rows: dict(zip(batch.users, rows, strict=True)),
    "polars": _to_polars,
    "pandas": lambda batch, rows: _to_polars(batch, rows).to_pandas(),
}
