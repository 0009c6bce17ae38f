"""Interactions since a date: their items as targets, whole histories as context."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from torch import Tensor
from torch.utils.data import Dataset

from .histories import Histories
from .negatives import NegativeSampler
from .packing import IGNORE_INDEX, MASK_ID, Tokens, count_places, pack
from .views import Views, draw_negatives
from .vocabulary import FIRST_ITEM_ID


class RecentInteractions(NamedTuple):
    """Whole histories, and from where on they are recent."""

    histories: Histories
    times: np.ndarray
    """(items,) seconds, of each value of the histories."""

    new_items: list[str]
    """Raw items that the catalog lacks, in the order of their ids, which follow its last."""

    targets: np.ndarray
    """(targets,) places among the values: recent, and not the first of their history."""

    others: np.ndarray
    """(others,) places of the older ones that have something before them."""


def read_recent(interactions: pl.DataFrame, catalog: list[str], since: float) -> RecentInteractions:
    """Lay histories end to end, number what the catalog lacks, and find what is recent.

    Items that the catalog lacks and that were not met since then are left out.

    Args:
        interactions: `user`, `item`, `timestamp` and `row`.
        catalog: Raw items of the model, in the order of their ids.
        since: Seconds.

    Raises:
        ValueError: Nothing is recent, or nothing recent has anything before it.
    """
    recent = interactions.filter(pl.col("timestamp") >= since)
    if recent.is_empty():
        newest = interactions["timestamp"].max()
        raise ValueError(
            f"no interaction is as new as --since {since:.0f}, the newest is of {newest:.0f}; "
            "name an earlier date, or a newer file"
        )
    known = set(catalog)
    new = sorted(set(recent["item"].unique().to_list()) - known)
    numbers = pl.DataFrame({"item": [*catalog, *new]}).with_row_index("id", FIRST_ITEM_ID)
    ordered = interactions.join(numbers, on="item").sort("user", "timestamp", "row")
    values = ordered["id"].to_numpy().astype(np.int32)
    times = ordered["timestamp"].to_numpy()
    lengths = ordered["user"].rle().struct.field("len").to_numpy().astype(np.int64)
    has_context = count_places(lengths) > 0
    is_recent = times >= since
    targets = np.flatnonzero(has_context & is_recent)
    if len(targets) == 0:
        raise ValueError(
            f"none of the {len(recent):,} interactions since {since:.0f} has an earlier one of its "
            "user in the file; it must hold whole histories"
        )
    histories = Histories(values, np.concatenate([[0], np.cumsum(lengths)]))
    return RecentInteractions(
        histories, times, new, targets, np.flatnonzero(has_context & ~is_recent)
    )


class TargetViews(Dataset):
    """For each target, the window of its history that ends with it.

    Args:
        histories: Whole ones.
        targets: (targets,) places among their values.
        max_history_length: Items of a window, the target included.
    """

    def __init__(self, histories: Histories, targets: np.ndarray, max_history_length: int):
        self.values = histories.values
        owners = np.searchsorted(histories.offsets, targets, side="right") - 1
        self.starts = np.maximum(histories.offsets[owners], targets + 1 - max_history_length)
        self.lengths = targets + 1 - self.starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, batch: np.ndarray) -> Views:
        """The windows of one batch of a ViewBatchSampler."""
        rows = batch["row"]
        return Views(self.values, self.starts[rows], self.lengths[rows], batch["view"])

    def split(self) -> tuple[list[np.ndarray], np.ndarray]:
        """The items before each target, and the (targets,) targets, to be evaluated."""
        ends = self.starts + self.lengths - 1
        windows = zip(self.starts, ends, strict=True)
        return [self.values[start:end] for start, end in windows], self.values[ends]


@dataclass(frozen=True)
class TargetCollator:
    """Ask for the last item of each window and for nothing else, as at test time."""

    max_history_length: int
    is_causal: bool = False
    negatives: NegativeSampler | None = None

    def __call__(self, views: Views) -> dict[str, Tensor | int]:
        """Mask and pack; what comes out is told by MaskedItemCollator."""
        places = count_places(views.lengths)
        values = views.values[np.repeat(views.starts, views.lengths) + places].astype(np.int64)
        last = np.cumsum(views.lengths) - 1
        labels = np.full_like(values, IGNORE_INDEX)
        labels[last - 1 if self.is_causal else last] = values[last]
        values[last] = MASK_ID
        tokens = Tokens(views.lengths, values, labels, places)
        drawn = draw_negatives(self.negatives, views, tokens)
        return pack(tokens, 1, self.max_history_length) | drawn
