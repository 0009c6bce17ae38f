"""Histories in, masked batches out; every random choice is a function of one number per view."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from .negatives import NegativeSampler, uniform_draws
from .packing import IGNORE_INDEX, MASK_ID, Tokens, count_places, pack, pad
from .pieces import Ids


class Views(NamedTuple):
    """A batch of histories before it is masked: where each lies among the values, and its key."""

    values: Ids
    """(items,) ids of more histories than these."""

    starts: np.ndarray
    """(batch,)"""

    lengths: np.ndarray
    """(batch,)"""

    keys: np.ndarray
    """(batch,) uint64, what all random choices of a view are made of."""


def ask_after_prefixes(tokens: Tokens, is_prefix_view: np.ndarray, asks: np.ndarray) -> Tokens:
    """Ask for some items of some windows from the items before them, by a mask before each.

    The last item of such a window is always asked for, and is not read, as no mask is there to see
    it.

    >>> one = Tokens(np.array([3]), np.array([7, 8, 9]), np.full(3, -100), np.arange(3))
    >>> views = ask_after_prefixes(one, np.array([True]), np.array([False, True, False]))
    >>> views.values.tolist(), views.labels.tolist(), views.places.tolist()
    ([7, 1, 8, 1], [-100, 8, -100, 9], [0, 1, 1, 2])
    >>> views.prefix_ids.tolist(), views.is_query.tolist()
    ([0, 0, 1, 1], [False, True, False, True])

    Args:
        tokens: Windows of items.
        is_prefix_view: (batch,) of which windows.
        asks: (tokens,) which items to ask for; the first item of a window is left alone.
    """
    last = np.cumsum(tokens.lengths) - 1
    asks = asks & np.repeat(is_prefix_view, tokens.lengths) & (tokens.places > 0)
    asks[last[is_prefix_view]] = True
    is_read = np.ones_like(asks)
    is_read[last[is_prefix_view]] = False
    prefix_ids = np.cumsum(asks)
    firsts = last + 1 - tokens.lengths
    prefix_ids -= np.repeat(prefix_ids[firsts] - asks[firsts], tokens.lengths)
    counts = asks.astype(np.int64) + is_read
    items = np.repeat(np.arange(len(counts)), counts)
    is_query = asks[items] & (np.diff(items, prepend=-1) > 0)
    return Tokens(
        np.add.reduceat(counts, firsts),
        np.where(is_query, MASK_ID, tokens.values[items]),
        np.where(is_query, tokens.values[items], tokens.labels[items]),
        tokens.places[items],
        prefix_ids[items] - is_query,
        is_query,
    )


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


def draw_negatives(
    sampler: NegativeSampler | None, views: Views, tokens: Tokens
) -> dict[str, Tensor]:
    """Draw the negatives of a batch, which are a function of its views; none without a sampler."""
    if sampler is None:
        return {}
    targets = tokens.labels[tokens.labels != IGNORE_INDEX]
    return sampler.draw(np.bitwise_xor.reduce(views.keys), targets)


@strict
@dataclass(kw_only=True)
class MaskedItemCollator:
    """Choose a window of each history, mask items in it, and lay the windows out as a batch.

    Three kinds of view: some items masked at random, as in the paper; just the last one, as at
    test time; or a prefix view, in which several prefixes of the window are read at once and a mask
    after each asks for the next item, as at test time, too; items see those of their own prefix and
    of shorter ones, in both directions. Given `view` keys, a view is
    the same in every process, worker and resumed run; without them (in transformers' Trainer) the
    keys are drawn from torch's generator.
    """

    max_history_length: int
    """Items of a window; older ones are left out."""

    mask_ratio: float | int = 0.2
    """Expected share of masked items in a view of the first kind."""

    last_item_ratio: float | int = 0.1
    """Share of views in which just the last item of the window is masked."""

    prefix_view_ratio: float | int = 0.0
    """Share of views that ask for the item after each of several prefixes."""

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
            `max_length_k`; `masked_positions` (masked,); with prefix views, `prefix_ids`
            and `is_query` (1, tokens). Padded: `input_ids`, `attention_mask` and
            `labels`, each (batch, length). Where negatives are drawn: `negatives` and
            `negative_log_counts` (negatives,).
        """
        views = examples if isinstance(examples, Views) else gather_examples(examples)
        kinds = uniform_draws(views.keys, 0)
        is_last_item_view = kinds < self.last_item_ratio
        is_prefix_view = kinds < self.last_item_ratio + self.prefix_view_ratio
        is_prefix_view &= ~is_last_item_view
        firsts, ends = self._windows(views.lengths, views.keys, is_last_item_view)
        lengths, starts = ends - firsts, views.starts + firsts
        places = count_places(lengths)
        values = views.values[np.repeat(starts, lengths) + places].astype(np.int64)
        tokens = Tokens(lengths, values, np.full_like(values, IGNORE_INDEX), places)
        if self.is_causal:
            tokens.values[:], tokens.labels[:] = ask_for_next(values, lengths)
        else:
            masked = self._choose_masked(places, lengths, views.keys, is_last_item_view)
            masked &= ~np.repeat(is_prefix_view, lengths)
            tokens.labels[masked], tokens.values[masked] = values[masked], MASK_ID
            if is_prefix_view.any():
                draws = uniform_draws(np.repeat(views.keys, lengths), places + 3)
                tokens = ask_after_prefixes(tokens, is_prefix_view, draws < self.prefix_ratio)
        drawn = draw_negatives(self.negatives, views, tokens)
        if not self.is_packed:
            return pad(tokens) | drawn
        return pack(tokens, self.pad_to_multiple_of, self.max_history_length) | drawn

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
