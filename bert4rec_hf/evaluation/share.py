"""Each process ranks its share of the histories, and what is reported are sums over all shares.

Metrics, their intervals and breakdowns follow from how many targets have each rank, coverage from
which items were shown; so no process is sent the ranks of another.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor


def add_up(counts: Tensor) -> Tensor:
    """The sum over all processes, which must come here together with tensors of one shape."""
    state = PartialState()
    return counts if state.num_processes == 1 else reduce(counts.to(state.device), "sum").cpu()


@dataclass(frozen=True)
class Share:
    """What one process has ranked. Two scorers have the same rows where the histories are."""

    rows: np.ndarray
    """(share,) places of its histories in their split."""

    ranks: Tensor
    """(share,) rank of each target, from 1."""

    ranked: Tensor
    """(share,) ranks as if targets that repeat an item of their history were never missed."""

    repeats: np.ndarray
    """(share,) which targets do."""

    distinct: dict[Hashable, int]
    """Different items in the first k places, by k, and among the `targets`; of all processes."""

    def gather(self) -> Tensor:
        """(histories,) ranks of all shares in the order of the split, on every process.

        All processes must come here together.
        """
        parts = gather_object([(self.rows, self.ranks.numpy())])
        rows, ranks = (np.concatenate(column) for column in zip(*parts, strict=True))
        return torch.from_numpy(ranks[rows.argsort()])


class DistinctItems:
    """Which items were met, by what they were met as.

    Args:
        kinds: What they can be met as.
        vocab_size: Number of ids.
    """

    def __init__(self, kinds: Sequence[Hashable], vocab_size: int):
        self.kinds = list(kinds)
        self.is_met = torch.zeros(len(self.kinds), vocab_size, dtype=torch.bool)

    def add(self, kind: Hashable, ids: Tensor) -> None:
        """Take note of ids; 0 is none."""
        self.is_met[self.kinds.index(kind)][ids.flatten()] = True

    def count(self) -> dict[Hashable, int]:
        """How many different items any process has met."""
        met = add_up(self.is_met.int())[:, 1:].count_nonzero(dim=1)
        return dict(zip(self.kinds, met.tolist(), strict=True))
