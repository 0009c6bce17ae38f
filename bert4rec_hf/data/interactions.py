"""Interactions in the order of time become one history per user."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from huggingface_hub.dataclasses import strict

from .names import MISSING
from .synthetic import SyntheticConfig
from .vocabulary import FIRST_ITEM_ID


@strict
@dataclass(kw_only=True)
class PreparationConfig:
    """What is kept of a source, and who trains, validates and tests.

    An empty text or list, None or a 0 means that a choice is not made use of.
    """

    vocabulary: str = ""
    """A prepared dataset or model folder whose catalog is kept, ids and all, so that its models can
    go on with what is prepared; interactions with other items are dropped before all else."""

    min_interactions: int = 0
    """Users and items with fewer are dropped, again and again until none is left (k-core)."""

    min_rating: float | int | None = None
    """Interactions rated lower are dropped first; 0 is a threshold like others."""

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

    test_last: str = ""
    """In place of test_time: how much time at the end tests, like 1d; as much before it validates,
    if no validation_time is given."""

    gap: str = ""
    """How much time right before validation is not trained on, like 12h, for temporal."""

    targets: Literal["next", "all"] = "next"
    """For temporal and given_next, whether all items of a user in validation or test are kept as a
    set of targets, besides the next one."""

    seed: int = 0
    """Of all draws."""

    user_column: str = "user"
    """For the sources csv, jsonl, parquet and recbole, as the next three; empty for sequences whose
    lines hold no user."""

    item_column: str = "item"
    timestamp_column: str = "timestamp"
    """Empty if the order of the file is the time."""

    rating_column: str = "rating"
    """Only read if min_rating is given."""

    where: list[str] = field(default_factory=list)
    """Rows that are read, as `column=value` or `column!=value`: of several values of one column any
    will do, of several columns all must hold."""

    explode: str = ""
    """A column of lists, for jsonl and parquet: each entry becomes a row, and the fields of entries
    that are objects become columns."""

    order: Literal["time", "file"] = "time"
    """What orders a history; a source without times needs the order of the file."""

    timestamp_format: str = ""
    """A unit (seconds, milliseconds, microseconds, nanoseconds) or a pattern of strptime; if not
    given, units are recognized by their size, and dates by ISO 8601."""

    allow_zero_timestamps: bool = False
    """Whether 0 is a time, not a missing one."""

    allow_negative_timestamps: bool = False
    """Whether there are times before 1970."""

    missing: list[str] = field(default_factory=lambda: list(MISSING))
    """Texts that say that there is nothing; what is blank is always missing."""

    drop_incomplete: bool = False
    """Whether rows without user, item, timestamp or needed rating are dropped and counted, rather
    than refused."""

    separator: str = ""
    """Between the columns of csv and recbole, where it is not the usual one."""

    quote: str = '"'
    """Around fields of csv that contain the separator; empty where quotes are part of the text."""

    header: list[str] = field(default_factory=list)
    """Names of the columns of a csv file without header."""

    encoding: str = ""
    """Of a text file that is not in UTF-8."""

    titles: str = ""
    """A file of item titles, where the reader does not find it beside the source."""

    title_column: str = ""
    """Where titles stand, in the file of titles or in that of a generic source."""

    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """For the source synthetic."""

    def validate_min_interactions(self) -> None:
        if self.min_interactions < 0:
            raise ValueError(f"min_interactions must be 0 or more, got {self.min_interactions}")

    def validate_duplicates(self) -> None:
        if self.duplicates == "keep_last" and self.split in ("temporal", "given", "given_next"):
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


def count_copies(interactions: Interactions) -> int:
    """Count interactions that repeat another one, the same user, item and time."""
    times = interactions.timestamps
    if times is None:
        return 0
    owners = np.repeat(np.arange(len(interactions.users), dtype=np.int32), interactions.lengths)
    is_tied = (np.diff(times) == 0) & (np.diff(owners) == 0)
    tied = np.flatnonzero(np.append(is_tied, False) | np.append(False, is_tied))
    columns = {"user": owners[tied], "item": interactions.ids[tied], "time": times[tied]}
    return len(tied) - pl.DataFrame(columns).n_unique()


def measure_interactions(interactions: Interactions) -> dict[str, Any]:
    """Tell counts, lengths, sparsity, and how often neighbours in a history share a timestamp."""
    lengths, users = np.unique(interactions.lengths, return_counts=True)
    lengths = dict(zip(lengths.tolist(), users.tolist(), strict=True))
    has_times = interactions.timestamps is not None
    num_tied = count_ties(interactions) if has_times else None
    return describe_interactions(lengths, len(interactions.items), num_tied)


def count_ties(interactions: Interactions) -> int:
    """Count neighbors in a history that share a timestamp."""
    is_tied = np.diff(interactions.timestamps) == 0
    is_tied[interactions.offsets[1:-1] - 1] = False  # these are of two users
    return int(is_tied.sum())


def describe_interactions(
    lengths: dict[int, int], num_items: int, num_tied: int | None
) -> dict[str, Any]:
    """Tell counts, lengths, sparsity and the share of ties.

    Sparsity is the share of pairs of user and item without interaction, duplicates counted apart.

    Args:
        lengths: Interactions of a user → users who have so many.
        num_items: Size of the catalog.
        num_tied: Neighbors in a history that share a timestamp; None where there are no times.
    """
    num_users = sum(lengths.values())
    num_interactions = sum(length * users for length, users in lengths.items())
    ordered = sorted(lengths)
    ends = np.cumsum([lengths[length] for length in ordered])
    middle = np.searchsorted(ends, [(num_users - 1) // 2, num_users // 2], side="right")
    pairs = num_interactions - num_users
    return {
        "after": {"users": num_users, "items": num_items, "interactions": num_interactions},
        "lengths": {
            "mean": num_interactions / num_users,
            "median": (ordered[middle[0]] + ordered[middle[1]]) / 2,
            "max": ordered[-1],
        },
        "sparsity": 1 - num_interactions / (num_users * num_items),
        "tied_timestamps": num_tied / pairs if num_tied is not None and pairs else None,
    }
