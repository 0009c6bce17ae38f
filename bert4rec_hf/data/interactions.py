"""Interactions, checked and filtered, become one history per user, ordered by time.

A reader hands over a lazy frame with the columns `user` and `item`, and where the source has them
`timestamp`, `rating` and `split`. It is read out of core; what is kept in memory is numbers.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from huggingface_hub.dataclasses import strict

from .histories import SPLIT_NAMES
from .synthetic import SyntheticConfig
from .vocabulary import FIRST_ITEM_ID


@strict
@dataclass(kw_only=True)
class PreparationConfig:
    """What is kept of a source, and who trains, validates and tests.

    An empty text or a 0 means that a choice is not made use of.
    """

    vocabulary: str = ""
    """A prepared dataset or model folder whose catalog is kept, ids and all, so that its models can
    go on with what is prepared; interactions with other items are dropped before all else."""

    min_interactions: int = 0
    """Users and items with fewer are dropped, again and again until none is left (k-core)."""

    min_rating: float | int = 0
    """Interactions rated lower are dropped first."""

    duplicates: Literal["keep_all", "keep_first", "keep_last"] = "keep_all"
    """Which of the interactions of one user with one item stay, in the order of time."""

    split: str = "leave_one_out"
    """A name of the table SPLITS."""

    validation_users: int = 0
    """Users drawn to validate, 0 for all; for leave_one_out and by_user."""

    test_users: int = 0
    """Users drawn to test, for by_user."""

    validation_time: str = ""
    """Where validation begins, for temporal: unix seconds, or an ISO date or time in UTC."""

    test_time: str = ""
    """Where the test begins, for temporal."""

    seed: int = 0
    """Of all draws."""

    user_column: str = "user"
    """For the sources csv, jsonl and parquet, as the next three."""

    item_column: str = "item"
    timestamp_column: str = "timestamp"
    """Empty if the order of the file is the time."""

    rating_column: str = "rating"
    """Only read if min_rating is given."""

    titles: str = ""
    """A file of item titles, where the reader does not find it beside the source."""

    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """For the source synthetic."""

    def validate_min_interactions(self) -> None:
        if self.min_interactions < 0:
            raise ValueError(f"min_interactions must be 0 or more, got {self.min_interactions}")

    def validate_duplicates(self) -> None:
        if self.duplicates == "keep_last" and self.split in ("temporal", "given"):
            raise ValueError(
                f"duplicates=keep_last would let the held-out part decide what the split "
                f"{self.split} trains on; use keep_first or keep_all"
            )

    def validate_users(self) -> None:
        if self.validation_users < 0 or self.test_users < 0:
            raise ValueError(
                "validation_users and test_users must be 0 or more, "
                f"got {self.validation_users} and {self.test_users}"
            )


class Interactions(NamedTuple):
    """All interactions that are left, user by user, each user's in the order of time."""

    users: pl.Series
    """(users,) raw names, sorted."""

    items: pl.Series
    """(items,) raw names, sorted or as given; the first has the id FIRST_ITEM_ID."""

    ids: np.ndarray
    """(interactions,) int32 ids of the items."""

    offsets: np.ndarray
    """(users + 1,) int64; user u has the interactions from offsets[u] to offsets[u + 1]."""

    timestamps: np.ndarray | None
    """(interactions,) seconds, UTC; None where the source has only an order."""

    parts: np.ndarray | None
    """(interactions,) place in SPLIT_NAMES, where the source brings its own split."""

    @property
    def lengths(self) -> np.ndarray:
        """(users,) interactions per user."""
        return np.diff(self.offsets)


def collect_interactions(
    raw: pl.LazyFrame, ticks_per_second: int = 1, name: str = "the source"
) -> pl.DataFrame:
    """Read a source out of core, check every row, and order all by time.

    Args:
        raw: One row per interaction; numbers may still be texts.
        ticks_per_second: Unit of the timestamps.
        name: What messages call the source.

    Returns:
        `user` and `item` as categories, `timestamp` in seconds, and `rating` and `split` where
        given; rows with equal timestamps, or without, keep the order of the file.

    Raises:
        ValueError: There is no row, a user or item has no name, or a number is none.
    """
    columns = raw.collect_schema().names()
    numbers = [column for column in ("timestamp", "rating") if column in columns]
    faults = find_faults(numbers)
    frame = raw.select(
        pl.col("user", "item").cast(pl.String),
        pl.col(numbers).cast(pl.Float64, strict=False),
        pl.col("^split$").cast(pl.Enum(SPLIT_NAMES)),
        fault=pl.coalesce(
            *(pl.when(fault).then(pl.lit(i, pl.UInt8)) for i, fault in enumerate(faults.values())),
        ),
    )
    # A dictionary of its own for each column, so that codes begin at 0.
    dictionaries = [
        pl.col(c).cast(pl.Categorical(pl.Categories.random())) for c in ("user", "item")
    ]
    frame = frame.with_columns(*dictionaries).collect(engine="streaming")
    if frame.is_empty():
        raise ValueError(f"{name} has no interactions")
    check_rows(frame["fault"], list(faults), raw, name)
    frame = frame.drop("fault")
    if "timestamp" not in columns:
        return frame
    frame = frame.with_columns(pl.col("timestamp") / ticks_per_second)
    return frame.sort("timestamp", maintain_order=True)


