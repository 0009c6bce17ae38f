"""Wrong answers for the sampled objectives; every draw is a function of one number."""

import numpy as np
import torch
from torch import Tensor

from .vocabulary import FIRST_ITEM_ID

DISTRIBUTIONS = ("uniform", "popularity")


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
    """Draws items with replacement, uniformly or in proportion to their popularity.

    Args:
        popularity: (vocab,) interactions of each item in the training split. Items without any
            count as one, as each could be a target.
        num_negatives: Items per draw.
        distribution: `uniform` or `popularity`.

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
        if distribution == "uniform":
            counts = np.ones_like(counts)
        self.num_negatives = num_negatives
        self.cumulative = np.cumsum(counts)
        expected = counts / counts.sum() * num_negatives
        self.log_counts = np.log(expected).astype(np.float32)

    def draw(self, key: np.uint64) -> dict[str, Tensor]:
        """Draw the negatives that belong to a key.

        Returns:
            `negatives` (negatives,) ids and `negative_log_counts` (negatives,), the logarithm of
            how often each was expected.
        """
        # Counters beyond those of any view, as a key may be a view's.
        counters = np.arange(self.num_negatives) + 2**32
        draws = uniform_draws(np.full(self.num_negatives, key), counters)
        places = (draws * self.cumulative[-1]).astype(np.int64)
        columns = np.searchsorted(self.cumulative, places, side="right")
        return {
            "negatives": torch.from_numpy(columns + FIRST_ITEM_ID),
            "negative_log_counts": torch.from_numpy(self.log_counts[columns]),
        }
