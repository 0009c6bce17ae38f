"""Users and items as vectors whose inner product is the score, and items that are alike."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bert4rec_hf.evaluation.model_scorer import EncodedHistories, ModelScorer
from bert4rec_hf.evaluation.ranking import FIRST_ITEM_ID


class Vectors:
    """The vectors of a model.

    Where items have a bias, it is the last number of their vectors, and that of a history is 1.
    Where item neighbors are mixed into the scores, the product is the score before that.

    Args:
        scorer: The model.
    """

    def __init__(self, scorer: ModelScorer):
        self.scorer = scorer

    @cached_property
    def items(self) -> np.ndarray:
        """(items, hidden) float32, in the order of the catalog; (items, hidden + 1) with biases."""
        weight = self.scorer.weight[FIRST_ITEM_ID:].float()
        if self.scorer.bias is not None:
            bias = self.scorer.bias[FIRST_ITEM_ID:].float()
            weight = torch.cat([weight, bias.unsqueeze(1)], dim=1)
        return weight.detach().cpu().numpy()

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return self.scorer.weight.shape[1] + (self.scorer.bias is not None)

    @torch.inference_mode()
    def encode(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """(histories, hidden) float32 vectors of a run of histories, or (histories, hidden + 1).

        Args:
            histories: Ids, oldest first; an empty one is read as the mask alone.
        """
        encoded = self.scorer.encode(histories)
        states = encoded.states if isinstance(encoded, EncodedHistories) else encoded
        states = states.float()
        if self.scorer.bias is not None:
            states = torch.cat([states, states.new_ones(len(states), 1)], dim=1)
        return states.cpu().numpy()

    @cached_property
    def _norms(self) -> Tensor:
        return self.scorer.weight.float().norm(dim=1)

    @torch.inference_mode()
    def similar(self, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the items whose vectors point the same way, by cosine, biases aside.

        Args:
            ids: (items,) of whom; an item is not similar to itself.
            k: How many; fewer if the catalog is smaller.

        Returns:
            (items, k) ids and (items, k) cosines, largest first.
        """
        chosen = torch.as_tensor(ids, device=self.scorer.weight.device)
        rows = self.scorer.weight[chosen].float() / self._norms[chosen].unsqueeze(1)
        cosines = rows @ self.scorer.weight.float().T / self._norms  # padding's norm is 0
        cosines[:, :FIRST_ITEM_ID] = -torch.inf
        cosines.scatter_(1, chosen.unsqueeze(1), -torch.inf)
        values, places = cosines.topk(min(k, self.scorer.vocab_size - FIRST_ITEM_ID - 1))
        return places.cpu().numpy(), values.cpu().numpy()
