"""Several targets per history: how many of them the first places hold, and how high they stand.

As in benchmarks that test all a user does in a span of time, such as Yambda (arXiv 2505.22238).
With one target recall is the hit rate, and NDCG that of `metrics`.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .ranking import (
    HISTORIES_AT_ONCE,
    CatalogScores,
    ItemSets,
    Scorer,
    gather_scores,
    item_sets,
    top_items,
)
from .share import add_up

if TYPE_CHECKING:
    from .evaluator import EvaluationConfig


def recall(ranks: Tensor, sizes: Tensor, k: int) -> Tensor:
    """Share of each history's targets that stand among the first k, averaged over histories.

    >>> ranks = torch.tensor([[1, 3, 9], [2, 0, 0]])  # of the targets on top, in any order; or 0
    >>> recall(ranks, torch.tensor([4, 1]), k=3).item()
    0.75

    Args:
        ranks: As of rank_sets.
        sizes: (histories,) number of targets, those that are not on top included.
        k: How many of the first places count.
    """
    found = ((ranks > 0) & (ranks <= k)).sum(dim=1)
    return (found.double() / sizes).mean()


def set_ndcg(ranks: Tensor, sizes: Tensor, k: int) -> Tensor:
    """Discounted gain of the targets, divided by that of a list that begins with all of them.

    Takes the arguments of recall.

    >>> set_ndcg(torch.tensor([[1, 0], [3, 0]]), torch.tensor([1, 1]), k=3).item()
    0.75
    """
    is_found = (ranks > 0) & (ranks <= k)
    gains = torch.where(is_found, 1 / torch.log2(ranks.double() + 1), 0.0).sum(dim=1)
    best = (1 / torch.log2(torch.arange(k, dtype=torch.float64) + 2)).cumsum(dim=0)
    return (gains / best[sizes.clamp(max=k) - 1]).mean()


@torch.no_grad()
def measure_target_sets(
    scorer: Scorer,
    histories: Sequence[np.ndarray],
    target_sets: Sequence[np.ndarray],
    config: "EvaluationConfig",
    batches: Iterable[np.ndarray],
) -> dict[str, float]:
    """Measure recall and NDCG of sets of targets under full ranking.

    Args:
        scorer: Model or baseline.
        histories: Items before the targets, as arrays of ids.
        target_sets: (histories,) ids of the targets of each, each once; none is empty.
        config: The protocol.
        batches: Rows of the histories that this process ranks.

    Returns:
        Values by `recall@k` and `ndcg@k`, and the mean number of targets as `num_targets`; the same
        on every process.
    """
    num_top, ks = max(config.ks), config.ks
    names = ["num_targets", *(f"recall@{k}" for k in ks), *(f"ndcg@{k}" for k in ks)]
    sums = torch.zeros(1 + len(names), dtype=torch.float64)  # of histories, and of these
    kept = {} if scorer.vocab_size <= config.chunk_size else None
    for rows in batches:
        encoded = scorer.encode([histories[row] for row in rows])
        for start in range(0, len(rows), HISTORIES_AT_ONCE):
            run = rows[start : start + HISTORIES_AT_ONCE]
            scores = encoded[start : start + HISTORIES_AT_ONCE]
            chunks = CatalogScores(scorer, scores, config.chunk_size, kept)
            targets = [target_sets[row] for row in run]
            seen = exclude_seen([histories[row] for row in run], targets, config)
            ranks = rank_sets(chunks, targets, seen, num_top)
            sizes = torch.as_tensor([*map(len, targets)])
            means = [sizes.double().mean(), *(recall(ranks, sizes, k) for k in ks)]
            means += [set_ndcg(ranks, sizes, k) for k in ks]
            sums += len(run) * torch.stack([torch.ones_like(means[0]), *means])
    number, *totals = add_up(sums).tolist()
    return {name: total / number for name, total in zip(names, totals, strict=True)}


def exclude_seen(
    histories: list[np.ndarray], targets: list[np.ndarray], config: "EvaluationConfig"
) -> ItemSets | None:
    """Collect the items that are no candidates: of the history, unless they are targets that rank.

    Where targets that repeat are missed, they are left out like other items of the history.
    """
    if not config.exclude_seen:
        return None
    seen = item_sets(histories)
    if config.misses_repeats:
        return seen
    wanted = item_sets(targets)
    base = max(seen.ids.max(initial=0), wanted.ids.max(initial=0)) + 1
    others = ~np.isin(seen.rows * base + seen.ids, wanted.rows * base + wanted.ids)
    return ItemSets(seen.rows[others], seen.ids[others])


def rank_sets(
    chunks: CatalogScores, targets: list[np.ndarray], excluded: ItemSets | None, num_top: int
) -> Tensor:
    """Rank the targets that stand among the first num_top; ties count against the model.

    Args:
        chunks: Scores of the batch.
        targets: Ids of the targets of each history.
        excluded: Items that are not candidates.
        num_top: How far ranks matter.

    Returns:
        (batch, num_top + 1) the rank of each item on top if it is a target, else 0; ranks beyond
        num_top are num_top + 1.
    """
    first = torch.as_tensor(np.array([each[0] for each in targets], dtype=np.int64))
    _, tolerance = gather_scores(chunks, first.unsqueeze(1))
    # Where a tie reaches beyond num_top, this one more shows that it does.
    ids, scores = (each.cpu() for each in top_items(chunks, num_top + 1, excluded))
    ahead = scores.unsqueeze(1) >= scores.unsqueeze(2) - tolerance.cpu().unsqueeze(2)
    ranks = ahead.sum(dim=2)  # (batch, num_top + 1)
    wanted = item_sets(targets)
    base = max(int(ids.max()), int(wanted.ids.max(initial=0))) + 1
    rows = np.arange(len(targets))[:, None]
    is_target = np.isin(rows * base + ids.numpy(), wanted.rows * base + wanted.ids)
    ranks = ranks.masked_fill(~torch.as_tensor(is_target), 0)
    missing = num_top + 1 - ranks.shape[1]  # the catalog may be smaller
    return torch.nn.functional.pad(ranks, (0, missing))
