"""Ids that lie in many pieces of memory-mapped files, read as one array and never put together."""

from collections.abc import Iterator, Sequence

import numpy as np

BLOCK = 2**22
"""Ids that are looked at at once where all of them are."""


class Pieces:
    """Arrays of ids, one after the other, indexed as one.

    What wants all of them as an array, such as `numpy.asarray`, gets a copy.

    >>> pieces = Pieces([np.array([4, 2]), np.array([3]), np.array([5, 6, 7])])
    >>> len(pieces), pieces[1:4].tolist(), pieces[np.array([5, 0, 2])].tolist()
    (6, [2, 3, 5], [7, 4, 3])

    Args:
        arrays: Of one dtype.
    """

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = [array for array in arrays if len(array)] or [np.empty(0, dtype=np.int32)]
        self.starts = np.concatenate([[0], np.cumsum([len(array) for array in self.arrays])])
        self.dtype = self.arrays[0].dtype
        self.nbytes = sum(array.nbytes for array in self.arrays)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        """A copy of a run of them, or of those at (places,) from 0."""
        if isinstance(places, slice):
            return self._run(*places.indices(len(self))[:2])
        owners = np.searchsorted(self.starts, places, side="right") - 1
        order = np.argsort(owners, kind="stable")
        bounds = np.flatnonzero(np.diff(owners[order], prepend=-1))
        found = np.empty(len(places), dtype=self.dtype)
        for these in np.split(order, bounds[1:]) if len(order) else ():
            owner = owners[these[0]]
            found[these] = self.arrays[owner][places[these] - self.starts[owner]]
        return found

    def _run(self, start: int, stop: int) -> np.ndarray:
        first = np.searchsorted(self.starts, start, side="right") - 1
        last = np.searchsorted(self.starts, stop, side="left")
        parts = [
            self.arrays[owner][max(start - begin, 0) : max(stop - begin, 0)]
            for owner, begin in enumerate(self.starts[first:last], start=first)
            if owner < len(self.arrays)
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype=self.dtype)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        whole = np.concatenate(self.arrays)
        return whole if dtype is None else whole.astype(dtype, copy=False)


Ids = np.ndarray | Pieces


def blocks(ids: Ids) -> Iterator[np.ndarray]:
    """All ids in their order, so many at once that a copy of them does not matter."""
    for start in range(0, len(ids), BLOCK):
        yield ids[start : start + BLOCK]


def count_ids(ids: Ids, vocab_size: int) -> np.ndarray:
    """(vocab,) how often each id occurs; numpy alone would make 64-bit copies of all.

    >>> count_ids(np.array([2, 4, 2]), 5).tolist()
    [0, 0, 2, 0, 1]
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for block in blocks(ids):
        counts += np.bincount(block, minlength=vocab_size)
    return counts
