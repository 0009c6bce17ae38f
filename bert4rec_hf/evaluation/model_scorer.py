"""A masked-item model as a scorer: the mask stands behind the history, and its state scores."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NextItemModel(Protocol):
    """What the scorer needs of a model."""

    config: object
    """With `vocab_size`, `max_history_length`, `pad_token_id` and `mask_token_id`."""

    def next_item_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, hidden) state of the mask in the last column."""

    def get_output_embeddings(self) -> nn.Linear:
        """The layer whose rows, times the state, score the items."""


class ModelScorer:
    """Scores of a model for whole histories; the newest items that fit are read."""

    def __init__(self, model: NextItemModel):
        self.model = model
        self.vocab_size: int = model.config.vocab_size

    def encode(self, histories: Sequence[np.ndarray]) -> Tensor:
        """Read histories with the mask behind each.

        Args:
            histories: Ids, oldest first; an empty one is scored by the mask alone.

        Returns:
            (batch, hidden)
        """
        config = self.model.config
        newest = [history[-(config.max_history_length - 1) :] for history in histories]
        width = max(map(len, newest)) + 1
        input_ids = np.full((len(newest), width), config.pad_token_id, dtype=np.int64)
        input_ids[:, -1] = config.mask_token_id
        for row, history in zip(input_ids, newest, strict=True):
            row[width - 1 - len(history) : -1] = history
        device = self.model.get_output_embeddings().weight.device
        ids = torch.as_tensor(input_ids, device=device)
        return self.model.next_item_states(ids, (ids != config.pad_token_id).long())

    def score(self, encoded: Tensor, start: int, stop: int) -> Tensor:
        """Score a run of the catalog.

        Args:
            encoded: (batch, hidden) as `encode` made them.
            start: First id.
            stop: One past the last id.

        Returns:
            (batch, stop - start) float32
        """
        head = self.model.get_output_embeddings()
        bias = None if head.bias is None else head.bias[start:stop].float()
        return F.linear(encoded.float(), head.weight[start:stop].float(), bias)
