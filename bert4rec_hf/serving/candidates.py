"""Which items a request may be answered with: candidates, exclusions and the items seen."""

import numpy as np
import torch
from torch import Tensor

from bert4rec_hf.evaluation.model_scorer import EncodedHistories, score_items
from bert4rec_hf.evaluation.ranking import (
    FIRST_ITEM_ID,
    ITEMS_AT_ONCE,
    CatalogScores,
    ItemSets,
    top_items,
)

GATHERED_SHARE = 0.5
"""Below this share of the catalog, the rows of the candidates are copied and no others scored."""

SCORES_AT_ONCE = 2**21
"""Scores held at once: of a whole catalog for one history, of ITEMS_AT_ONCE items for 256."""


class CandidateScorer:
    """Scores of the items that are candidates, and the best of them.

    Args:
        weight: (vocab, hidden) rows whose products with a state score the items.
        bias: (vocab,) added to the products, or None.
        candidates: (candidates,) ids; None for the whole catalog.
        exclude: (excluded,) ids that are no candidates.

    Raises:
        ValueError: No item is left.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        candidates: np.ndarray | None = None,
        exclude: np.ndarray | None = None,
    ):
        self.ids, self.columns, self.left_out = None, None, None
        self.is_candidate = np.zeros(len(weight), dtype=bool)
        self.is_candidate[slice(FIRST_ITEM_ID, None) if candidates is None else candidates] = True
        self.is_candidate[[] if exclude is None else exclude] = False
        if candidates is not None or exclude is not None:
            ids = np.flatnonzero(self.is_candidate)
            if len(ids) == 0:
                raise ValueError("every candidate is excluded; leave some to recommend")
            if len(ids) < GATHERED_SHARE * len(weight):
                weight, bias = self._gather(weight, bias, ids)
            else:
                self.left_out = torch.as_tensor(~self.is_candidate, device=weight.device)
        self.weight, self.bias, self.vocab_size = weight, bias, len(weight)

    def _gather(
        self, weight: Tensor, bias: Tensor | None, ids: np.ndarray
    ) -> tuple[Tensor, Tensor | None]:
        """Copy the rows of some items behind rows for padding and mask, and remember which."""
        # Columns of scores begin where ids of items do, so column 0 stands for no item here too.
        self.columns = np.full(len(weight), -1, dtype=np.int64)
        self.columns[ids] = np.arange(FIRST_ITEM_ID, FIRST_ITEM_ID + len(ids))
        ids = np.concatenate([np.arange(FIRST_ITEM_ID), ids])
        self.ids = torch.as_tensor(ids, device=weight.device)
        return weight[self.ids], None if bias is None else bias[self.ids]

    def score(self, encoded: Tensor | EncodedHistories, start: int, stop: int) -> Tensor:
        """(batch, stop - start) float32 scores; -inf for what is no candidate."""
        scores = score_items(encoded, self.weight, self.bias, start, stop)
        if self.left_out is not None:
            scores.masked_fill_(self.left_out[start:stop], -torch.inf)
        return scores

    def best(
        self, encoded: Tensor | EncodedHistories, k: int, left_out: ItemSets | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the best candidates of each history, best first.

        Args:
            encoded: The batch as `ModelScorer.encode` made it.
            k: How many.
            left_out: Items that are no candidates for single histories.

        Returns:
            (batch, k) ids and (batch, k) scores; id 0 and score -inf where candidates ran out.
        """
        if left_out is not None and self.columns is not None:
            columns = self.columns[left_out.ids]
            left_out = ItemSets(left_out.rows[columns >= 0], columns[columns >= 0])
        if isinstance(encoded, EncodedHistories) and self.columns is not None:
            encoded = encoded.renumber(torch.as_tensor(self.columns, device=self.ids.device))
        states = encoded.states if isinstance(encoded, EncodedHistories) else encoded
        width = max(ITEMS_AT_ONCE, SCORES_AT_ONCE // len(states))
        chunks = CatalogScores(self, encoded, width, items_at_once=width)
        columns, scores = top_items(chunks, k, left_out)
        return columns if self.ids is None else self.ids[columns], scores
