"""Histories of ids as flat arrays: what collators and the evaluator read."""

from dataclasses import dataclass

import numpy as np

SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Histories:
    """The histories of one part of a split, end to end; a sequence of int32 arrays.

    >>> histories = Histories(np.array([4, 2, 3], dtype=np.int32), np.array([0, 2, 3]))
    >>> len(histories), histories[0].tolist(), histories.lengths.tolist()
    (2, [4, 2], [2, 1])
    """

    values: np.ndarray
    """(items,) int32 ids, the oldest of each history first."""

    offsets: np.ndarray
    """(histories + 1,) history i has the values from offsets[i] to offsets[i + 1]."""

    targets: np.ndarray | None = None
    """(histories,) int32 the held-out items; None in training."""

    @property
    def lengths(self) -> np.ndarray:
        """(histories,) items per history."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self))[index]
        return self.values[self.offsets[index] : self.offsets[index + 1]]
