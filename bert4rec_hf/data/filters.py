"""Which interactions are kept: by catalog, rating, repetition, and number per user and item."""

import numpy as np
import polars as pl

from .interactions import PreparationConfig, codes


def drop_unknown_items(interactions: pl.DataFrame, catalog: pl.Series | None) -> pl.DataFrame:
    """Keep the interactions with items of a catalog; None keeps all."""
    if catalog is None:
        return interactions
    return interactions.filter(pl.col("item").cast(pl.String).is_in(catalog.implode()))


def drop_low_ratings(interactions: pl.DataFrame, min_rating: float | None) -> pl.DataFrame:
    """Keep what was rated min_rating or higher; None keeps all."""
    if min_rating is None:
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
    if min_interactions <= 1:
        return interactions
    users, items = codes(interactions["user"]), codes(interactions["item"])
    rows = np.arange(interactions.height)
    while True:
        left_users, left_items = users[rows], items[rows]
        enough = np.bincount(left_users)[left_users] >= min_interactions
        enough &= np.bincount(left_items)[left_items] >= min_interactions
        if enough.all():
            return interactions[rows]
        rows = rows[enough]


def check_left(setting: str, value: object, before: int, after: int) -> None:
    """Refuse a filter that leaves no interaction."""
    if after == 0:
        raise ValueError(
            f"{setting}={value} leaves none of the {before:,} interactions; "
            f"{'does it belong to other items?' if setting == 'vocabulary' else 'lower it'}"
        )


def apply_filters(
    frame: pl.DataFrame, config: PreparationConfig, catalog: pl.Series | None
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Drop what the config does not want, and count the interactions dropped by each setting."""
    filters = {
        "vocabulary": lambda frame, _: drop_unknown_items(frame, catalog),
        "min_rating": drop_low_ratings,
        "duplicates": drop_duplicates,
        "min_interactions": filter_k_core,
    }
    dropped = {}
    for setting, keep in filters.items():
        value = getattr(config, setting)
        left = keep(frame, value)
        check_left(setting, value, frame.height, left.height)
        dropped[setting] = frame.height - left.height
        frame = left
    return frame, dropped
