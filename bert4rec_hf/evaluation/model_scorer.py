"""A masked-item model as a scorer: the mask stands behind the history, and its state scores."""

from collections.abc import Sequence
from dataclasses import dataclass
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

    def next_item_neighbors(
        self, states: Tensor, input_ids: Tensor, *, cu_seq_lens_q: Tensor, max_length_q: int
    ) -> "Neighbors | None":
        """What is mixed into the scores by these states; None if there is nothing."""

    def read_head(self) -> tuple[Tensor, Tensor | None]:
        """(vocab, hidden) rows whose products with the state score the items, (vocab,) bias."""


class Neighbors(Protocol):
    """What a model mixes into its scores; a slice is that of those histories."""

    def __getitem__(self, rows: slice) -> "Neighbors": ...

    def renumber(self, columns: Tensor) -> "Neighbors":
        """The same where the scores of an item stand in another column; below 0 in none."""

    def mix_run(self, scores: Tensor, first_id: int) -> Tensor:
        """Mix it into the (batch, candidates) scores of the items from first_id on, in place."""


@dataclass(frozen=True)
class EncodedHistories:
    """A batch as the scorer read it, where neighbors are mixed in."""

    states: Tensor
    """(batch, hidden)"""

    neighbors: Neighbors

    def __getitem__(self, rows: slice) -> "EncodedHistories":
        return EncodedHistories(self.states[rows], self.neighbors[rows])

    def renumber(self, columns: Tensor) -> "EncodedHistories":
        """The same for scores of other items, or in another order.

        Args:
            columns: (vocab,) where the score of each item stands; below 0 if it is not there.
        """
        return EncodedHistories(self.states, self.neighbors.renumber(columns))


class ModelScorer:
    """Scores of a model for whole histories; the newest items that fit are read."""

    def __init__(self, model: NextItemModel):
        self.model = model
        # Read once: where a tuner trains some of the rows, each reading copies the table.
        with torch.no_grad():
            self.weight, self.bias = model.read_head()
        self.vocab_size: int = model.config.vocab_size

    def encode(self, histories: Sequence[np.ndarray]) -> Tensor | EncodedHistories:
        """Read histories with a mask after each.

        Args:
            histories: Ids, oldest first; an empty one is scored by the mask alone.

        Returns:
            (batch, hidden) states; with what is mixed into the scores, where something is.
        """
        inputs = append_masks(histories, self.model.config, self.weight.device)
        states = self.model.next_item_states(**inputs)
        neighbors = self.model.next_item_neighbors(states, **inputs)
        return states if neighbors is None else EncodedHistories(states, neighbors)

    def score(self, encoded: Tensor | EncodedHistories, start: int, stop: int) -> Tensor:
        """Score a run of the catalog.

        Args:
            encoded: The batch as `encode` made it.
            start: First id.
            stop: One past the last id.

        Returns:
            (batch, stop - start) float32
        """
        return score_items(encoded, self.weight, self.bias, start, stop)


def score_items(
    encoded: Tensor | EncodedHistories, weight: Tensor, bias: Tensor | None, start: int, stop: int
) -> Tensor:
    """Score a run of items by their rows, and mix neighbors in where there are any.

    Args:
        encoded: The batch as `ModelScorer.encode` made it.
        weight: (items, hidden) rows whose products with a state score the items.
        bias: (items,) added to the products, or None.
        start: First row.
        stop: One past the last row.

    Returns:
        (batch, stop - start) float32
    """
    is_mixed = isinstance(encoded, EncodedHistories)
    states = encoded.states if is_mixed else encoded
    bias = None if bias is None else bias[start:stop].float()
    scores = F.linear(states.float(), weight[start:stop].float(), bias)
    return encoded.neighbors.mix_run(scores, start) if is_mixed else scores


def append_masks(
    histories: Sequence[np.ndarray], config: Any, device: torch.device
) -> dict[str, Tensor | int]:
    """Pack histories end to end, a mask after each; the newest items that fit are taken.

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
