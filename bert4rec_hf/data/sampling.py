"""Which histories a batch reads, in which order, and the key of each view."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, Sampler

from .histories import Histories
from .views import Views


class TrainingViews(Dataset):
    """Histories under the keys that `ViewBatchSampler` gives out, a batch at a time."""

    def __init__(self, histories: Histories):
        self.histories = histories

    def __len__(self) -> int:
        return len(self.histories)

    def __getitems__(self, batch: np.ndarray) -> Views:
        """The histories of one batch of the sampler."""
        rows = batch["row"]
        starts = self.histories.offsets[rows]
        lengths = self.histories.offsets[rows + 1] - starts
        return Views(self.histories.values, starts, lengths, batch["view"])


class ViewBatchSampler(Sampler[np.ndarray]):
    """Batches of rows and view keys: every history once per epoch, equal work in every batch.

    Histories are shuffled and, within a run of `POOL` batches, sorted by length and dealt out back
    and forth, so that the batches of a step, one per device, hold nearly the same number of items.
    What is left over at the end of an epoch, less than a batch, is dropped; it is another rest in
    each epoch.

    Args:
        lengths: (histories,) number of items, as far as the model reads them.
        batch_size: Histories per batch.
        num_batches: Batches in all, over as many epochs as it takes.
        seed: With the epoch and the row, the source of every random choice.
        first_batch: Batches to skip, those taken before a resumption.
    """

    POOL = 16

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        first_batch: int = 0,
    ):
        self.lengths = lengths.astype(np.int32)
        self.batch_size = min(batch_size, len(lengths))
        self.num_batches = num_batches
        self.seed = seed
        self.first_batch = first_batch
        self.drop_last = True

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass over the histories."""
        return len(self.lengths) // self.batch_size

    def __len__(self) -> int:
        return self.num_batches - self.first_batch

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield (batch,) arrays with the fields `row` and `view`."""
        batch = self.first_batch
        while batch < self.num_batches:
            epoch, first = divmod(batch, self.batches_per_epoch)
            last = min(self.batches_per_epoch, first + self.num_batches - batch)
            yield from self._batches(epoch, first, last)
            batch += last - first

    def batch(self, number: int) -> np.ndarray:
        """Rows and view keys of one batch, counted from 0 over all epochs, (batch,)."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return next(self._batches(epoch, place, place + 1))

    def _batches(self, epoch: int, first: int, last: int) -> Iterator[np.ndarray]:
        """Yield the batches of an epoch from one on and before another."""
        order, keys = self._shuffle(epoch)
        for start in range(first - first % self.POOL, last, self.POOL):
            rows = self._deal(order, start)
            batches = np.empty(rows.shape, dtype=[("row", np.int64), ("view", np.uint64)])
            batches["row"], batches["view"] = rows, keys[rows]
            yield from batches[max(first - start, 0) : last - start]

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order and keys of all histories in one epoch: 12 bytes for each, all that is kept."""
        generator = np.random.default_rng([self.seed, epoch])
        kind = np.int32 if len(self.lengths) < 2**31 else np.int64
        order = np.arange(len(self.lengths), dtype=kind)
        generator.shuffle(order)
        return order, generator.integers(2**62, size=len(order), dtype=np.uint64)

    def _deal(self, order: np.ndarray, start: int) -> np.ndarray:
        """Rows of the batches of the pool that begins at a batch, (batches, batch)."""
        stop = min(start + self.POOL, self.batches_per_epoch)
        rows = order[start * self.batch_size : stop * self.batch_size]
        rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        rounds = rows.reshape(self.batch_size, stop - start)
        rounds[1::2] = rounds[1::2, ::-1]
        return rounds.T
