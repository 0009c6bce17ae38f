"""From scores to the rank of the target and to the best items, in chunks of the catalog.

A chunk of ITEMS_AT_ONCE items for a run of HISTORIES_AT_ONCE histories is scored by one matrix
product, in which most of the time goes, and read while it is still in the cache.

Ranking the target among a few drawn items instead of the whole catalog is known to reorder models
(Krichene and Rendle, 2020, KDD); it is here to compare with papers that did it, and only by
explicit choice.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FIRST_ITEM_ID = 2
"""Ids below it, padding and mask, are never candidates."""

HISTORIES_AT_ONCE = 256
"""Rows of the matrix product; fewer cost more each, more only take memory."""

ITEMS_AT_ONCE = 8_192
"""Columns of the matrix product; more do not fit into a processor's cache."""

GROUP_SIZE = 64
"""Neighboring items that are first compared by the best of them, in search of the best of all."""

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
        """Whatever score() needs of these histories: ids, oldest first, in full length.

        A slice of it is the encoding of those histories.
        """

    def score(self, encoded: Any, start: int, stop: int) -> Tensor:
        """(batch, stop - start) finite float32 scores of the items with ids start to stop - 1."""


class CatalogScores:
    """The scores of a batch, iterated over in chunks of the catalog as often as needed.

    They are computed anew each time unless there is a place to keep them. Handed from batch to
    batch, that place costs the system no new memory: each chunk moves in where one moves out.

    Args:
        scorer: Model or baseline.
        encoded: The batch as the scorer encoded it.
        chunk_size: Items scored at once, at most; ITEMS_AT_ONCE are enough.
        items_at_once: In place of ITEMS_AT_ONCE, as for a few histories it takes more of them to
            fill the cache, and each product has a cost of its own.
        kept: Where to keep the scores, by first id. What it holds of another batch is replaced;
            that batch cannot be iterated over any more.
    """

    def __init__(
        self,
        scorer: Scorer,
        encoded: Any,
        chunk_size: int = ITEMS_AT_ONCE,
        kept: dict[int, Tensor] | None = None,
        *,
        items_at_once: int = ITEMS_AT_ONCE,
    ):
        self.scorer, self.encoded, self.kept = scorer, encoded, kept
        self.starts = range(FIRST_ITEM_ID, scorer.vocab_size, min(chunk_size, items_at_once))
        self.is_kept = False

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the first id of each chunk and its (batch, chunk) scores."""
        if self.is_kept:
            yield from self.kept.items()
            return
        for start in self.starts:
            scores = self.scorer.score(self.encoded, start, self.stop(start))
            if self.kept is not None:
                self.kept[start] = scores
            yield start, scores
        self.is_kept = self.kept is not None

    def stop(self, start: int) -> int:
        """One past the last id of the chunk that begins at start."""
        return min(start + self.starts.step, self.scorer.vocab_size)


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
    lengths = np.fromiter(map(len, items), dtype=np.int64)
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
    gathered, largest = torch.zeros(ids.shape), []
    for start, scores in chunks:
        ids, gathered = ids.to(scores.device), gathered.to(scores.device)
        columns = ids - start
        inside = (columns >= 0) & (columns < scores.shape[1])
        found = scores.gather(1, columns.clamp(0, scores.shape[1] - 1))
        gathered = torch.where(inside, found, gathered)
        largest.append(torch.maximum(scores.amax(dim=1), -scores.amin(dim=1)))
    largest = torch.stack(largest, dim=1)  # (batch, chunks)
    _check_finite(largest, chunks)
    return gathered, largest.amax(dim=1, keepdim=True) * TIE_TOLERANCE


def _check_finite(largest: Tensor, chunks: CatalogScores) -> None:
    """Name the first history and chunk of which the (batch, chunks) largest score is not finite."""
    is_finite = largest.isfinite()
    if not is_finite.all():
        row, chunk = is_finite.logical_not().nonzero()[0].tolist()
        start = chunks.starts[chunk]
        raise ValueError(
            f"history {row} of the batch has a score of {largest[row, chunk].item()} among the "
            f"items {start} to {chunks.stop(start) - 1}; scores must be finite numbers: did "
            "training diverge?"
        )


def rank_targets(
    chunks: CatalogScores,
    targets: Tensor,
    excluded: ItemSets | None,
    best: "BestItems | None" = None,
) -> Tensor:
    """Rank each target among the catalog; 1 is best, and ties count against the model.

    A model that gives every item the same score thus ranks every target last, not first.

    Args:
        chunks: Scores of the batch.
        targets: (batch,) id of the held-out item.
        excluded: Items that are not candidates; must not contain the target.
        best: What looks for the best items on the way, so that nothing is scored for it.

    Returns:
        (batch,) 1 + number of other candidates that score at least as high as the target.
    """
    target_scores, tolerance = gather_scores(chunks, targets.unsqueeze(1))
    thresholds = target_scores - tolerance  # (batch, 1)
    ranks = torch.zeros(len(targets), dtype=torch.int64, device=thresholds.device)
    # Ones and zeros as floats add up several times faster than truth values, and exactly.
    buffer = thresholds.new_empty(len(targets), chunks.starts.step)
    for start, scores in chunks:
        is_ahead = torch.ge(scores, thresholds, out=buffer[:, : scores.shape[1]])
        if excluded is not None:
            is_ahead[excluded.inside(start, scores)] = 0
        ranks += is_ahead.sum(dim=1).long()
        if best is not None:
            best.add(start, scores)
    return ranks  # the target, ahead of itself, is the 1 that a rank begins with


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
    best = BestItems(k, excluded)
    for start, scores in chunks:
        best.add(start, scores)
    return best.found()


class BestItems:
    """The best items of each history so far, while the scores of the catalog go by.

    Once there are some, nearly all chunks hold nothing better for nearly all histories, and to see
    that costs one look for the largest score.

    Args:
        k: How many to keep.
        excluded: Items that are not candidates.
    """

    def __init__(self, k: int, excluded: ItemSets | None = None):
        self.k, self.excluded = k, excluded
        self.ids: Tensor | None = None
        self.scores: Tensor | None = None

    def add(self, start: int, scores: Tensor) -> None:
        """Look at the (batch, chunk) scores of the items from start on, and leave them as is."""
        rows = self._rows_with_better(scores)
        if not len(rows):
            return
        top_scores, columns = _top_columns(self._without_excluded(start, scores, rows), self.k)
        top_ids = columns + start
        if self.scores is None:
            self.ids, self.scores = top_ids, top_scores
            return
        top_scores = torch.cat([self.scores[rows], top_scores], dim=1)
        top_ids = torch.cat([self.ids[rows], top_ids], dim=1)
        top_scores, columns = top_scores.topk(min(self.k, top_scores.shape[1]))
        top_ids = top_ids.gather(1, columns)
        if len(rows) == len(self.scores):
            self.ids, self.scores = top_ids, top_scores
        else:
            self.ids[rows], self.scores[rows] = top_ids, top_scores

    def found(self) -> tuple[Tensor, Tensor]:
        """(batch, k) ids and scores as `top_items` returns them.

        Raises:
            ValueError: A score is not a number.
        """
        if self.scores.isnan().any():
            raise ValueError(
                "a score is not a number, so there are no best items; did training diverge?"
            )
        return self.ids.masked_fill(self.scores == -torch.inf, 0), self.scores

    def _rows_with_better(self, scores: Tensor) -> Tensor:
        """(rows,) histories of which a chunk may hold a better item, or what is not a number."""
        if self.scores is None or self.scores.shape[1] < self.k:
            return torch.arange(len(scores), device=scores.device)
        is_worse = scores.amax(dim=1) <= self.scores[:, -1]
        return is_worse.logical_not().nonzero().squeeze(1)

    def _without_excluded(self, start: int, scores: Tensor, rows: Tensor) -> Tensor:
        """(rows, chunk) scores of some histories, -inf for items that are no candidates."""
        chosen = scores if len(rows) == len(scores) else scores[rows]
        if self.excluded is None:
            return chosen
        of_rows, columns = self.excluded.inside(start, scores)
        places = torch.full((len(scores),), -1, device=scores.device)
        places[rows] = torch.arange(len(rows), device=scores.device)
        is_chosen = places[of_rows] >= 0
        place = places[of_rows[is_chosen]], columns[is_chosen]
        return chosen.index_put(place, scores.new_tensor(-torch.inf))


def _top_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k largest scores of each row, largest first, and their columns.

    They stand in the k groups with the largest maxima, so that few scores need sorting.
    """
    width = scores.shape[1]
    num_groups = math.ceil(width / GROUP_SIZE)
    if num_groups <= k:
        return scores.topk(min(k, width))
    if width % GROUP_SIZE:
        scores = F.pad(scores, (0, num_groups * GROUP_SIZE - width), value=-torch.inf)
    groups = scores.reshape(-1, GROUP_SIZE)  # (batch * groups, GROUP_SIZE)
    chosen = groups.amax(dim=1).view(-1, num_groups).topk(k).indices  # (batch, k)
    first_groups = torch.arange(0, len(groups), num_groups, device=chosen.device).unsqueeze(1)
    members = groups.index_select(0, (chosen + first_groups).flatten())
    top_scores, places = members.view(len(scores), -1).topk(k)
    columns = chosen.gather(1, places // GROUP_SIZE) * GROUP_SIZE + places % GROUP_SIZE
    return top_scores, columns
