"""Which items each position of a batch may read: a prefix of its history, or the whole of it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Prefixes(NamedTuple):
    """Runs of positions that gates read; positions are counted through the rows of the batch."""

    starts: Tensor
    """(prefixes,) first position of each run."""

    stops: Tensor
    """(prefixes,) one past the last."""

    is_item: Tensor | None
    """(positions,) which of them count: neither padding nor a query; None where all do."""

    of_positions: Tensor
    """(positions,) the run that a position reads."""

    is_query: Tensor | None = None
    """(positions,) masks that nobody else sees; such a position reads itself, too, and then each
    position has a run of its own. None where there are none."""


def find_histories(
    batch: int, length: int, attention_mask: Tensor | None, cu_seq_lens: Tensor | None
) -> Prefixes:
    """One run per history: all positions read the whole of theirs.

    Args:
        batch: Rows of the batch.
        length: Positions of a row.
        attention_mask: (batch, length) 0 for padding; of no use where histories are packed.
        cu_seq_lens: (histories + 1,) cumulative lengths of packed histories, else None.
    """
    if cu_seq_lens is None:
        starts = torch.arange(batch, device=attention_mask.device) * length
        of_positions = torch.arange(batch * length, device=starts.device) // length
        return Prefixes(starts, starts + length, attention_mask.flatten() != 0, of_positions)
    positions = torch.arange(length, dtype=cu_seq_lens.dtype, device=cu_seq_lens.device)
    of_positions = torch.searchsorted(cu_seq_lens[1:], positions, right=True)
    return Prefixes(cu_seq_lens[:-1].long(), cu_seq_lens[1:].long(), None, of_positions)


def end_at_themselves(histories: Prefixes) -> Prefixes:
    """One run per position: a causal model reads no position after its own."""
    positions = torch.arange(len(histories.of_positions), device=histories.starts.device)
    return Prefixes(
        histories.starts[histories.of_positions], positions + 1, histories.is_item, positions
    )


def end_at_prefixes(histories: Prefixes, prefix_ids: Tensor, is_query: Tensor) -> Prefixes:
    """One run per position, where a history is read as several of its prefixes at once.

    >>> whole = find_histories(1, 5, None, torch.tensor([0, 2, 5]))
    >>> is_query = torch.tensor([[False, False, False, True, False]])
    >>> prefixes = end_at_prefixes(whole, torch.tensor([[0, 0, 0, 0, 1]]), is_query)
    >>> prefixes.starts.tolist(), prefixes.stops.tolist()
    ([0, 0, 2, 2, 2], [2, 2, 4, 4, 5])

    Args:
        histories: Packed, as `find_histories` found them.
        prefix_ids: (1, positions) number of the shortest prefix that has the position, from 0.
        is_query: (1, positions) True at the masks that ask for the item after a prefix.
    """
    of_positions = histories.of_positions
    positions = torch.arange(len(of_positions), device=of_positions.device)
    is_new = [each.diff(prepend=each[:1]).ne(0) for each in (prefix_ids[0], of_positions)]
    runs = torch.logical_or(*is_new).cumsum(0)
    stops = torch.searchsorted(runs, runs, right=True)
    starts = histories.starts[of_positions]
    return Prefixes(starts, stops, ~is_query[0], positions, is_query[0])
