"""Histories of ids as flat arrays: what collators and the evaluator read."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .pieces import Ids

SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Histories:
    """The histories of one part of a split, end to end; a sequence of int32 arrays.

    >>> histories = Histories(np.array([4, 2, 3], dtype=np.int32), np.array([0, 2, 3]))
    >>> len(histories), histories[0].tolist(), histories.lengths.tolist()
    (2, [4, 2], [2, 1])
    """

    values: Ids
    """(items,) int32 ids, the oldest of each history first."""

    offsets: np.ndarray
    """(histories + 1,) history i has the values from offsets[i] to offsets[i + 1]."""

    targets: np.ndarray | None = None
    """(histories,) int32 the held-out items; None in training."""

    target_sets: "Histories | None" = None
    """(histories,) the ids of all held-out items, each once, where the split keeps them."""

    @property
    def lengths(self) -> np.ndarray:
        """(histories,) items per history."""
        return np.diff(self.offsets)

    def draw(self, count: int, seed: int) -> "Histories":
        """So many of them, drawn without replacement and in their order; all if there are no more.

        >>> whole = Histories(np.arange(6), np.array([0, 1, 3, 6]), np.array([7, 8, 9]))
        >>> some = whole.draw(2, seed=0)
        >>> len(some), whole.draw(3, seed=0) is whole
        (2, True)
        """
        if count >= len(self):
            return self
        rows = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1]) + np.repeat(self.offsets[rows] - (ends - lengths), lengths)
        targets = None if self.targets is None else self.targets[rows]
        sets = None if self.target_sets is None else self.target_sets.draw(count, seed)
        return Histories(self.values[places], np.append(0, ends), targets, sets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self))[index]
        return self.values[self.offsets[index] : self.offsets[index + 1]]


def count_repeats(histories: Mapping[str, Histories]) -> dict[str, int]:
    """Count the targets of validation and test that their own history holds already."""
    counts = {}
    for name in ("validation", "test"):
        part = histories[name]
        hits = np.flatnonzero(np.repeat(part.targets, part.lengths) == part.values)
        owners = np.searchsorted(part.offsets, hits, side="right")
        counts[f"{name} targets seen before"] = len(np.unique(owners))
    return counts
