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


class RecordingScorer(DotScorer):
    """Remembers the shape of everything it was asked to score."""

    def __init__(self, items: Tensor):
        super().__init__(items)
        self.blocks: list[tuple[int, int]] = []

    def score(self, encoded: Tensor, start: int, stop: int) -> Tensor:
        self.blocks.append((len(encoded), stop - start))
        return super().score(encoded, start, stop)


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


@pytest.fixture
def recording_scorer():
    return RecordingScorer
