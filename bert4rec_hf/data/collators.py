"""Histories in, masked batches out; every random choice is a function of one number per view."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .histories import Histories
from .negatives import NegativeSampler, uniform_draws

IGNORE_INDEX = -100
PAD_ID = 0
MASK_ID = 1

MASKED_SHARE = 4
"""Masked positions are filled up to a multiple that is so many times smaller than that of items."""


class Views(NamedTuple):
    """A batch of histories before it is masked: where each lies among the values, and its key."""

    values: np.ndarray
    """(items,) ids of more histories than these."""

    starts: np.ndarray
    """(batch,)"""

    lengths: np.ndarray
    """(batch,)"""

    keys: np.ndarray
    """(batch,) uint64, what all random choices of a view are made of."""


@dataclass
class Tokens:
    """A masked batch, its windows end to end."""

    lengths: np.ndarray
    """(batch,) tokens of each window."""

    values: np.ndarray
    """(tokens,) ids."""

    labels: np.ndarray
    """(tokens,) ids of masked items, -100 elsewhere."""

    places: np.ndarray
    """(tokens,) place in the window, from the oldest item."""

    blocks: np.ndarray | None = None
    """(tokens,) which tokens see which, as BERT4RecModel takes them; None where all see all."""


def cut(tokens: Tokens, is_cut: np.ndarray, asked: np.ndarray) -> Tokens:
    """Cut some windows, and put a mask at each cut that asks for the item behind it.

    The last item of a cut window is asked for only, as no mask is there to see it.

    >>> one = Tokens(np.array([3]), np.array([7, 8, 9]), np.full(3, -100), np.arange(3))
    >>> views = cut(one, np.array([True]), np.array([False, True, False]))
    >>> views.values.tolist(), views.labels.tolist(), views.places.tolist()
    ([7, 1, 8, 1], [-100, 8, -100, 9], [0, 1, 1, 2])
    >>> views.blocks.tolist() == [0, ~0, 1, ~1]
    True

    Args:
        tokens: Windows of items.
        is_cut: (batch,) which to cut.
        asked: (tokens,) where to cut them, before the item; the first item is left alone.
    """
    last = np.cumsum(tokens.lengths) - 1
    is_cut_item = np.repeat(is_cut, tokens.lengths)
    asked = asked & is_cut_item & (tokens.places > 0)
    asked[last[is_cut]] = True
    stays = np.ones_like(asked)
    stays[last[is_cut]] = False
    blocks = np.cumsum(asked)
    firsts = last + 1 - tokens.lengths
    blocks -= np.repeat(blocks[firsts] - asked[firsts], tokens.lengths)
    counts = asked.astype(np.int64) + stays
    items = np.repeat(np.arange(len(counts)), counts)
    is_mask = asked[items] & (np.diff(items, prepend=-1) > 0)
    return Tokens(
        np.add.reduceat(counts, firsts),
        np.where(is_mask, MASK_ID, tokens.values[items]),
        np.where(is_mask, tokens.values[items], tokens.labels[items]),
        tokens.places[items],
        np.where(is_mask, ~(blocks[items] - 1), blocks[items]),
    )


def shorter_first(tokens: Tokens) -> Tokens:
    """Put windows of equal length side by side, as attention wants them."""
    order = np.argsort(tokens.lengths, kind="stable")
    lengths = tokens.lengths[order]
    starts = (np.cumsum(tokens.lengths) - tokens.lengths)[order]
    places = np.repeat(starts, lengths) + count_places(lengths)
    rows = (tokens.values, tokens.labels, tokens.places, tokens.blocks)
    return Tokens(lengths, *(None if row is None else row[places] for row in rows))


def gather_examples(examples: Sequence[dict[str, Any]]) -> Views:
    """Lay the histories of a list end to end; their keys are drawn from torch where missing."""
    histories = [np.asarray(example["items"]) for example in examples]
    lengths = np.array([len(history) for history in histories])
    keys = (
        np.array([example["view"] for example in examples], dtype=np.uint64)
        if "view" in examples[0]
        else torch.randint(2**62, (len(examples),)).numpy().astype(np.uint64)
    )
    return Views(np.concatenate(histories), np.cumsum(lengths) - lengths, lengths, keys)


def count_places(lengths: np.ndarray) -> np.ndarray:
    """Number the items of histories that lie end to end.

    >>> count_places(np.array([2, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    firsts = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) - np.repeat(firsts, lengths)


def ask_for_next(values: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of a causal model: each item is labelled with the next, the last one masked.

    >>> ids, labels = ask_for_next(np.array([7, 8, 9, 5, 6]), np.array([3, 2]))
    >>> ids.tolist(), labels.tolist()
    ([7, 8, 1, 5, 1], [8, 9, -100, 6, -100])
    """
    last = np.cumsum(lengths) - 1
    ids, labels = values.copy(), np.roll(values, -1)
    ids[last], labels[last] = MASK_ID, IGNORE_INDEX
    return ids, labels


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
    """Choose a window of each history, mask items in it, and lay the windows out as a batch.

    Three kinds of view: some items masked at random, as in the paper; just the last one, as at
    test time; or the window cut at random places, and at each cut a mask that asks for the item
    behind it and sees what lies before it, as at test time, too. Items see others up to the next
    cut, so that all these beginnings of the window are read at once. Given `view` keys, a view is
    the same in every process, worker and resumed run; without them (in transformers' Trainer) the
    keys are drawn from torch's generator.
    """

    max_history_length: int
    """Items of a window; the older ones are cut off."""

    mask_ratio: float | int = 0.2
    """Expected share of masked items in a view of the first kind."""

    last_item_ratio: float | int = 0.1
    """Share of views in which just the last item of the window is masked."""

    prefix_view_ratio: float | int = 0.0
    """Share of views that are cut, and ask for the item behind each of their beginnings."""

    prefix_ratio: float | int = 0.5
    """Expected share of items that such a view asks for; the last one always."""

    random_window_ratio: float | int = 0.0
    """Share of views that end at a random item of the history, not at its newest."""

    is_causal: bool = False
    """Ask every item for the next one instead, as a causal model is trained; nothing is masked but
    the last item of a window, so that the others stand as far from the newest as at test time."""

    is_packed: bool = True
    """Lay the windows end to end in one row, without padding; or pad them to a rectangle."""

    pad_to_multiple_of: int = 1
    """Fill a packed row up to such a number of items, so that compiled shapes stay put."""

    negatives: NegativeSampler | None = None
    """What draws the negatives of a sampled objective."""

    def validate_ratios(self) -> None:
        if not 0 < self.mask_ratio <= 1:
            raise ValueError(f"mask_ratio must be in (0, 1], got {self.mask_ratio}")
        names = ("last_item_ratio", "prefix_view_ratio", "prefix_ratio", "random_window_ratio")
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.last_item_ratio + self.prefix_view_ratio > 1:
            raise ValueError(
                "last_item_ratio and prefix_view_ratio are shares of the same views and must not "
                f"exceed 1 together, got {self.last_item_ratio} and {self.prefix_view_ratio}"
            )
        if self.prefix_view_ratio and not self.is_packed:
            raise ValueError(
                "views with prefix_view_ratio can only be packed; leave is_packed=True, or set "
                "prefix_view_ratio=0"
            )

    def validate_pad_to_multiple_of(self) -> None:
        if self.pad_to_multiple_of < 1:
            raise ValueError(
                f"pad_to_multiple_of must be at least 1, got {self.pad_to_multiple_of}"
            )

    def __call__(self, examples: Views | Sequence[dict[str, Any]]) -> dict[str, Tensor | int]:
        """Mask, and pack or pad.

        Args:
            examples: What `TrainingViews` hands out; or one dict per history, with `items` (ids,
                oldest first) and optionally `view` (its key).

        Returns:
            Packed: `input_ids`, `position_ids` and `labels`, each (1, tokens), shorter windows
            first; `cu_seq_lens_q` and `cu_seq_lens_k` (histories + 1,); `max_length_q` and
            `max_length_k`; `masked_positions` (masked,); where views are cut, `block_ids`
            (1, tokens). Padded: `input_ids`, `attention_mask` and
            `labels`, each (batch, length). Where negatives are drawn: `negatives` and
            `negative_log_counts` (negatives,).
        """
        views = examples if isinstance(examples, Views) else gather_examples(examples)
        kinds = uniform_draws(views.keys, 0)
        is_last_item_view = kinds < self.last_item_ratio
        is_cut = ~is_last_item_view & (kinds < self.last_item_ratio + self.prefix_view_ratio)
        firsts, ends = self._windows(views.lengths, views.keys, is_last_item_view)
        lengths, starts = ends - firsts, views.starts + firsts
        places = count_places(lengths)
        values = views.values[np.repeat(starts, lengths) + places].astype(np.int64)
        tokens = Tokens(lengths, values, np.full_like(values, IGNORE_INDEX), places)
        if self.is_causal:
            tokens.values[:], tokens.labels[:] = ask_for_next(values, lengths)
        else:
            masked = self._choose_masked(places, lengths, views.keys, is_last_item_view)
            masked &= ~np.repeat(is_cut, lengths)
            tokens.labels[masked], tokens.values[masked] = values[masked], MASK_ID
            if is_cut.any():
                asked = uniform_draws(np.repeat(views.keys, lengths), places + 3)
                tokens = cut(tokens, is_cut, asked < self.prefix_ratio)
        batch = self._pack if self.is_packed else self._pad
        drawn = self.negatives.draw(np.bitwise_xor.reduce(views.keys)) if self.negatives else {}
        return batch(tokens) | drawn

    def _windows(
        self, lengths: np.ndarray, keys: np.ndarray, is_last_item_view: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """First and one past the last item of each window, each (batch,).

        A random window of the first kind is as long as the history and the model allow; one of
        the second kind ends at any item that has another before it.
        """
        if self.random_window_ratio == 0:
            return np.maximum(lengths - self.max_history_length, 0), lengths
        is_random = uniform_draws(keys, 1) < self.random_window_ratio
        shortest = np.where(is_last_item_view, 2, self.max_history_length).clip(max=lengths)
        draws = uniform_draws(keys, 2)
        random_ends = shortest + (draws * (lengths - shortest + 1)).astype(np.int64)
        ends = np.where(is_random, random_ends, lengths)
        return np.maximum(ends - self.max_history_length, 0), ends

    def _choose_masked(
        self,
        places: np.ndarray,
        lengths: np.ndarray,
        keys: np.ndarray,
        is_last_item_view: np.ndarray,
    ) -> np.ndarray:
        """Truth for each item of all windows, one after the other; at least one per window."""
        ends = np.cumsum(lengths)
        draws = uniform_draws(np.repeat(keys, lengths), places + 3)
        # The lowest draw of a window is masked even if none is below the ratio.
        lowest = np.minimum.reduceat(draws, ends - lengths)
        limits = np.maximum(lowest, np.nextafter(self.mask_ratio, 0))
        limits[is_last_item_view] = -1
        masked = draws <= np.repeat(limits, lengths)
        masked[ends[is_last_item_view] - 1] = True
        return masked

    def _pad(self, tokens: Tokens) -> dict[str, Tensor]:
        input_ids = left_padded(tokens.values, tokens.lengths, PAD_ID)
        return {
            "input_ids": input_ids,
            "attention_mask": (input_ids != PAD_ID).long(),
            "labels": left_padded(tokens.labels, tokens.lengths, IGNORE_INDEX),
        }

    def _pack(self, tokens: Tokens) -> dict[str, Tensor | int]:
        tokens = shorter_first(tokens)
        ends, longest = np.cumsum(tokens.lengths), int(tokens.lengths.max())
        positions = (tokens.labels != IGNORE_INDEX).nonzero()[0]
        rows = {"input_ids": tokens.values, "position_ids": tokens.places, "labels": tokens.labels}
        fills: dict[str, int | np.ndarray] = {"input_ids": PAD_ID, "labels": IGNORE_INDEX}
        if tokens.blocks is not None:
            rows["block_ids"], fills["block_ids"] = tokens.blocks, 0
        if self.pad_to_multiple_of > 1:
            filler = self._filler(ends[-1])
            fills["position_ids"] = count_places(filler)
            # Masked positions in excess are those of the last item, which is filler.
            excess = -len(positions) % max(1, self.pad_to_multiple_of // MASKED_SHARE)
            positions = np.append(positions, np.full(excess, ends[-1] + filler.sum() - 1))
            ends = np.append(ends, ends[-1] + np.cumsum(filler))
            rows = {
                name: np.append(row, np.broadcast_to(fills[name], filler.sum()))
                for name, row in rows.items()
            }
        cu_seq_lens = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))
        return {
            **{name: torch.from_numpy(row).unsqueeze(0) for name, row in rows.items()},
            "cu_seq_lens_q": cu_seq_lens,
            "cu_seq_lens_k": cu_seq_lens,
            "max_length_q": longest,
            "max_length_k": longest,
            "masked_positions": torch.from_numpy(positions),
        }

    def _filler(self, num_items: int) -> np.ndarray:
        """Lengths of the histories of padding that fill a row up; always as many, at least 1 item.

        None is longer than a window, and those not needed are empty.
        """
        missing = self.pad_to_multiple_of - num_items % self.pad_to_multiple_of
        num_pieces = -(-self.pad_to_multiple_of // self.max_history_length)
        ends = np.arange(num_pieces + 1) * self.max_history_length
        return np.diff(ends.clip(max=missing))


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
