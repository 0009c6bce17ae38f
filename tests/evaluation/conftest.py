from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor


class DotScorer:
    """Scores items by the product of their vector with the mean vector of the history."""

    def __init__(self, items: Tensor):
        self.items, self.vocab_size = items, len(items)

    def encode(self, histories: Sequence[np.ndarray]) -> Tensor:
        return torch.stack([self.items[torch.as_tensor(ids)].mean(dim=0) for ids in histories])

    def score(self, encoded: Tensor, start: int, stop: int) -> Tensor:
        return encoded @ self.items[start:stop].T


class TableScorer:
    """Scores that are written down: the batch is the rows of the table."""

    def __init__(self, table: Tensor):
        self.table, self.vocab_size = table, table.shape[1]

    def encode(self, histories: Sequence[np.ndarray]) -> Tensor:
        return self.table[: len(histories)]

    def score(self, encoded: Tensor, start: int, stop: int) -> Tensor:
        return encoded[:, start:stop]


@pytest.fixture
def dot_scorer():
    return DotScorer


@pytest.fixture
def table_scorer():
    return TableScorer
