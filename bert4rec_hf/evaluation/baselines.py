"""What a model must beat: popularity and neighbors by co-occurrence, with a model's interface.

A baseline is fitted from the histories of the training split, in seconds, and scores as a model
does (`ranking.Scorer`).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from .ranking import Scorer


class PopularityScorer:
    """Scores an item by its popularity, whatever the history."""

    def __init__(self, popularity: np.ndarray):
        self.popularity = torch.as_tensor(popularity, dtype=torch.float32)
        self.vocab_size = len(popularity)

    def encode(self, histories: Sequence[np.ndarray]) -> Tensor:
        return self.popularity.expand(len(histories), -1)

    def score(self, encoded: Tensor, start: int, stop: int) -> Tensor:
        return encoded[:, start:stop]


ITEMS_AT_ONCE = 2**22
"""Interactions that are counted at once."""


class NeighborScorer:
    """Scores an item by its similarity to the newest items of the history.

    An item that is n places older than the newest counts decay ** n as much.

    Args:
        similarity: (vocab, vocab) row: item of the history; column: item to score.
        num_recent: How many of the newest items count.
        decay: Weight of an item relative to the one after it.
    """

    def __init__(self, similarity: sparse.csr_array, *, num_recent: int = 1, decay: float = 1.0):
        self.similarity, self.num_recent, self.decay = similarity, num_recent, decay
        self.vocab_size = similarity.shape[0]

    def encode(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        newest_first = [history[: -self.num_recent - 1 : -1] for history in histories]
        lengths = [len(items) for items in newest_first]
        ages = np.concatenate([np.arange(length) for length in lengths])
        rows = np.repeat(np.arange(len(lengths)), lengths)
        weights = (self.decay**ages).astype(np.float32)
        places = (rows, np.concatenate(newest_first))
        recent = sparse.csr_array((weights, places), shape=(len(lengths), self.vocab_size))
        return recent @ self.similarity  # (batch, vocab), mostly zeros

    def score(self, encoded: sparse.csr_array, start: int, stop: int) -> Tensor:
        return torch.from_numpy(encoded[:, start:stop].toarray())


def count_popularity(histories: Sequence[np.ndarray], vocab_size: int) -> np.ndarray:
    """(vocab,) number of interactions of each item."""
    # Histories of a prepared dataset lie end to end already, and may be more than memory holds.
    items = histories.values if hasattr(histories, "values") else np.concatenate(histories)
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(items), ITEMS_AT_ONCE):
        counts += np.bincount(items[start : start + ITEMS_AT_ONCE], minlength=vocab_size)
    return counts


def count_followers(
    histories: Sequence[np.ndarray], vocab_size: int, distance: int
) -> sparse.csr_array:
    """Count how often one item stands so many places after another; itself not counted.

    Args:
        histories: Ids, oldest first.
        vocab_size: Number of ids.
        distance: Places between the two, 1 for neighbors.

    Returns:
        (vocab, vocab) row: the earlier item; column: the later one.
    """
    items = np.concatenate(histories)
    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    earlier, later = items[:-distance], items[distance:]
    counted = (users[:-distance] == users[distance:]) & (earlier != later)
    ones = np.ones(counted.sum(), dtype=np.float32)
    places = (earlier[counted], later[counted])
    return sparse.coo_array((ones, places), shape=(vocab_size, vocab_size)).tocsr()


def similarity_by_co_occurrence(
    histories: Sequence[np.ndarray], vocab_size: int, max_distance: int
) -> sparse.csr_array:
    """(vocab, vocab) how much items stand together in histories.

    The co-occurrence c(i, j) of two items is the number of times they stand w = 1, 2, … places
    apart, in either order, each time counted 1 / w. With n(i) interactions of an item,

        similarity(i, j) = c(i, j) / sqrt((n(i) + 5) (n(j) + 5))

    is their cosine, shrunk where evidence is thin. No item is similar to itself.
    """
    shrunk_popularity = count_popularity(histories, vocab_size) + 5
    distances = range(1, max_distance + 1)
    followers = sum(count_followers(histories, vocab_size, w) / w for w in distances)
    scale = sparse.diags_array(shrunk_popularity.astype(np.float32) ** -0.5)
    return (scale @ (followers + followers.T) @ scale).tocsr()


def popularity(histories: Sequence[np.ndarray], vocab_size: int) -> PopularityScorer:
    """Recommend what is popular: an item's score is its number of interactions."""
    return PopularityScorer(count_popularity(histories, vocab_size))


def last_item(histories: Sequence[np.ndarray], vocab_size: int) -> NeighborScorer:
    """Recommend what most often came right after the last item."""
    return NeighborScorer(count_followers(histories, vocab_size, distance=1))


def item_knn(histories: Sequence[np.ndarray], vocab_size: int) -> NeighborScorer:
    """Recommend what stood close to the newest items of the history, in the histories of others.

    Close is up to 3 places. The last 10 items of the history count, each 0.7 times as much as the
    one after it.
    """
    similarity = similarity_by_co_occurrence(histories, vocab_size, max_distance=3)
    return NeighborScorer(similarity, num_recent=10, decay=0.7)


BASELINES: dict[str, Callable[[Sequence[np.ndarray], int], Scorer]] = {
    "popularity": popularity,
    "last_item": last_item,
    "item_knn": item_knn,
}
