"""Approximate search among very many items, by faiss (Douze et al., 2024, arXiv 2401.08281).

The items lie in lists around centroids, in codes of 8 bits a number; a search reads some of the
lists and scores what it finds there by the table itself. So scores are exact, and an item can be
missed.
"""

import math

import numpy as np
import torch
from torch import Tensor

from bert4rec_hf.evaluation.model_scorer import EncodedHistories
from bert4rec_hf.evaluation.ranking import FIRST_ITEM_ID, ItemSets
from bert4rec_hf.serving.vectors import Vectors

FOUND_PER_WANTED = 8
"""Items that are scored by the table for each that is wanted, as codes are not exact."""

TRAINED_PER_LIST = 40
"""Items that the centroid of a list is computed from."""


class ItemIndex:
    """An index of the items of a model; it answers as `CandidateScorer.best` does.

    Args:
        vectors: Of the model.
        num_lists: Lists that the items are dealt out to; 4 times the root of their number if 0.
        codes: How faiss keeps an item in its list: `SQ8` takes a byte per number of a vector,
            `PQ32` 32 bytes per item where 32 divides the numbers, `Flat` four bytes a number.
        seed: Of the items that centroids are computed from.

    Raises:
        ImportError: faiss is not installed.
    """

    def __init__(self, vectors: Vectors, *, num_lists: int = 0, codes: str = "SQ8", seed: int = 0):
        try:
            import faiss
        except ImportError as error:
            raise ImportError('approximate search needs pip install "bert4rec_hf[ann]"') from error
        items = vectors.items
        self.items = torch.from_numpy(items)
        self.is_candidate = np.ones(FIRST_ITEM_ID + len(items), dtype=bool)
        self.is_candidate[:FIRST_ITEM_ID] = False
        self.num_lists = num_lists or max(1, int(4 * math.sqrt(len(items))))
        self.index = faiss.index_factory(
            items.shape[1], f"IVF{self.num_lists},{codes}", faiss.METRIC_INNER_PRODUCT
        )
        generator = np.random.default_rng(seed)
        count = min(len(items), TRAINED_PER_LIST * self.num_lists)
        self.index.train(items[generator.choice(len(items), count, replace=False)])
        self.index.add(items)
        self.probes = max(1, self.num_lists // 16)

    @property
    def probes(self) -> int:
        """Lists that a search reads: more of them find more, and take longer."""
        return self.index.nprobe

    @probes.setter
    def probes(self, value: int) -> None:
        if not 1 <= value <= self.num_lists:
            raise ValueError(f"probes must be 1 to {self.num_lists}, the lists, got {value}")
        self.index.nprobe = value

    def tune(self, states: np.ndarray, overlap: float = 0.98, k: int = 10) -> float:
        """Read as few lists as find a share of what an exact search finds.

        Args:
            states: (histories, hidden) of typical histories, as `Vectors.encode` makes them.
            overlap: The share to be reached, by doubling `probes`.
            k: Of how many items per history.

        Returns:
            The share that is reached.
        """
        self.probes = 1
        while (found := self.measure_overlap(states, k)) < overlap and self.probes < self.num_lists:
            self.probes = min(2 * self.probes, self.num_lists)
        return found

    def measure_overlap(self, states: np.ndarray, k: int = 10) -> float:
        """Mean share of the k best items that a search finds.

        Args:
            states: (histories, hidden) as for `tune`.
            k: How many.
        """
        exact = (torch.from_numpy(states) @ self.items.T).topk(k).indices + FIRST_ITEM_ID
        found, _ = self._search(torch.from_numpy(states), k)
        return (exact.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean().item()

    def best(
        self, encoded: Tensor | EncodedHistories, k: int, left_out: ItemSets | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the best items of each history, best first; see `CandidateScorer.best`.

        Raises:
            ValueError: The model mixes item neighbors into its scores, which no index knows.
        """
        if isinstance(encoded, EncodedHistories):
            raise ValueError(
                "the model mixes item neighbors into its scores, which approximate search cannot "
                "do; leave approximate out"
            )
        states = encoded.float().cpu()
        if self.items.shape[1] > states.shape[1]:  # the last number of items is their bias
            states = torch.cat([states, states.new_ones(len(states), 1)], dim=1)
        if left_out is None:
            return self._search(states, k)
        counts = np.bincount(left_out.rows, minlength=len(states))
        ids, scores = self._search(states, k + int(counts.max()))
        base = len(self.is_candidate)
        keys = np.arange(len(ids))[:, np.newaxis] * base + ids.numpy()
        is_out = np.isin(keys, left_out.rows * base + left_out.ids)
        scores = scores.masked_fill(torch.from_numpy(is_out), -torch.inf)
        scores, places = scores.topk(min(k, scores.shape[1]))
        return ids.gather(1, places).masked_fill(scores == -torch.inf, 0), scores

    def _search(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Ids and scores, (histories, k); id 0 and -inf where the lists that were read ran out."""
        k = min(k, len(self.items))
        wanted = min(FOUND_PER_WANTED * k, len(self.items))
        _, places = self.index.search(np.ascontiguousarray(states.numpy()), wanted)
        places = torch.from_numpy(places)  # -1 where there is none
        rows = self.items[places.clamp(min=0)]  # (histories, found, hidden)
        scores = torch.einsum("bh,bfh->bf", states, rows)
        scores, chosen = scores.masked_fill(places < 0, -torch.inf).topk(k)
        ids = places.gather(1, chosen) + FIRST_ITEM_ID
        return ids.masked_fill(scores == -torch.inf, 0), scores
