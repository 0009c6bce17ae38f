"""Whether one model is better than another, or the users and seeds just fell that way."""

from typing import Any, NamedTuple

import numpy as np
import torch

from .evaluator import EvaluationConfig
from .metrics import METRICS, user_gains
from .share import Share, add_up

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
    first: np.ndarray,
    second: np.ndarray,
    *,
    counts: np.ndarray | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
) -> list[PairedDifference]:
    """Compare two models on the same users, by drawing users and seeds anew.

    In each sample both have the same users, drawn with replacement; and each has seeds drawn from
    its own, so that luck with seeds counts as luck. With one seed each, only users are drawn.

    >>> paired_bootstrap(np.ones((1, 1, 64)), np.zeros((1, 1, 64)), num_samples=100)
    [PairedDifference(difference=1.0, interval=(1.0, 1.0), p_value=0.01)]

    Args:
        first: (metrics, seeds, histories) what each history adds to a metric, see `user_gains`.
        second: (metrics, seeds, histories) of the other; the number of seeds may differ.
        counts: (histories,) how many users each of these histories stands for; one when None.
        num_samples: Times everything is drawn anew.
        seed: Of the drawing.

    Returns:
        One difference per metric.

    Raises:
        ValueError: The histories are not the same number.
    """
    if first.shape[2] != second.shape[2]:
        raise ValueError(
            "a paired comparison needs the same histories for both, got "
            f"{first.shape[2]} and {second.shape[2]}"
        )
    generator = np.random.default_rng(seed)
    counts = np.ones(first.shape[2], dtype=np.int64) if counts is None else counts
    num_users = counts.sum()
    shares = counts / num_users
    at_once = max(1, COUNTS_AT_ONCE // len(counts))
    parts = []
    for start in range(0, num_samples, at_once):
        size = min(at_once, num_samples - start)
        users = generator.multinomial(num_users, shares, size=size) / num_users
        means = []
        for gains in (first, second):
            num_seeds = gains.shape[1]
            even = np.full(num_seeds, 1 / num_seeds)
            seeds = generator.multinomial(num_seeds, even, size=size) / num_seeds
            by_seed = gains @ users.T  # (metrics, seeds, samples)
            means.append((by_seed * seeds.T).sum(axis=1))
        parts.append(means[0] - means[1])
    samples = np.concatenate(parts, axis=1)
    differences = ((first.mean(axis=1) - second.mean(axis=1)) * shares).sum(axis=1)
    return [_judge(*pair) for pair in zip(differences, samples, strict=True)]


def _judge(difference: float, samples: np.ndarray) -> PairedDifference:
    tail = min((samples <= 0).mean(), (samples >= 0).mean())
    low, high = np.quantile(samples, [0.025, 0.975]).tolist()
    p_value = float(min(1.0, max(2 * tail, 1 / len(samples))))
    return PairedDifference(float(difference), (low, high), p_value)


def find_differences(
    ranks: np.ndarray, others: np.ndarray, config: EvaluationConfig
) -> dict[str, dict[str, Any]]:
    """Test what one model has more of each metric than another, on the same histories.

    Args:
        ranks: (seeds, histories)
        others: (seeds, histories) of the other.
        config: The metrics, and how often users are drawn.

    Returns:
        By `name@k`, the fields of PairedDifference.
    """
    return _find(ranks, others, None, config)


def find_differences_of_shares(
    share: Share, other: Share, config: EvaluationConfig
) -> dict[str, dict[str, Any]]:
    """Test likewise what processes have ranked in shares, which must be of the same histories.

    Drawing users is drawing how many of them have each pair of ranks, so that these are counted.
    """
    last = max(config.ks) + 1
    ranks, others = (each.ranks.clamp(max=last) - 1 for each in (share, other))
    counts = add_up(torch.bincount(last * ranks + others, minlength=last**2))
    pairs = counts.nonzero().squeeze(1)
    ranks, others = (each[None].numpy() + 1 for each in (pairs // last, pairs % last))
    return _find(ranks, others, counts[pairs].numpy(), config)


def _find(
    ranks: np.ndarray, others: np.ndarray, counts: np.ndarray | None, config: EvaluationConfig
) -> dict[str, dict[str, Any]]:
    metrics = [(name, k) for name in METRICS for k in config.ks]
    gains = (
        np.stack([user_gains(torch.as_tensor(each), name, k) for name, k in metrics])
        for each in (ranks, others)
    )
    num_samples = 10 * config.num_bootstrap_samples
    found = paired_bootstrap(*gains, counts=counts, num_samples=num_samples, seed=config.seed)
    return {
        f"{name}@{k}": difference._asdict()
        for (name, k), difference in zip(metrics, found, strict=True)
    }
