"""Items drawn by popularity, for rankings among a few candidates."""

from collections.abc import Sequence

import numpy as np

from .ranking import FIRST_ITEM_ID


class CandidateSampler:
    """Draws unseen items in proportion to their popularity, without replacement.

    What a history draws follows from the seed and its row, whatever batch it is in.

    Args:
        popularity: (vocab,) interactions of each item in the training split.
        num_negatives: How many to draw per history.
        seed: Of the drawing.
    """

    def __init__(self, popularity: np.ndarray, num_negatives: int, seed: int):
        self.popularity = popularity.astype(np.int64)
        self.popularity[:FIRST_ITEM_ID] = 0
        self.cumulative = self.popularity.cumsum()
        self.num_items = np.count_nonzero(self.popularity)
        self.num_negatives, self.seed = num_negatives, seed

    def draw(
        self, rows: np.ndarray, histories: Sequence[np.ndarray], targets: np.ndarray
    ) -> np.ndarray:
        """Draw the negatives of a batch.

        Args:
            rows: (batch,) places of the histories in their split.
            histories: Their ids, which are not drawn.
            targets: (batch,) ids of the held-out items, which are not drawn either.

        Returns:
            (batch, negatives) ids in the order they were drawn.

        Raises:
            ValueError: Fewer than num_negatives items can be drawn.
        """
        unwanted = map(np.append, histories, targets)
        generators = (np.random.default_rng([self.seed, row]) for row in rows)
        return np.stack(list(map(self._draw, unwanted, generators)))

    def _draw(self, unwanted: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw the negatives of one history.

        Drawing with replacement and skipping what is unwanted or was drawn before is drawing
        without replacement. What twice as many draws leave open is drawn among all items left.
        """
        num_left = self.num_items - np.count_nonzero(self.popularity[np.unique(unwanted)])
        if num_left < self.num_negatives:
            raise ValueError(
                f"num_negatives is {self.num_negatives}, but only {num_left} items of the training "
                "split are unseen by one of the users; lower it or use candidates: full"
            )
        places = generator.integers(self.cumulative[-1], size=2 * self.num_negatives)
        ids = np.searchsorted(self.cumulative, places, side="right")
        ids = ids[~np.isin(ids, unwanted)]
        first_draws = np.unique(ids, return_index=True)[1]
        drawn = ids[np.sort(first_draws)][: self.num_negatives]
        missing = self.num_negatives - len(drawn)
        if missing:
            drawn = np.append(drawn, self._race([*unwanted, *drawn], missing, generator))
        return drawn

    def _race(
        self, unwanted: Sequence[int], num_negatives: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Draw those that ring first, each with its popularity as the rate: slow, but it ends."""
        rates = self.popularity.copy()
        rates[unwanted] = 0
        items = rates.nonzero()[0]
        times = generator.standard_exponential(len(items)) / rates[items]
        return items[np.argsort(times)[:num_negatives]]
