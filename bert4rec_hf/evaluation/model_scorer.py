"""A masked-item model as a scorer: the mask stands behind the history, and its state scores."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class NextItemModel(Protocol):
    """What the scorer needs of a model."""

    config: object
    """With `vocab_size`, `max_history_length` and `mask_token_id`."""

    def next_item_states(
        self, input_ids: Tensor, *, cu_seq_lens_q: Tensor, max_length_q: int
    ) -> Tensor:
        """(batch, hidden) state of the mask at the end of each packed history."""

    def read_head(self) -> tuple[Tensor, Tensor | None]:
        """(vocab, hidden) rows whose products with the state score the items, (vocab,) bias."""


class ModelScorer:
    """Scores of a model for whole histories; the newest items that fit are read."""

    def __init__(self, model: NextItemModel):
        self.model = model
        # Read once: where a tuner trains some of the rows, each reading copies the table.
        with torch.no_grad():
            self.weight, self.bias = model.read_head()
        self.vocab_size: int = model.config.vocab_size

    def encode(self, histories: Sequence[np.ndarray]) -> Tensor:
        """Read histories with the mask behind each.

        Args:
            histories: Ids, oldest first; an empty one is scored by the mask alone.

        Returns:
            (batch, hidden)
        """
        return self.model.next_item_states(
            **append_masks(histories, self.model.config, self.weight.device)
        )

    def score(self, encoded: Tensor, start: int, stop: int) -> Tensor:
        """Score a run of the catalog.

        Args:
            encoded: (batch, hidden) as `encode` made them.
            start: First id.
            stop: One past the last id.

        Returns:
            (batch, stop - start) float32
        """
        bias = None if self.bias is None else self.bias[start:stop].float()
        return F.linear(encoded.float(), self.weight[start:stop].float(), bias)


def append_masks(
    histories: Sequence[np.ndarray], config: Any, device: torch.device
) -> dict[str, Tensor | int]:
    """Pack histories end to end, the mask behind each; the newest items that fit are taken.

    Args:
        histories: Ids, oldest first.
        config: With `max_history_length` and `mask_token_id`.
        device: Where to.

    Returns:
        `input_ids` (1, tokens), `cu_seq_lens_q` (histories + 1,) and `max_length_q`.
    """
    mask = np.array([config.mask_token_id])
    parts = [
        part
        for history in histories
        for part in (history[-(config.max_history_length - 1) :], mask)
    ]
    lengths = np.array([len(part) for part in parts]).reshape(-1, 2).sum(axis=1)
    cu_seq_lens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return {
        "input_ids": torch.as_tensor(
            np.concatenate(parts).astype(np.int64), device=device
        ).unsqueeze(0),
        "cu_seq_lens_q": torch.as_tensor(cu_seq_lens, device=device),
        "max_length_q": int(lengths.max()),
    }
