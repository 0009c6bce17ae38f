"""Windows of items laid out as a batch: end to end, or padded to a rectangle."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

IGNORE_INDEX = -100


PAD_ID = 0


MASK_ID = 1


MASKED_SHARE = 4
"""Masked positions are filled up to a multiple that is so many times smaller than that of items."""


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

    prefix_ids: np.ndarray | None = None
    """(tokens,) the shortest prefix that has the token, as BERT4RecModel takes it; None where all
    tokens of a window see one another."""

    is_query: np.ndarray | None = None
    """(tokens,) True at the masks that ask for the item after a prefix."""


def shorter_first(tokens: Tokens) -> Tokens:
    """Put windows of equal length side by side, as attention wants them."""
    order = np.argsort(tokens.lengths, kind="stable")
    lengths = tokens.lengths[order]
    starts = (np.cumsum(tokens.lengths) - tokens.lengths)[order]
    places = np.repeat(starts, lengths) + count_places(lengths)
    rows = (tokens.values, tokens.labels, tokens.places, tokens.prefix_ids, tokens.is_query)
    return Tokens(lengths, *(None if row is None else row[places] for row in rows))


def count_places(lengths: np.ndarray) -> np.ndarray:
    """Number the items of histories that lie end to end.

    >>> count_places(np.array([2, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    firsts = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) - np.repeat(firsts, lengths)


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


def pad(tokens: Tokens) -> dict[str, Tensor]:
    """Lay the windows out as a rectangle; MaskedItemCollator describes the batch."""
    input_ids = left_padded(tokens.values, tokens.lengths, PAD_ID)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != PAD_ID).long(),
        "labels": left_padded(tokens.labels, tokens.lengths, IGNORE_INDEX),
    }


def pack(
    tokens: Tokens, pad_to_multiple_of: int, max_history_length: int
) -> dict[str, Tensor | int]:
    """Lay the windows out end to end; MaskedItemCollator describes the batch.

    Args:
        tokens: Masked windows.
        pad_to_multiple_of: Fill the row up to such a number of items.
        max_history_length: No history of padding is longer.
    """
    tokens = shorter_first(tokens)
    ends, longest = np.cumsum(tokens.lengths), int(tokens.lengths.max())
    positions = (tokens.labels != IGNORE_INDEX).nonzero()[0]
    rows = {"input_ids": tokens.values, "position_ids": tokens.places, "labels": tokens.labels}
    fills: dict[str, int | np.ndarray] = {"input_ids": PAD_ID, "labels": IGNORE_INDEX}
    if tokens.prefix_ids is not None:
        rows |= {"prefix_ids": tokens.prefix_ids, "is_query": tokens.is_query}
        fills |= {"prefix_ids": 0, "is_query": False}
    if pad_to_multiple_of > 1:
        filler = _filler(ends[-1], pad_to_multiple_of, max_history_length)
        fills["position_ids"] = count_places(filler)
        # Masked positions in excess are those of the last item, which is filler.
        excess = -len(positions) % max(1, pad_to_multiple_of // MASKED_SHARE)
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


def _filler(num_items: int, pad_to_multiple_of: int, max_history_length: int) -> np.ndarray:
    """Lengths of the histories of padding that fill a row up; always as many, at least 1 item.

    None is longer than a window, and those not needed are empty.
    """
    missing = pad_to_multiple_of - num_items % pad_to_multiple_of
    num_pieces = -(-pad_to_multiple_of // max_history_length)
    ends = np.arange(num_pieces + 1) * max_history_length
    return np.diff(ends.clip(max=missing))
