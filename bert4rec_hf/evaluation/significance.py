"""Whether one model is better than another, or the users and seeds just fell that way."""

from typing import NamedTuple

import numpy as np

COUNTS_AT_ONCE = 2**25
"""Numbers drawn and held at once: samples times users."""


class PairedDifference(NamedTuple):
    """How much more of a metric one has than the other."""

    difference: float
    interval: tuple[float, float]
    """The 95 % confidence interval."""

    p_value: float
    """Two-sided, of no difference; not below one over the number of samples."""


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, *, num_samples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Compare two models on the same users, by drawing users and seeds anew.

    In each sample both have the same users, drawn with replacement; and each has seeds drawn from
    its own, so that luck with seeds counts as luck. With one seed each, only users are drawn.

    >>> paired_bootstrap(np.ones((1, 64)), np.zeros((1, 64)), num_samples=100)
    PairedDifference(difference=1.0, interval=(1.0, 1.0), p_value=0.01)

    Args:
        first: (seeds, histories) what each history adds to the metric, see `user_gains`.
        second: (seeds, histories) of the other; the number of seeds may differ.
        num_samples: Times everything is drawn anew.
        seed: Of the drawing.

    Raises:
        ValueError: The histories are not the same number.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            "a paired comparison needs the same histories for both, got "
            f"{first.shape[1]} and {second.shape[1]}"
        )
    generator = np.random.default_rng(seed)
    num_users = first.shape[1]
    shares = np.full(num_users, 1 / num_users)
    at_once = max(1, COUNTS_AT_ONCE // num_users)
    differences = []
    for start in range(0, num_samples, at_once):
        size = min(at_once, num_samples - start)
        users = generator.multinomial(num_users, shares, size=size) / num_users
        means = [
            (users @ gains.T * _draw_seeds(len(gains), size, generator)).sum(axis=1)
            for gains in (first, second)
        ]
        differences.append(means[0] - means[1])
    samples = np.concatenate(differences)
    tail = min((samples <= 0).mean(), (samples >= 0).mean())
    low, high = np.quantile(samples, [0.025, 0.975]).tolist()
    return PairedDifference(
        difference=float(first.mean() - second.mean()),
        interval=(low, high),
        p_value=float(min(1.0, max(2 * tail, 1 / num_samples))),
    )


def _draw_seeds(num_seeds: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """(size, seeds) share of each seed in each sample."""
    return generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size) / num_seeds
