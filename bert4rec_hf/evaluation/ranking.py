"""From scores to the rank of the target and to the best items, in chunks of the catalog.

Memory is bounded by (batch, chunk), however large the catalog. Ranking the target among a few drawn
items instead of the whole catalog is known to reorder models (Krichene and Rendle, 2020, KDD); it
is here to compare with papers that did it, and only by explicit choice.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

FIRST_ITEM_ID = 2
"""Ids below it, padding and mask, are never candidates."""

TIE_TOLERANCE = 2.0**-20
"""Scores closer than this share of a history's largest absolute score count as equal.

A matrix product rounds the same dot product differently depending on where in the batch and in the
chunk it stands, by a few units of float32's last place (2**-23). Without a tolerance two identical
items would tie in one batch and not in another.
"""


class Scorer(Protocol):
    """Anything that scores the items of a catalog for a batch of histories: model or baseline."""

    vocab_size: int
    """Number of ids; items are those from FIRST_ITEM_ID to vocab_size - 1."""

    def encode(self, histories: Sequence[np.ndarray]) -> Any:
        """Whatever score() needs of these histories: ids, oldest first, in full length."""

    def score(self, encoded: Any, start: int, stop: int) -> Tensor:
        """(batch, stop - start) finite float32 scores of the items with ids start to stop - 1."""


class CatalogScores:
    """The scores of one batch, iterated over in chunks of the catalog as often as needed.

    The scores are computed anew each time, unless the catalog is a single chunk, which is kept.
    """

    def __init__(self, scorer: Scorer, encoded: Any, chunk_size: int):
        self.scorer, self.encoded, self.chunk_size = scorer, encoded, chunk_size
        self.num_items = scorer.vocab_size - FIRST_ITEM_ID
        self.only_chunk: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the first id of each chunk and its (batch, chunk) scores."""
        if self.only_chunk is not None:
            yield FIRST_ITEM_ID, self.only_chunk
            return
        for start in range(FIRST_ITEM_ID, self.scorer.vocab_size, self.chunk_size):
            stop = min(start + self.chunk_size, self.scorer.vocab_size)
            scores = self.scorer.score(self.encoded, start, stop)
            if stop - start == self.num_items:
                self.only_chunk = scores
            yield start, scores


