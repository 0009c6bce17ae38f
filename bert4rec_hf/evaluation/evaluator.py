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
from .collapse import SHOWN, Variety
from .kept_ranks import HISTORIES_APART, KeptShare
from .metrics import count_ranks, intervals_of_counts, metrics_of_counts
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
from .share import DistinctItems, Share, add_up
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
    ranker = _Ranker(scorer, config, popularity, num_top)
    parts = list(_rank_runs(ranker, histories, targets, share_rows(histories)))
    rows, ranked, repeats, top_ids = (
        np.concatenate(column) for column in zip(*gather_object(parts), strict=True)
    )
    order = rows.argsort()
    ranked, repeats = torch.from_numpy(ranked[order]), repeats[order]
    ranks = _apply_protocol(ranked, repeats, scorer, config)
    return Ranking(ranks, torch.from_numpy(top_ids[order]), ranked, repeats)


def rank_share(  # noqa: PLR0913 - what rank_histories takes, and where ranks are kept
    scorer: Scorer,
    histories: Sequence[np.ndarray],
    targets: np.ndarray,
    config: EvaluationConfig,
    popularity: np.ndarray | None = None,
    depths: Sequence[int] = (),
    kept: KeptShare | None = None,
) -> Share:
    """Rank the histories of this process alone; all processes must come here together.

    Takes the arguments of rank_histories, and

        depths: In how many first places different items are counted.
        kept: Where ranks are kept, to go on after a kill.
    """
    distinct = DistinctItems([*depths, "targets"] if depths else [], scorer.vocab_size)
    rows = share_rows(histories)
    # As long as they will be: many small arrays in their place would keep a heap from shrinking.
    ranked, repeats = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=bool)
    done = kept.load(ranked, repeats, distinct.is_met) if kept else 0
    written = done
    ranker = _Ranker(scorer, config, popularity, max(depths, default=0))
    for run, ranks, are_repeats, top_ids in _rank_runs(ranker, histories, targets, rows, done):
        part = slice(done, done + len(run))
        ranked[part], repeats[part], done = ranks, are_repeats, part.stop
        for k in depths:
            distinct.add(k, torch.from_numpy(top_ids[:, :k]))
        if depths:
            distinct.add("targets", torch.as_tensor(targets[run]).long())
        if kept and done - written >= HISTORIES_APART:
            kept.save(ranked[written:done], repeats[written:done], distinct.is_met)
            written = done
    ranked = torch.from_numpy(ranked)
    ranks = _apply_protocol(ranked, repeats, scorer, config)
    return Share(rows, ranks, ranked, repeats, distinct.count() if depths else {})


def _apply_protocol(
    ranked: Tensor, repeats: np.ndarray, scorer: Scorer, config: EvaluationConfig
) -> Tensor:
    """Ranks of targets, those that repeat being missed where the protocol says so."""
    if not config.misses_repeats:
        return ranked
    return miss_repeats(ranked, repeats, scorer.vocab_size - FIRST_ITEM_ID, config.ks)


@torch.no_grad()
def _rank_runs(
    ranker: "_Ranker",
    histories: Sequence[np.ndarray],
    targets: np.ndarray,
    own: np.ndarray,
    num_done: int = 0,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Rank the histories of this process, run by run.

    Args:
        ranker: Ranks a run.
        histories: Of all processes.
        targets: (histories,) ids of the held-out items.
        own: Rows of this process, see share_rows.
        num_done: How many of them are left out, as they were ranked before.

    Yields:
        (run,) rows, (run,) ranks, those that repeat never missed, (run,) which targets repeat, and
        (run, num_top) best items.

    Raises:
        ValueError: There are no histories.
    """
    if len(histories) == 0:
        raise ValueError("there are no histories to evaluate; is this split empty?")
    scorer, batch_size = ranker.scorer, ranker.config.batch_size
    for rows, num_own in split_rows(own, len(histories), batch_size, num_done):
        batch, goals = [histories[row] for row in rows], np.asarray(targets[rows], dtype=np.int64)
        encoded = scorer.encode(batch)
        for start in range(0, len(rows), HISTORIES_AT_ONCE):
            run = slice(start, start + HISTORIES_AT_ONCE)
            ranks, top_ids = ranker.rank(encoded[run], batch[run], goals[run], rows[run])
            repeats = find_repeats(batch[run], goals[run])
            kept = slice(max(num_own - start, 0))
            yield rows[run][kept], ranks.numpy()[kept], repeats[kept], top_ids.numpy()[kept]


def count_items(histories: Sequence[np.ndarray], rows: np.ndarray | None = None) -> np.ndarray:
    """(histories,) items per history, or (rows,) of some; histories that lie end to end know it."""
    if hasattr(histories, "offsets") and rows is not None:
        return histories.offsets[rows + 1] - histories.offsets[rows]
    if hasattr(histories, "lengths"):
        return histories.lengths
    chosen = histories if rows is None else (histories[row] for row in rows)
    return np.fromiter(map(len, chosen), dtype=np.int64)


def share_rows(histories: Sequence[np.ndarray]) -> np.ndarray:
    """(share,) rows of the histories that this process ranks, the longest first."""
    state = PartialState()
    own = np.arange(state.process_index, len(histories), state.num_processes)
    return own[np.argsort(-count_items(histories, own), kind="stable")]


def split_rows(
    rows: np.ndarray, num_histories: int, batch_size: int, num_done: int = 0
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the rows of this process in batches of like length.

    All processes have as many, as a model that is spread over them can only be asked by all
    together; where one has less of its own, the first history fills up.

    Args:
        rows: Those of share_rows.
        num_histories: Of all processes.
        batch_size: Rows of a batch.
        num_done: Rows that are left out, the first ones.

    Yields:
        (batch,) rows, and how many of them are its own, which come first.
    """
    num_even = -(-num_histories // PartialState().num_processes)
    padded = np.append(rows, np.zeros(num_even - len(rows), dtype=np.int64))
    for start in range(num_done, num_even, batch_size):
        yield padded[start : start + batch_size], len(rows) - start


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
            if popularity is None:
                raise ValueError(
                    "candidates: sampled draws by popularity, but no popularity was given"
                )
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