def find_faults(numbers: list[str]) -> dict[str, pl.Expr]:
    """What can be wrong with a row, and how to see it."""
    faults = {
        f"has no {column}": pl.col(column).cast(pl.String).fill_null("").str.strip_chars() == ""
        for column in ("user", "item")
    }
    for column in numbers:
        number = pl.col(column).cast(pl.Float64, strict=False)
        faults[f"has a {column} that is not a number"] = ~number.is_finite().fill_null(False)
    if "timestamp" in numbers:
        seconds = pl.col("timestamp").cast(pl.Float64, strict=False)
        faults["has a negative timestamp"] = seconds < 0
    return faults


def check_rows(fault: pl.Series, messages: list[str], raw: pl.LazyFrame, name: str) -> None:
    """Show the first row that cannot be used."""
    is_faulty = fault.is_not_null()
    if not is_faulty.any():
        return
    row = is_faulty.arg_max()
    found = raw.slice(row, 1).collect(engine="streaming").row(0, named=True)
    raise ValueError(
        f"interaction {row + 1} of {name} {messages[fault[row]]}: {found}; "
        f"{is_faulty.sum():,} of {len(fault):,} interactions cannot be used, mend or remove them"
    )


def drop_unknown_items(interactions: pl.DataFrame, catalog: pl.Series | None) -> pl.DataFrame:
    """Keep the interactions with items of a catalog; None keeps all."""
    if catalog is None:
        return interactions
    return interactions.filter(pl.col("item").cast(pl.String).is_in(catalog.implode()))


def drop_low_ratings(interactions: pl.DataFrame, min_rating: float) -> pl.DataFrame:
    """Keep what was rated min_rating or higher; 0 keeps all."""
    if not min_rating:
        return interactions
    if "rating" not in interactions.columns:
        raise ValueError(f"min_rating is {min_rating}, but the source has no ratings; leave it out")
    return interactions.filter(pl.col("rating") >= min_rating)


def drop_duplicates(interactions: pl.DataFrame, duplicates: str) -> pl.DataFrame:
    """Keep all, the first or the last of the interactions of a user with the same item."""
    if duplicates == "keep_all":
        return interactions
    keep = duplicates.removeprefix("keep_")
    return interactions.unique(["user", "item"], keep=keep, maintain_order=True)


def filter_k_core(interactions: pl.DataFrame, min_interactions: int) -> pl.DataFrame:
    """Drop users and items with fewer interactions, until none is left that has fewer."""
    users, items = codes(interactions["user"]), codes(interactions["item"])
    rows = np.arange(interactions.height)
    while True:
        left_users, left_items = users[rows], items[rows]
        enough = np.bincount(left_users)[left_users] >= min_interactions
        enough &= np.bincount(left_items)[left_items] >= min_interactions
        if enough.all():
            return interactions[rows]
        rows = rows[enough]


def build_histories(interactions: pl.DataFrame, catalog: pl.Series | None = None) -> Interactions:
    """Number users and items by name, and lay the histories end to end.

    Args:
        interactions: In the order of time.
        catalog: Items that are numbered as they stand here, also where they do not occur.
    """
    users, user_codes = number_names(interactions["user"])
    items, item_codes = number_names(interactions["item"])
    if catalog is not None:
        places = pl.Series(items).replace_strict(catalog, np.arange(len(catalog), dtype=np.int32))
        items, item_codes = catalog, places.to_numpy()[item_codes]
    # Stable, so that each user's interactions stay in the order of time.
    order = np.argsort(user_codes, kind="stable")
    counts = np.bincount(user_codes, minlength=len(users))
    columns = interactions.columns
    return Interactions(
        users=users,
        items=items,
        ids=item_codes[order] + np.int32(FIRST_ITEM_ID),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        timestamps=interactions["timestamp"].to_numpy()[order] if "timestamp" in columns else None,
        parts=codes(interactions["split"])[order] if "split" in columns else None,
    )


def number_names(column: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """List the names of a categorical column in sorted order, and give each row its place there."""
    categories = column.unique()
    categories = categories.gather(categories.cast(pl.String).arg_sort())
    places = np.zeros(codes(categories).max() + 1, dtype=np.int32)
    places[codes(categories)] = np.arange(len(categories))
    return categories.cast(pl.String), places[codes(column)]


def codes(column: pl.Series) -> np.ndarray:
    """Look at a categorical column as the numbers that stand for its names."""
    return column.to_physical().to_numpy()


def count_distinct(interactions: pl.DataFrame) -> dict[str, int]:
    """Count users, items and interactions."""
    names = {"users": interactions["user"], "items": interactions["item"]}
    return {
        **{key: int((np.bincount(codes(name)) > 0).sum()) for key, name in names.items()},
        "interactions": interactions.height,
    }


def measure_interactions(interactions: Interactions) -> dict[str, Any]:
    """Tell counts, lengths, sparsity, and how often neighbours in a history share a timestamp.

    Sparsity is the share of pairs of user and item without interaction, duplicates counted apart.
    """
    lengths, times = interactions.lengths, interactions.timestamps
    tied = None
    if times is not None and len(times) > len(lengths):
        same_user = np.ones(len(times) - 1, dtype=bool)
        same_user[interactions.offsets[1:-1] - 1] = False
        tied = float((np.diff(times) == 0)[same_user].mean())
    return {
        "after": {
            "users": len(interactions.users),
            "items": len(interactions.items),
            "interactions": len(interactions.ids),
        },
        "lengths": {
            "mean": float(lengths.mean()),
            "median": float(np.median(lengths)),
            "max": int(lengths.max()),
        },
        "sparsity": 1 - len(interactions.ids) / (len(lengths) * len(interactions.items)),
        "tied_timestamps": tied,
    }