class ItemSets(NamedTuple):
    """A set of items per history of a batch, as pairs of row and id; each pair once."""

    rows: np.ndarray
    ids: np.ndarray

    def inside(self, start: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns, within the chunk of scores that begins at start, of these items."""
        chosen = (self.ids >= start) & (self.ids < start + scores.shape[1])
        place = np.stack([self.rows[chosen], self.ids[chosen] - start])
        rows, columns = torch.as_tensor(place, device=scores.device)
        return rows, columns


def item_sets(items: Sequence[np.ndarray], keep: np.ndarray | None = None) -> ItemSets:
    """Collect the items of each history, repetitions dropped.

    Args:
        items: One array of ids per history.
        keep: (batch,) one id per history that is left out of its set, though it may be in it.
    """
    lengths = [len(ids) for ids in items]
    rows = np.repeat(np.arange(len(items), dtype=np.int64), lengths)
    ids = np.concatenate(items).astype(np.int64)
    if keep is not None:
        others = ids != np.repeat(keep, lengths)
        rows, ids = rows[others], ids[others]
    base = ids.max(initial=0) + 1
    return ItemSets(*np.divmod(np.unique(rows * base + ids), base))


def gather_scores(chunks: CatalogScores, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Look up the scores of a few items per history.

    Args:
        chunks: Scores of the batch.
        ids: (batch, candidates)

    Returns:
        (batch, candidates) scores, and (batch, 1) by how much two of them may differ and still
        count as equal.

    Raises:
        ValueError: A score is not finite.
    """
    gathered, scale = torch.zeros(ids.shape), torch.zeros(len(ids), 1)
    for start, scores in chunks:
        ids, gathered, scale = (each.to(scores.device) for each in (ids, gathered, scale))
        largest = torch.maximum(scores.amax(dim=1), -scores.amin(dim=1))
        if not largest.isfinite().all():
            row = largest.isfinite().logical_not().nonzero()[0].item()
            raise ValueError(
                f"history {row} of the batch has a score of {largest[row].item()} among the items "
                f"{start} to {start + scores.shape[1] - 1}; scores must be finite numbers: did "
                "training diverge?"
            )
        columns = ids - start
        inside = (columns >= 0) & (columns < scores.shape[1])
        found = scores.gather(1, columns.clamp(0, scores.shape[1] - 1))
        gathered = torch.where(inside, found, gathered)
        scale = torch.maximum(scale, largest.unsqueeze(1))
    return gathered, scale * TIE_TOLERANCE


def rank_targets(chunks: CatalogScores, targets: Tensor, excluded: ItemSets | None) -> Tensor:
    """Rank each target among the catalog; 1 is best, and ties count against the model.

    A model that gives every item the same score thus ranks every target last, not first.

    Args:
        chunks: Scores of the batch.
        targets: (batch,) id of the held-out item.
        excluded: Items that are not candidates; must not contain the target.

    Returns:
        (batch,) 1 + number of other candidates that score at least as high as the target.
    """
    target_scores, tolerance = gather_scores(chunks, targets.unsqueeze(1))
    thresholds = target_scores - tolerance  # (batch, 1)
    ranks = torch.zeros(len(targets), dtype=torch.int64, device=thresholds.device)
    for start, scores in chunks:
        ranks += (scores >= thresholds).sum(dim=1)  # the target itself is the 1 a rank begins with
        if excluded is not None:
            rows, columns = excluded.inside(start, scores)
            counted = scores[rows, columns] >= thresholds[rows, 0]
            ranks.index_add_(0, rows, counted.long(), alpha=-1)
    return ranks


def rank_among(chunks: CatalogScores, targets: Tensor, negatives: Tensor) -> Tensor:
    """Rank each target among the negatives drawn for it; ties count against the model.

    Args:
        chunks: Scores of the batch.
        targets: (batch,) id of the held-out item.
        negatives: (batch, negatives) ids of the other candidates.

    Returns:
        (batch,) ranks from 1.
    """
    candidates = torch.cat([targets.unsqueeze(1), negatives], dim=1)
    scores, tolerance = gather_scores(chunks, candidates)
    return 1 + (scores[:, 1:] >= scores[:, :1] - tolerance).sum(dim=1)


def draw_negatives(
    popularity: np.ndarray, unwanted: np.ndarray, num_negatives: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw items for one history, without replacement, in proportion to their popularity.

    The items that ring first, each with its popularity as the rate, are such a draw.

    Args:
        popularity: (vocab,) interactions of each item in the training split.
        unwanted: Ids that must not be drawn: the history and the target.
        num_negatives: How many to draw.
        generator: Source of randomness.

    Returns:
        (negatives,) ids.

    Raises:
        ValueError: Fewer than num_negatives items can be drawn.
    """
    rates = popularity.astype(np.float64)
    rates[unwanted] = 0
    rates[:FIRST_ITEM_ID] = 0
    items = rates.nonzero()[0]
    if len(items) < num_negatives:
        raise ValueError(
            f"num_negatives is {num_negatives}, but only {len(items)} items of the training split "
            "are unseen by one of the users; lower it or use candidates: full"
        )
    times = generator.standard_exponential(len(items)) / rates[items]
    return items[np.argsort(times)[:num_negatives]]


def top_items(
    chunks: CatalogScores, k: int, excluded: ItemSets | None = None
) -> tuple[Tensor, Tensor]:
    """Find the best items of each history, best first.

    Args:
        chunks: Scores of the batch.
        k: How many; fewer come back if the catalog is smaller.
        excluded: Items that are not candidates.

    Returns:
        (batch, k) ids and (batch, k) scores; id 0 and score -inf where candidates ran out.

    Raises:
        ValueError: A score is not a number.
    """
    best_ids, best_scores = None, None
    for start, scores in chunks:
        if excluded is not None:
            scores = scores.index_put(excluded.inside(start, scores), scores.new_tensor(-torch.inf))
        top_scores, columns = scores.topk(min(k, scores.shape[1]))
        top_ids = columns + start
        if best_ids is not None:
            top_scores, top_ids = (
                torch.cat([best_scores, top_scores], 1),
                torch.cat([best_ids, top_ids], 1),
            )
            top_scores, columns = top_scores.topk(min(k, top_scores.shape[1]))
            top_ids = top_ids.gather(1, columns)
        best_ids, best_scores = top_ids, top_scores
    if best_scores.isnan().any():
        raise ValueError(
            "a score is not a number, so there are no best items; did training diverge?"
        )
    return best_ids.masked_fill(best_scores == -torch.inf, 0), best_scores
