"""A scorer over held-out histories, on any number of processes, to metrics with their protocol."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub.dataclasses import strict
from torch import Tensor

from .candidates import CandidateSampler
from .collapse import SHOWN, Variety, measure_variety
from .metrics import bootstrap_intervals, compute_metrics, coverage
from .ranking import (
    FIRST_ITEM_ID,
    HISTORIES_AT_ONCE,
    TIE_TOLERANCE,
    BestItems,
    CatalogScores,
    Scorer,
    item_sets,
    rank_among,
    rank_targets,
)
from .repeats import SEEN_TARGETS, describe_repeats, find_repeats, miss_repeats
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

    ranks: Tensor
    """(histories,) rank of each target, in the order of the split."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the ranks, ready for JSON."""
        fields = {key: value for key, value in vars(self).items() if key != "ranks"}
        return fields | {"variety": self.variety.to_dict()}


class Ranking(NamedTuple):
    """Where the targets stand, and what stands on top."""

    ranks: Tensor
    """(histories,) rank of each target, from 1."""

    top_ids: Tensor
    """(histories, candidates) best items of the whole catalog; 0 where candidates ran out."""

    ranked: Tensor
    """(histories,) ranks as if targets that repeat an item of their history were never missed."""

    repeats: np.ndarray
    """(histories,) which targets do."""


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
    ranking = rank_histories(scorer, histories, targets, config, popularity, SHOWN)
    variety = measure_variety(ranking.top_ids, targets, scorer.vocab_size - FIRST_ITEM_ID)
    return compute_metrics(ranking.ranks, config.ks) | variety.to_metrics(), variety


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
    num_top, num_items = max(*config.ks, SHOWN), scorer.vocab_size - FIRST_ITEM_ID
    ranking = rank_histories(scorer, histories, targets, config, popularity, num_top)
    ranks = ranking.ranks
    shown = {f"coverage@{k}": coverage(ranking.top_ids, k, num_items) for k in config.ks}
    lengths = count_items(histories)
    missed = miss_repeats(ranking.ranked, ranking.repeats, num_items, config.ks)
    return Evaluation(
        metrics=compute_metrics(ranks, config.ks) | shown,
        intervals=bootstrap_intervals(
            ranks, config.ks, num_samples=config.num_bootstrap_samples, seed=config.seed
        ),
        by_popularity=_break_down(ranks, popularity[targets], POPULARITY_GROUPS, config.ks),
        by_length=_break_down(ranks, lengths, LENGTH_GROUPS, config.ks),
        seen_targets=describe_repeats(
            ranking.ranked, missed if config.exclude_seen else None, ranking.repeats, config.ks
        ),
        variety=measure_variety(ranking.top_ids, targets, num_items),
        protocol=describe_protocol(config, num_items, len(ranks)),
        target_sets=_measure_sets(scorer, histories, config),
        ranks=ranks,
    )


def _measure_sets(
    scorer: Scorer, histories: Sequence[np.ndarray], config: EvaluationConfig
) -> dict[str, float]:
    """Measure all targets of each history, where histories know them."""
    sets = getattr(histories, "target_sets", None)
    if sets is None or config.candidates == "sampled":
        return {}
    batches = list(_split_work(count_items(histories), config.batch_size))
    return measure_target_sets(scorer, histories, sets, config, batches)


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
    if len(histories) == 0:
        raise ValueError("there are no histories to evaluate; is this split empty?")
    if config.candidates == "sampled" and popularity is None:
        raise ValueError("candidates: sampled draws by popularity, but no popularity was given")
    ranker = _Ranker(scorer, config, popularity, num_top)
    targets = np.asarray(targets, dtype=np.int64)
    parts = []
    for rows in _split_work(count_items(histories), config.batch_size):
        batch = [histories[row] for row in rows]
        encoded = scorer.encode(batch)
        for start in range(0, len(rows), HISTORIES_AT_ONCE):
            run = slice(start, start + HISTORIES_AT_ONCE)
            ranked = ranker.rank(encoded[run], batch[run], targets[rows[run]], rows[run])
            parts.append((torch.as_tensor(rows[run]), *ranked))
    rows, *results = (torch.cat(column) for column in zip(*gather_object(parts), strict=True))
    first = torch.from_numpy(np.unique(rows.numpy(), return_index=True)[1])  # some are there twice
    ranked, top_ids = (result[first] for result in results)
    repeats = find_repeats(histories, targets)
    ranks = ranked
    if config.misses_repeats:
        num_items = scorer.vocab_size - FIRST_ITEM_ID
        ranks = miss_repeats(ranked, repeats, num_items, config.ks)
    return Ranking(ranks, top_ids, ranked, repeats)


