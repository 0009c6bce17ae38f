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

from .metrics import count_ranks, metrics_of_counts
from .share import add_up

SEEN_TARGETS = ("missed", "ranked")
"""What a protocol can say of them."""


def find_repeats(histories: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """(histories,) True where the target is an item of the history.

    >>> find_repeats([np.array([5, 3]), np.array([4])], np.array([3, 3])).tolist()
    [True, False]
    """
    lengths = np.fromiter(map(len, histories), dtype=np.int64)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    is_target = np.concatenate(histories) == targets[rows]
    return np.bincount(rows[is_target], minlength=len(lengths)) > 0


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
        ranked: (share,) ranks where targets that repeat are ranked like others, see Share.
        missed: (share,) ranks where they are missed; None where seen items are candidates.
        repeats: (share,) which targets repeat.
        ks: How many of the first places count.

    Returns:
        `num_histories` and `share`; where there are any, the metrics `ranked`, `missed` and
        `first_time`, those of the targets that do not repeat.
    """
    parts = {"ranked": ranked, "missed": missed, "first_time": ranked[torch.as_tensor(~repeats)]}
    parts = {name: part for name, part in parts.items() if part is not None}
    counts = add_up(torch.stack([count_ranks(part, ks) for part in parts.values()]))
    counted = dict(zip(parts, counts, strict=True))
    number = counted["ranked"].sum().item()
    num_repeats = number - counted["first_time"].sum().item()
    found: dict[str, Any] = {"num_histories": num_repeats, "share": num_repeats / number}
    if num_repeats:
        found |= {name: metrics_of_counts(each, ks) for name, each in counted.items() if each.any()}
    return found
