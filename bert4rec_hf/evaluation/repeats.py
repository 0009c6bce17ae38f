"""Targets that repeat an item of their history, and what they come to under either convention.

Where seen items are left out of the ranking, nobody would be shown such a target. Some count it as
missed, as S3-Rec's code and its heirs do; others rank it all the same. Where targets repeat,
numbers of the two kinds cannot be compared.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .metrics import compute_metrics

HISTORIES_AT_ONCE = 2**16
"""Histories that are searched at once."""

SEEN_TARGETS = ("missed", "ranked")
"""What a protocol can say of them."""


def find_repeats(histories: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """(histories,) True where the target is an item of the history.

    >>> find_repeats([np.array([5, 3]), np.array([4])], np.array([3, 3])).tolist()
    [True, False]
    """
    runs = range(0, len(targets), HISTORIES_AT_ONCE)
    parts = [_find_in_run(histories, targets, slice(run, run + HISTORIES_AT_ONCE)) for run in runs]
    return np.concatenate(parts)


def _find_in_run(histories: Sequence[np.ndarray], targets: np.ndarray, run: slice) -> np.ndarray:
    targets = targets[run]
    if hasattr(histories, "offsets"):  # those of a prepared dataset lie end to end already
        ends = histories.offsets[run.start : run.start + len(targets) + 1]
        lengths, items = np.diff(ends), histories.values[ends[0] : ends[-1]]
    else:
        lengths = np.fromiter(map(len, histories[run]), dtype=np.int64)
        items = np.concatenate(histories[run])
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(rows[items == targets[rows]], minlength=len(lengths)) > 0


def miss_repeats(ranks: Tensor, repeats: np.ndarray, num_items: int, ks: Sequence[int]) -> Tensor:
    """Put targets that repeat behind all items and all k.

    Args:
        ranks: (histories,) of the targets, as if none repeated.
        repeats: (histories,) which do.
        num_items: Size of the catalog.
        ks: How many of the first places count.
    """
    return ranks.masked_fill(torch.as_tensor(repeats), max(num_items, *ks) + 1)


def describe_repeats(
    ranked: Tensor, missed: Tensor | None, repeats: np.ndarray, ks: Sequence[int]
) -> dict[str, Any]:
    """Say how many targets repeat, and what the metrics are by either convention and without them.

    Args:
        ranked: (histories,) ranks where targets that repeat are ranked like others.
        missed: (histories,) ranks where they are missed; None where seen items are candidates.
        repeats: (histories,) which targets repeat.
        ks: How many of the first places count.

    Returns:
        `num_histories` and `share`; where there are any, the metrics `ranked`, `missed` and
        `first_time`, those of the targets that do not repeat.
    """
    found: dict[str, Any] = {"num_histories": int(repeats.sum()), "share": float(repeats.mean())}
    if repeats.any():
        found["ranked"] = compute_metrics(ranked, ks)
        if missed is not None:
            found["missed"] = compute_metrics(missed, ks)
        if not repeats.all():
            found["first_time"] = compute_metrics(ranked[torch.as_tensor(~repeats)], ks)
    return found
