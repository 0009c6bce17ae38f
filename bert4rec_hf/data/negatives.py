"""Wrong answers for the sampled objectives; every draw is a function of one number."""

import numpy as np
import torch
from torch import Tensor

from .vocabulary import FIRST_ITEM_ID

DISTRIBUTIONS = ("uniform", "popularity", "mixed")

MAX_BATCH_SHARE = 0.5
"""Of the negatives of a mixture, how many are targets of the same batch, at most."""


def uniform_draws(keys: np.ndarray, counters: np.ndarray | int) -> np.ndarray:
    """Hash keys and counters to numbers in [0, 1): the same pair always draws the same number.

    The mixing steps are those of SplitMix64 (Steele, Lea and Flood, 2014,
    https://doi.org/10.1145/2660193.2660195).

    Args:
        keys: (draws,) uint64, one per masked view.
        counters: (draws,) which draw of its view this is, from 0; or the same for all.

    Returns:
        (draws,) float64
    """
    mixed = np.atleast_1d(counters).astype(np.uint64)
    mixed += np.uint64(1)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed = mixed + keys
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)) * 2.0**-53


class NegativeSampler:
    """Draws items as wrong answers, and says how often each was expected among them.

    - `uniform`: every item is drawn as often as every other.
    - `popularity`: in proportion to the interactions.
    - `mixed`: targets of the same batch, which are there in proportion to their popularity, make
      up to a half, and the rest is uniform (Yang et al., 2020,
      https://doi.org/10.1145/3366424.3386195). Popular items, which are targets at every step, are
      then wrong answers at every step, too; and rare ones, which are in hardly any batch, are not
      forgotten.

    Args:
        popularity: (vocab,) interactions of each item in the training split. Items without any
            count as one, as each could be a target.
        num_negatives: Items per draw.
        distribution: One of DISTRIBUTIONS.

    Raises:
        ValueError: The distribution is unknown, or fewer than one negative is asked for.
    """

    def __init__(self, popularity: np.ndarray, num_negatives: int, distribution: str):
        if distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"negative_distribution must be one of {', '.join(DISTRIBUTIONS)}, "
                f"got {distribution!r}"
            )
        if num_negatives < 1:
            raise ValueError(f"num_negatives must be at least 1, got {num_negatives}")
        counts = np.maximum(popularity[FIRST_ITEM_ID:], 1).astype(np.int64)
        self.num_negatives = num_negatives
        self.takes_targets = distribution == "mixed"
        self.shares = counts / counts.sum()
        self.cumulative = np.cumsum(counts) if distribution == "popularity" else None

    def draw(self, key: np.uint64, targets: np.ndarray) -> dict[str, Tensor]:
        """Draw the negatives that belong to a key.

        Args:
            key: Of the batch.
            targets: (masked,) ids that the batch asks for, of which a mixture takes some.

        Returns:
            `negatives` (negatives,) ids and `negative_log_counts` (negatives,), the logarithm of
            how often each was expected.
        """
        taken = self._take_targets(key, targets)
        num_drawn = self.num_negatives - len(taken)
        # Counters beyond those of any view, as a key may be a view's.
        counters = np.arange(num_drawn) + 2**32
        draws = uniform_draws(np.full(num_drawn, key), counters)
        num_items = len(self.shares)
        if self.cumulative is None:
            columns = (draws * num_items).astype(np.int64)
            columns = np.concatenate([taken - FIRST_ITEM_ID, columns])
            # A masked item's own target is no negative of it, so only the others' count.
            of_others = len(taken) * (1 - 1 / len(targets)) if len(taken) else 0
            expected = num_drawn / num_items + of_others * self.shares[columns]
        else:
            places = (draws * self.cumulative[-1]).astype(np.int64)
            columns = np.searchsorted(self.cumulative, places, side="right")
            expected = num_drawn * self.shares[columns]
        return {
            "negatives": torch.from_numpy(columns + FIRST_ITEM_ID),
            "negative_log_counts": torch.from_numpy(np.log(expected).astype(np.float32)),
        }

    def _take_targets(self, key: np.uint64, targets: np.ndarray) -> np.ndarray:
        """(taken,) targets of the batch that are negatives: all, or so many drawn at random."""
        if not self.takes_targets:
            return np.empty(0, dtype=np.int64)
        draws = uniform_draws(np.full(len(targets), key), np.arange(len(targets)) + 2**33)
        return targets[np.argsort(draws)[: int(self.num_negatives * MAX_BATCH_SHARE)]]
