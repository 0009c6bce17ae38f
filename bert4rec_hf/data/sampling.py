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
        self.lengths = lengths
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
            batches = self._epoch(epoch)
            last = min(self.batches_per_epoch, first + self.num_batches - batch)
            yield from batches[first:last]
            batch += last - first

    def batch(self, number: int) -> np.ndarray:
        """Rows and view keys of one batch, counted from 0 over all epochs, (batch,)."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[place]

    def _epoch(self, epoch: int) -> np.ndarray:
        """Rows and view keys of one epoch, (batches, batch)."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.lengths))
        batches = np.empty(
            (self.batches_per_epoch, self.batch_size),
            dtype=[("row", np.int64), ("view", np.uint64)],
        )
        for start in range(0, len(batches), self.POOL):
            pool = batches["row"][start : start + self.POOL]
            rows = order[start * self.batch_size :][: pool.size]
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
            rounds = rows.reshape(self.batch_size, len(pool))
            rounds[1::2] = rounds[1::2, ::-1]
            pool[:] = rounds.T
        keys = generator.integers(2**62, size=len(self.lengths), dtype=np.uint64)
        batches["view"] = keys[batches["row"]]
        return batches