def count_items(histories: Sequence[np.ndarray]) -> np.ndarray:
    """(histories,) items per history; histories that lie end to end know it and are asked."""
    if hasattr(histories, "lengths"):
        return histories.lengths
    return np.fromiter(map(len, histories), dtype=np.int64)


def _split_work(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the rows of this process, in batches of like length, the longest first.

    All processes have as many, some of the longest twice, as a model that is spread over them can
    only be asked by all together.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    state = PartialState()
    num_even = -(-len(lengths) // state.num_processes) * state.num_processes
    mine = np.resize(longest_first, num_even)[state.process_index :: state.num_processes]
    for start in range(0, len(mine), batch_size):
        yield mine[start : start + batch_size]


class _Ranker:
    """Ranks one run of histories after the other, all in the same memory."""

    def __init__(
        self,
        scorer: Scorer,
        config: EvaluationConfig,
        popularity: np.ndarray | None,
        num_top: int,
    ):
        self.scorer, self.config, self.num_top = scorer, config, num_top
        holds_catalog = scorer.vocab_size - FIRST_ITEM_ID <= config.chunk_size
        self.kept: dict[int, Tensor] | None = {} if holds_catalog else None
        self.sampler: CandidateSampler | None = None
        if config.candidates == "sampled":
            self.sampler = CandidateSampler(popularity, config.num_negatives, config.seed)

    def rank(
        self, encoded: Any, histories: list[np.ndarray], targets: np.ndarray, rows: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Rank the targets of a run, those that repeat, too, and find its best items.

        Args:
            encoded: The run as the scorer encoded it.
            histories: Its ids.
            targets: (batch,) ids of the held-out items.
            rows: (batch,) places of the histories in their split.

        Returns:
            (batch,) ranks and (batch, num_top) ids.
        """
        chunks = CatalogScores(self.scorer, encoded, self.config.chunk_size, self.kept)
        seen = item_sets(histories, keep=targets) if self.config.exclude_seen else None
        ids = torch.as_tensor(targets)
        best = None
        if self.num_top:
            is_shown = not self.config.misses_repeats  # a target that repeats
            best = BestItems(self.num_top, seen if is_shown else item_sets(histories))
        if self.sampler is None:
            ranks = rank_targets(chunks, ids, seen, best)
        else:
            negatives = torch.as_tensor(self.sampler.draw(rows, histories, targets))
            ranks = rank_among(chunks, ids, negatives)
            for start, scores in chunks if best else ():
                best.add(start, scores)
        return ranks.cpu(), best.found()[0].cpu() if best else ids.new_empty(len(rows), 0)


def _break_down(
    ranks: Tensor, values: np.ndarray, lower_ends: Sequence[int], ks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Compute the metrics of each group of histories."""
    return {
        name: {"num_histories": int(chosen.sum())}
        | compute_metrics(ranks[torch.as_tensor(chosen)], ks)
        for name, chosen in split_groups(values, lower_ends)
    }


def split_groups(values: np.ndarray, lower_ends: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Group histories by a value of each, between one lower end and the next.

    Returns:
        Name and (histories,) members of each group that has any.
    """
    for lower, upper in pairwise([*lower_ends, np.inf]):
        chosen = (values >= lower) & (values < upper)
        if chosen.any():
            span = f"{lower}+" if upper == np.inf else f"{lower}-{upper - 1}"
            yield "0" if upper == 1 else span, chosen
