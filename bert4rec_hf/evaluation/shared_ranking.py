"""The histories of a split shared out among processes, and ranked run by run."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from .candidates import CandidateSampler
from .kept_ranks import HISTORIES_APART, KeptShare
from .ranking import (
    FIRST_ITEM_ID,
    HISTORIES_AT_ONCE,
    BestItems,
    CatalogScores,
    Scorer,
    item_sets,
    rank_among,
    rank_targets,
)
from .repeats import find_repeats, miss_repeats
from .share import DistinctItems, Share

if TYPE_CHECKING:
    from .evaluator import EvaluationConfig


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


def rank_histories(
    scorer: Scorer,
    histories: Sequence[np.ndarray],
    targets: np.ndarray,
    config: "EvaluationConfig",
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
    config: "EvaluationConfig",
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
    ranked: Tensor, repeats: np.ndarray, scorer: Scorer, config: "EvaluationConfig"
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
        config: "EvaluationConfig",
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
