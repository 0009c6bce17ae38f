"""A scorer over held-out histories, on any number of processes, to metrics with their protocol."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from .collapse import SHOWN, Variety
from .kept_ranks import KeptShare
from .metrics import count_ranks, intervals_of_counts, metrics_of_counts
from .ranking import (
    FIRST_ITEM_ID,
    TIE_TOLERANCE,
    Scorer,
)
from .repeats import SEEN_TARGETS, describe_repeats, miss_repeats
from .share import Share, add_up
from .shared_ranking import count_items, rank_share, share_rows, split_rows
from .target_sets import measure_target_sets

POPULARITY_GROUPS = (0, 1, 10, 100, 1_000, 10_000)
"""Lower ends of the groups of targets that are reported apart, in interactions in training."""

LENGTH_GROUPS = (0, 5, 10, 20, 50, 100, 200)
"""Lower ends of the groups of histories that are reported apart, in items before the target."""


@strict
@dataclass(kw_only=True)
class EvaluationConfig:
    """The protocol: which items a target is ranked among, and what is measured of its rank."""

    ks: list[int]
    """How many of the first places count; every metric is given at each of them."""

    candidates: str = "full"
    """`full`: the whole catalog. `sampled`: num_negatives items drawn by popularity among the
    unseen ones, as in the first papers; not comparable with full ranking, and marked as such."""

    num_negatives: int = 100
    """Drawn per history, without replacement; only for sampled candidates."""

    exclude_seen: bool = True
    """Whether the items of the whole history are left out of the ranking."""

    seen_targets: str = "missed"
    """What a target comes to that repeats an item of a history whose items are left out: `missed`,
    as nobody would be shown it, or `ranked` all the same. Both conventions are in use."""

    batch_size: int = 256
    """Histories per process read at once."""

    chunk_size: int = 262_144
    """Items whose scores are held at once, for 256 histories; a larger catalog is scored in chunks
    and not held, but scored twice."""

    num_bootstrap_samples: int = 1_000
    """Times the users are drawn anew for the confidence intervals."""

    seed: int = 0
    """Of the negatives and of the confidence intervals."""

    def validate_ks(self) -> None:
        if not self.ks or min(self.ks) < 1 or len(set(self.ks)) < len(self.ks):
            raise ValueError(f"ks must be different numbers from 1, such as [5, 10], got {self.ks}")

    def validate_candidates(self) -> None:
        if self.candidates not in ("full", "sampled"):
            raise ValueError(f"candidates must be full or sampled, got {self.candidates!r}")
        if self.candidates == "sampled" and not self.exclude_seen:
            raise ValueError(
                "candidates: sampled draws unseen items only, so exclude_seen must be true, "
                "got false"
            )

    def validate_seen_targets(self) -> None:
        if self.seen_targets not in SEEN_TARGETS:
            raise ValueError(
                f"seen_targets must be one of {', '.join(SEEN_TARGETS)}, got {self.seen_targets!r}"
            )

    @property
    def misses_repeats(self) -> bool:
        """Whether a target that repeats an item of its history is a miss."""
        return self.exclude_seen and self.seen_targets == "missed"

    def validate_sizes(self) -> None:
        for name in ("num_negatives", "batch_size", "chunk_size", "num_bootstrap_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(kw_only=True)
class Evaluation:
    """What was measured on one split, and under which protocol."""

    metrics: dict[str, float]
    """`hit_rate@k`, `ndcg@k`, `mrr@k` and `coverage@k`."""

    intervals: dict[str, list[float]]
    """Lower and upper end of the 95 % confidence interval of every metric but coverage."""

    by_popularity: dict[str, dict[str, float]]
    """The metrics and the number of histories, by popularity of the target."""

    by_length: dict[str, dict[str, float]]
    """The metrics and the number of histories, by length of the history."""

    seen_targets: dict[str, Any]
    """How many targets repeat an item of their history, and what they change, see
    `describe_repeats`."""

    variety: Variety
    """How many different items are recommended, and whether that is a collapse."""

    protocol: dict[str, Any]
    """Everything needed to measure the same again."""

    target_sets: dict[str, float]
    """`recall@k` and `ndcg@k` of all targets of a history, see `measure_target_sets`; empty where a
    split has one target per history, or candidates are sampled."""

    share: Share
    """The ranks that this process has found out itself."""

    @property
    def ranks(self) -> Tensor:
        """(histories,) rank of each target, in the order of the split; all must ask together."""
        return self.share.gather()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the ranks, ready for JSON."""
        fields = {key: value for key, value in vars(self).items() if key != "share"}
        return fields | {"variety": self.variety.to_dict()}


def evaluate(
    scorer: Scorer,
    histories: Sequence[np.ndarray],
    targets: np.ndarray,
    config: EvaluationConfig,
    popularity: np.ndarray | None = None,
) -> dict[str, float]:
    """Measure just the metrics, as often as training wants to know them.

    Takes the arguments of rank_histories.

    Returns:
        Values by name, as in `{"ndcg@10": 0.1234}`.
    """
    share = rank_share(scorer, histories, targets, config, popularity)
    return metrics_of_counts(add_up(count_ranks(share.ranks, config.ks)), config.ks)


