"""Users dealt out to parts on disk, so that however many there are, one part is in memory.

A user's part follows from a hash of the name, so that all interactions of a user meet in one part
wherever they stand in the file. Parts are read by any process in any order.
"""

import math
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.data.vocabulary import FIRST_ITEM_ID
from bert4rec_hf.serving.catalog import Catalog
from bert4rec_hf.serving.choices import USERS_PER_PART

MAX_PARTS = 4_096
ROWS_AT_ONCE = 2_048
"""Interactions of one part that wait in memory to be written."""


class UserPart(NamedTuple):
    """The users of one part, by name, and their histories."""

    users: pl.Series
    """(users,) names, sorted."""

    histories: Histories
    """Ids of the catalog's items, oldest first; an empty history where a user has none."""

    num_unknown: int
    """Interactions with items that are not in the catalog."""

    first_unknown: tuple[str, str] | None
    """User and item of the first of them."""


def count_parts(
    interactions: pl.LazyFrame, users: pl.DataFrame | None, users_per_part: int = USERS_PER_PART
) -> int:
    """Choose the number of parts by about how many users there are.

    Args:
        interactions: With the column `user`.
        users: `user`, where only listed ones are answered.
        users_per_part: So many, on average.
    """
    if users_per_part < 1:
        raise ValueError(f"users per file must be at least 1, got {users_per_part}")
    if users is None:
        counted = interactions.select(pl.col("user").approx_n_unique())
        num_users = counted.collect(engine="streaming").item()
    else:
        num_users = users.height
    return min(MAX_PARTS, math.ceil(num_users / users_per_part))


def write_parts(
    interactions: pl.LazyFrame, users: pl.DataFrame | None, folder: Path, num_parts: int
) -> None:
    """Deal interactions out to a new folder, which appears when everything is in it.

    Args:
        interactions: `user`, `item`, `timestamp`, `row`.
        users: `user`, whom to answer, with or without interactions; all with interactions if None.
        folder: Where to.
        num_parts: How many.
    """
    unfinished = folder.with_name(f"{folder.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    frames = [interactions]
    if users is not None:
        # A row without an item says that this user is to be answered.
        asked = (
            users.lazy()
            .unique("user")
            .with_columns(
                item=pl.lit(None, pl.String),
                timestamp=pl.lit(0.0),
                row=pl.lit(0, pl.Int64),
            )
        )
        frames.append(asked)
    part = (pl.col("user").hash(seed=0) % num_parts).cast(pl.Int32)
    pl.concat(frames).with_columns(part=part).sink_ipc(
        pl.PartitionBy(unfinished, key="part", include_key=False),
        compression="lz4",
        record_batch_size=ROWS_AT_ONCE,
        mkdir=True,
        engine="streaming",
    )
    unfinished.mkdir(exist_ok=True)
    unfinished.rename(folder)


def read_part(folder: Path, number: int, catalog: Catalog, *, is_asked: bool) -> UserPart:
    """Read the users of one part and put their histories together.

    Args:
        folder: Of all parts.
        number: Of the part.
        catalog: Knows the ids of items.
        is_asked: Whether a list of users was given, and those not in it only fill the parts.
    """
    paths = sorted((folder / f"part={number}").glob("*.ipc"))
    if not paths:  # the hash of no user
        return UserPart(pl.Series(dtype=pl.String), Histories(*_empty()), 0, None)
    frame = pl.concat([pl.read_ipc(path) for path in paths])
    if is_asked:
        frame = frame.join(frame.filter(pl.col("item").is_null()), on="user", how="semi")
    # Equal times keep the order of the file.
    frame = frame.sort("user", "timestamp", "row")
    places = catalog.find_places(frame["item"])
    is_item = places.is_not_null()
    is_unknown = ~is_item & frame["item"].is_not_null()
    first = frame.row(is_unknown.arg_max())[:2] if is_unknown.any() else None
    names = frame["user"].rle()
    ends = np.cumsum(names.struct.field("len").to_numpy().astype(np.int64))
    counts = np.concatenate([[0], np.cumsum(is_item.to_numpy())])
    ids = places.drop_nulls().to_numpy().astype(np.int32) + FIRST_ITEM_ID
    histories = Histories(ids, counts[np.concatenate([[0], ends])])
    return UserPart(names.struct.field("value"), histories, int(is_unknown.sum()), first)


def _empty() -> tuple[np.ndarray, np.ndarray]:
    return np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64)
