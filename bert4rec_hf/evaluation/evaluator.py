"""A scorer over held-out histories, on any number of processes, to metrics with their protocol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub.dataclasses import strict
from torch import Tensor

from .metrics import bootstrap_intervals, compute_metrics, coverage
from .ranking import (
    FIRST_ITEM_ID,
    TIE_TOLERANCE,
    CatalogScores,
    Scorer,
    draw_negatives,
    item_sets,
    rank_among,
    rank_targets,
    top_items,
)

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
    """Whether the items of the whole history are left out, the target excepted."""

    batch_size: int = 256
    """Histories per process scored at once."""

    chunk_size: int = 262_144
    """Items scored at once; a larger catalog is scored in chunks, twice."""

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

    protocol: dict[str, Any]
    """Everything needed to measure the same again."""

    ranks: Tensor
    """(histories,) rank of each target, in the order of the split."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the ranks, ready for JSON."""
        return {key: value for key, value in vars(self).items() if key != "ranks"}


class Ranking(NamedTuple):
    """Where the targets stand, and what stands on top."""

    ranks: Tensor
    """(histories,) rank of each target, from 1."""

    top_ids: Tensor
    """(histories, candidates) best items of the whole catalog; 0 where candidates ran out."""


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
    ranks = rank_histories(scorer, histories, targets, config, popularity).ranks
    return compute_metrics(ranks, config.ks)


def evaluate_in_detail(
    scorer: Scorer,
    histories: Sequence[np.ndarray],
    targets: np.ndarray,
    config: EvaluationConfig,
    popularity: np.ndarray,
) -> Evaluation:
    """Measure all there is to report: metrics, their intervals, coverage and breakdowns.

    Takes the arguments of rank_histories.
    """
    num_top, num_items = max(config.ks), scorer.vocab_size - FIRST_ITEM_ID
    ranking = rank_histories(scorer, histories, targets, config, popularity, num_top)
    ranks = ranking.ranks
    shown = {f"coverage@{k}": coverage(ranking.top_ids, k, num_items) for k in config.ks}
    lengths = np.array([len(history) for history in histories])
    return Evaluation(
        metrics=compute_metrics(ranks, config.ks) | shown,
        intervals=bootstrap_intervals(
            ranks, config.ks, num_samples=config.num_bootstrap_samples, seed=config.seed
        ),
        by_popularity=_break_down(ranks, popularity[targets], POPULARITY_GROUPS, config.ks),
        by_length=_break_down(ranks, lengths, LENGTH_GROUPS, config.ks),
        protocol=describe_protocol(config, num_items, len(ranks)),
        ranks=ranks,
    )


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
        "ties": f"against the model, within {TIE_TOLERANCE:.2g} of the largest absolute score",
        "ks": config.ks,
        "num_bootstrap_samples": config.num_bootstrap_samples,
        "seed": config.seed,
    }


@torch.no_grad()
def rank_histories(
    scorer: Scorer,
    histories: Sequence[np.ndarray],
    targets: np.ndarray,
    config: EvaluationConfig,
    popularity: np.ndarray | None = None,
    num_top: int = 0,
) -> Ranking:
    """Rank the target of each history, the work shared by all processes of accelerate.

    Args:
        scorer: Model or baseline.
        histories: Items before the target, oldest first, as arrays of ids.
        targets: (histories,) ids of the held-out items.
        config: The protocol.
        popularity: (vocab,) interactions of each item in the training split; without it there are
            no sampled candidates.
        num_top: How many of the best items to keep per history.

    Returns:
        Ranks and best items in the order of the histories, the same on every process.

    Raises:
        ValueError: There are no histories, or sampled candidates cannot be drawn.
    """
    if config.candidates == "sampled" and popularity is None:
        raise ValueError("candidates: sampled draws by popularity, but no popularity was given")
    targets = np.asarray(targets, dtype=np.int64)

    def rank_batch(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        batch, ids = [histories[row] for row in rows], targets[rows]
        chunks = CatalogScores(scorer, scorer.encode(batch), config.chunk_size)
        seen = item_sets(batch, keep=ids) if config.exclude_seen else None
        if config.candidates == "sampled":
            # A generator per history: what it draws does not depend on its batch.
            negatives = [
                draw_negatives(
                    popularity,
                    np.append(history, target),
                    config.num_negatives,
                    np.random.default_rng([config.seed, row]),
                )
                for row, history, target in zip(rows, batch, ids, strict=True)
            ]
            ranks = rank_among(chunks, torch.as_tensor(ids), torch.as_tensor(np.stack(negatives)))
        else:
            ranks = rank_targets(chunks, torch.as_tensor(ids), seen)
        top_ids = top_items(chunks, num_top, seen)[0] if num_top else ranks.new_empty(len(rows), 0)
        return ranks.cpu(), top_ids.cpu()

    return Ranking(*_map_batches(rank_batch, histories, config.batch_size))


def _map_batches(
    function: Callable[[np.ndarray], tuple[Tensor, ...]],
    histories: Sequence[np.ndarray],
    batch_size: int,
) -> list[Tensor]:
    """Apply a function to the rows of batches of like length and put its results in row order."""
    if len(histories) == 0:
        raise ValueError("there are no histories to evaluate; is this split empty?")
    lengths = np.array([len(history) for history in histories])
    longest_first = np.argsort(-lengths, kind="stable")
    state = PartialState()
    mine = longest_first[state.process_index :: state.num_processes]
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    parts = gather_object([(torch.as_tensor(rows), *function(rows)) for rows in batches])
    rows, *results = (torch.cat(column) for column in zip(*parts, strict=True))
    order = rows.argsort()
    return [result[order] for result in results]


def _break_down(
    ranks: Tensor, values: np.ndarray, lower_ends: Sequence[int], ks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Compute the metrics of the histories whose value falls between two lower ends, for each."""
    groups = {}
    for lower, upper in pairwise([*lower_ends, np.inf]):
        chosen = (values >= lower) & (values < upper)
        if chosen.any():
            span = f"{lower}+" if upper == np.inf else f"{lower}-{upper - 1}"
            name = "0" if upper == 1 else span
            metrics = compute_metrics(ranks[torch.as_tensor(chosen)], ks)
            groups[name] = {"num_histories": int(chosen.sum())} | metrics
    return groups
