"""Histories in, masked batches out; every random choice is a function of one number per view."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from torch.utils.data import Dataset, Sampler

IGNORE_INDEX = -100
PAD_ID = 0
MASK_ID = 1


def uniform_draws(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Hash keys and counters to numbers in [0, 1): the same pair always draws the same number.

    The mixing steps are those of SplitMix64 (Steele, Lea and Flood, 2014,
    https://doi.org/10.1145/2660193.2660195).

    Args:
        keys: (draws,) uint64, one per masked view.
        counters: (draws,) which draw of its view this is, from 0.

    Returns:
        (draws,) float64
    """
    mixed = keys + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def left_padded(values: np.ndarray, lengths: np.ndarray, fill: int) -> Tensor:
    """Lay histories end to end into rows of equal length, the newest item in the last column.

    >>> left_padded(np.array([7, 8, 9]), np.array([1, 2]), fill=0).tolist()
    [[0, 7], [8, 9]]

    Args:
        values: (items,) all histories, one after the other.
        lengths: (batch,)
        fill: What stands in front of the shorter ones.

    Returns:
        (batch, length) int64
    """
    width = int(lengths.max())
    rows = np.full((len(lengths), width), fill, dtype=np.int64)
    rows[np.arange(width) >= width - lengths[:, None]] = values
    return torch.from_numpy(rows)


@strict
@dataclass(kw_only=True)
class MaskedItemCollator:
    """Choose a window of each history, mask items in it, and pad to a batch.

    Two kinds of view: some items masked at random, as in the paper; or just the last one, as at
    test time. Given `view` keys, a view is the same in every process, worker and resumed run;
    without them (in transformers' Trainer) the keys are drawn from torch's generator.
    """

    max_history_length: int
    """Items of a window; the older ones are cut off."""

    mask_ratio: float | int = 0.2
    """Expected share of masked items in a view of the first kind."""

    last_item_ratio: float | int = 0.1
    """Share of views in which just the last item of the window is masked."""

    random_window_ratio: float | int = 0.0
    """Share of views that end at a random item of the history, not at its newest."""

    def validate_ratios(self) -> None:
        if not 0 < self.mask_ratio <= 1:
            raise ValueError(f"mask_ratio must be in (0, 1], got {self.mask_ratio}")
        for name in ("last_item_ratio", "random_window_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Mask and pad.

        Args:
            examples: One dict per history: `items` (ids, oldest first) and optionally `view`
                (the number that all its random choices are made of).

        Returns:
            `input_ids`, `attention_mask` and `labels`, each (batch, length).
        """
        histories = [np.asarray(example["items"], dtype=np.int64) for example in examples]
        keys = (
            np.array([example["view"] for example in examples], dtype=np.uint64)
            if "view" in examples[0]
            else torch.randint(2**62, (len(examples),)).numpy().astype(np.uint64)
        )
        is_last_item_view = uniform_draws(keys, np.zeros(len(keys))) < self.last_item_ratio
        starts, ends = self._windows(
            np.array([len(history) for history in histories]), keys, is_last_item_view
        )
        values = np.concatenate(
            [history[i:j] for history, i, j in zip(histories, starts, ends, strict=True)]
        )
        masked = self._choose_masked(ends - starts, keys, is_last_item_view)
        input_ids = left_padded(np.where(masked, MASK_ID, values), ends - starts, PAD_ID)
        return {
            "input_ids": input_ids,
            "attention_mask": (input_ids != PAD_ID).long(),
            "labels": left_padded(
                np.where(masked, values, IGNORE_INDEX), ends - starts, IGNORE_INDEX
            ),
        }

    def _windows(
        self, lengths: np.ndarray, keys: np.ndarray, is_last_item_view: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """First and one past the last item of each window, each (batch,).

        A random window of the first kind is as long as the history and the model allow; one of
        the second kind ends at any item that has another before it.
        """
        is_random = uniform_draws(keys, np.full(len(keys), 1)) < self.random_window_ratio
        shortest = np.where(is_last_item_view, 2, self.max_history_length).clip(max=lengths)
        draws = uniform_draws(keys, np.full(len(keys), 2))
        random_ends = shortest + (draws * (lengths - shortest + 1)).astype(np.int64)
        ends = np.where(is_random, random_ends, lengths)
        return (ends - self.max_history_length).clip(min=0), ends

    def _choose_masked(
        self, lengths: np.ndarray, keys: np.ndarray, is_last_item_view: np.ndarray
    ) -> np.ndarray:
        """Truth for each item of all windows, one after the other; at least one per window."""
        firsts = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum()) - np.repeat(firsts, lengths)
        draws = uniform_draws(np.repeat(keys, lengths), places + 3)
        masked = (draws < self.mask_ratio) | (
            draws == np.repeat(np.minimum.reduceat(draws, firsts), lengths)
        )
        is_last = places == np.repeat(lengths - 1, lengths)
        return np.where(np.repeat(is_last_item_view, lengths), is_last, masked)


class TrainingViews(Dataset):
    """Histories under the keys that `ViewBatchSampler` gives out."""

    def __init__(self, histories: Sequence[np.ndarray]):
        self.histories = histories

    def __len__(self) -> int:
        return len(self.histories)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        row, view = index
        return {"items": self.histories[row], "view": view}


class ViewBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (row, view key), every history once per epoch, alike lengths together.

    Histories are shuffled, then sorted by length within a run of `POOL` batches, so that little
    of a batch is padding; the batches of a run come in random order. What is left over at the end
    of an epoch, less than a batch, is dropped; it is another rest in each epoch.

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

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batch = self.first_batch
        while batch < self.num_batches:
            epoch, first = divmod(batch, self.batches_per_epoch)
            rows, keys = self._epoch(epoch)
            last = min(self.batches_per_epoch, first + self.num_batches - batch)
            for index in range(first, last):
                yield list(zip(rows[index].tolist(), keys[index].tolist(), strict=True))
            batch += last - first

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and view keys of one epoch, each (batches, batch)."""
        generator = np.random.default_rng([self.seed, epoch])
        count = self.batches_per_epoch * self.batch_size
        order = generator.permutation(len(self.lengths))[:count]
        pool = np.arange(count) // (self.POOL * self.batch_size)
        # lexsort sorts by its last key first.
        rows = order[np.lexsort((self.lengths[order], pool))].reshape(-1, self.batch_size)
        pool_of_batch = np.arange(len(rows)) // self.POOL
        rows = rows[np.lexsort((generator.random(len(rows)), pool_of_batch))]
        return rows, generator.integers(2**62, size=len(self.lengths), dtype=np.uint64)[rows]