def evaluate_with_variety(
    scorer: Scorer,
    histories: Sequence[np.ndarray],
    targets: np.ndarray,
    config: EvaluationConfig,
    popularity: np.ndarray | None = None,
) -> tuple[dict[str, float], Variety]:
    """Measure the metrics, and how many different items are recommended, in the same pass.

    Takes the arguments of rank_histories.

    Returns:
        Values by name, coverage among them, and what they say of a collapse.
    """
    share = rank_share(scorer, histories, targets, config, popularity, (SHOWN,))
    metrics = metrics_of_counts(add_up(count_ranks(share.ranks, config.ks)), config.ks)
    variety = tell_variety(share, scorer)
    return metrics | variety.to_metrics(), variety


def tell_variety(share: Share, scorer: Scorer) -> Variety:
    """Say how many different items were recommended by a scorer, SHOWN places looked at."""
    num_items = scorer.vocab_size - FIRST_ITEM_ID
    return Variety(share.distinct[SHOWN], share.distinct["targets"], num_items)


def evaluate_in_detail(
    scorer: Scorer,
    histories: Sequence[np.ndarray],
    targets: np.ndarray,
    config: EvaluationConfig,
    popularity: np.ndarray,
    kept: KeptShare | None = None,
) -> Evaluation:
    """Measure all there is to report: metrics, their intervals, coverage and breakdowns.

    Takes the arguments of rank_histories, and

        kept: Where ranks are kept, to go on after a kill.
    """
    ks, num_items = config.ks, scorer.vocab_size - FIRST_ITEM_ID
    depths = tuple(dict.fromkeys((*ks, SHOWN)))
    share = rank_share(scorer, histories, targets, config, popularity, depths, kept)
    counts = add_up(count_ranks(share.ranks, ks))
    shown = {f"coverage@{k}": share.distinct[k] / num_items for k in ks}
    frequencies, lengths = popularity[targets[share.rows]], count_items(histories, share.rows)
    missed = miss_repeats(share.ranked, share.repeats, num_items, ks)
    return Evaluation(
        metrics=metrics_of_counts(counts, ks) | shown,
        intervals=intervals_of_counts(
            counts, ks, num_samples=config.num_bootstrap_samples, seed=config.seed
        ),
        by_popularity=_break_down(share.ranks, frequencies, POPULARITY_GROUPS, ks),
        by_length=_break_down(share.ranks, lengths, LENGTH_GROUPS, ks),
        seen_targets=describe_repeats(
            share.ranked, missed if config.exclude_seen else None, share.repeats, ks
        ),
        variety=tell_variety(share, scorer),
        protocol=describe_protocol(config, num_items, len(histories)),
        target_sets=_measure_sets(scorer, histories, config),
        share=share,
    )


def _measure_sets(
    scorer: Scorer, histories: Sequence[np.ndarray], config: EvaluationConfig
) -> dict[str, float]:
    """Measure all targets of each history, where histories know them."""
    sets = getattr(histories, "target_sets", None)
    if sets is None or config.candidates == "sampled":
        return {}
    batches = split_rows(share_rows(histories), len(histories), config.batch_size)
    own = (rows[:num_own] for rows, num_own in batches if num_own > 0)
    return measure_target_sets(scorer, histories, sets, config, own)


def describe_protocol(
    config: EvaluationConfig, num_items: int, num_histories: int
) -> dict[str, Any]:
    """State everything a result depends on besides the scores, to be printed next to it."""
    is_sampled = config.candidates == "sampled"
    return {
        "candidates": config.candidates,
        "is_sampled": is_sampled,
        "num_candidates": 1 + config.num_negatives if is_sampled else num_items,
        "num_items": num_items,
        "num_histories": num_histories,
        "exclude_seen": config.exclude_seen,
        "seen_targets": "missed" if config.misses_repeats else "ranked",
        "ties": f"against the model, within {TIE_TOLERANCE:.2g} of the largest absolute score",
        "ks": config.ks,
        "num_bootstrap_samples": config.num_bootstrap_samples,
        "seed": config.seed,
    }


def _break_down(
    ranks: Tensor, values: np.ndarray, lower_ends: Sequence[int], ks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Compute the metrics of each group of histories that any process has."""
    groups = dict(_name_groups(values, lower_ends))
    members = (ranks[torch.as_tensor(chosen)] for chosen in groups.values())
    counts = add_up(torch.stack([count_ranks(each, ks) for each in members]))
    return {
        name: {"num_histories": each.sum().item()} | metrics_of_counts(each, ks)
        for name, each in zip(groups, counts, strict=True)
        if each.any()
    }


def split_groups(values: np.ndarray, lower_ends: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Group histories by a value of each, between one lower end and the next.

    Returns:
        Name and (histories,) members of each group that has any.
    """
    return ((name, chosen) for name, chosen in _name_groups(values, lower_ends) if chosen.any())


def _name_groups(values: np.ndarray, lower_ends: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    for lower, upper in pairwise([*lower_ends, np.inf]):
        span = f"{lower}+" if upper == np.inf else f"{lower}-{upper - 1}"
        yield "0" if upper == 1 else span, (values >= lower) & (values < upper)
