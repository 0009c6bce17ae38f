"""How a model does on the newest interactions: is it still what its test said?

Each new interaction with a known item is ranked among the catalog, after everything that its user
did before it.
"""

from typing import Any, NamedTuple

import numpy as np
import polars as pl

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.data.vocabulary import FIRST_ITEM_ID
from bert4rec_hf.evaluation.baselines import BASELINES
from bert4rec_hf.evaluation.evaluator import EvaluationConfig, Scorer
from bert4rec_hf.evaluation.metrics import bootstrap_intervals, compute_metrics, coverage
from bert4rec_hf.evaluation.shared_ranking import rank_histories
from bert4rec_hf.serving.recommender import Recommender

MIN_INTERACTIONS = 100
"""Fewer than these say too little."""

MAX_UNKNOWN = 0.1
"""A larger share of interactions with items that the model does not know wants an update."""

MIN_SHARE_OF_TEST = 0.8
"""Of the hit rate on the test; less, and no accident, wants a training."""


class Watched(NamedTuple):
    """New interactions, and what came before each."""

    contexts: list[np.ndarray]
    """Ids that came before each new interaction with a known item; may be empty."""

    targets: np.ndarray
    """(targets,) ids of these."""

    past: Histories
    """Of all users, before the new interactions."""

    counts: dict[str, int]


def watch(new: pl.DataFrame, past: pl.DataFrame, recommender: Recommender) -> Watched:
    """Put new interactions behind those of the past.

    Args:
        new: `user`, `item`, `timestamp`, `row`.
        past: The same.
        recommender: Knows the catalog.
    """
    frames = [past.with_columns(is_new=pl.lit(False)), new.with_columns(is_new=pl.lit(True))]
    rows = pl.concat(frames).sort("user", "is_new", "timestamp", "row")
    places = recommender.vocabulary.find_places(rows["item"])
    is_new, is_known = rows["is_new"].to_numpy(), places.is_not_null().to_numpy()
    users = rows["user"].rle_id().to_numpy().astype(np.int64)
    ids = places.fill_null(0).to_numpy().astype(np.int32) + FIRST_ITEM_ID
    known_users, known_ids = users[is_known], ids[is_known]
    starts = np.searchsorted(known_users, known_users)
    rows_of_targets = np.flatnonzero(is_new[is_known])
    is_past = ~is_new[is_known]
    lengths = np.bincount(known_users[is_past], minlength=int(users.max(initial=-1)) + 1)
    has_past = np.bincount(users[~is_new], minlength=len(lengths)) > 0
    return Watched(
        contexts=[known_ids[starts[row] : row] for row in rows_of_targets],
        targets=known_ids[rows_of_targets],
        past=Histories(known_ids[is_past], np.concatenate([[0], np.cumsum(lengths)])),
        counts={
            "interactions": int(is_new.sum()),
            "interactions_with_unknown_items": int((is_new & ~is_known).sum()),
            "users": int(len(np.unique(users[is_new]))),
            "users_without_a_past": int((~has_past[np.unique(users[is_new])]).sum()),
        },
    )


def monitor(
    recommender: Recommender,
    new: pl.DataFrame,
    past: pl.DataFrame,
    tested: dict[str, float],
    *,
    k: int = 10,
) -> dict[str, Any]:
    """Measure a model on new interactions.

    Args:
        recommender: The model.
        new: `user`, `item`, `timestamp`, `row`.
        past: The same, of what came before; may be empty.
        tested: The metrics of the model's test, by name; may be empty.
        k: How many of the first places count.

    Returns:
        Counts and shares; `model` and, where there is a past to fit them to, baselines, with their
        metrics and the interval of the hit rate; `test`; and a `verdict`.

    Raises:
        ValueError: k is less than 1.
    """
    watched = watch(new, past, recommender)
    rows = [row for row, context in enumerate(watched.contexts) if len(context)]
    name, vocab_size = f"hit_rate@{k}", recommender.scorer.vocab_size
    results: dict[str, Any] = watched.counts | {
        "ranked": len(rows),
        "unknown_items_ratio": ratio(watched.counts, "interactions_with_unknown_items"),
        "cold_users_ratio": watched.counts["users_without_a_past"]
        / max(1, watched.counts["users"]),
        "test": {key: tested[key] for key in (name, f"ndcg@{k}", f"coverage@{k}") if key in tested},
    }
    scorers: dict[str, Scorer] = {"model": recommender.scorer}
    if len(watched.past.values):
        fitted = ("popularity", "item_knn")
        scorers |= {each: BASELINES[each](watched.past, vocab_size) for each in fitted}
    config = EvaluationConfig(ks=[k])
    for key, scorer in scorers.items() if rows else ():
        contexts = [watched.contexts[row] for row in rows]
        ranking = rank_histories(scorer, contexts, watched.targets[rows], config, None, k)
        metrics = compute_metrics(ranking.ranks, [k])
        shown = coverage(ranking.top_ids, k, vocab_size - FIRST_ITEM_ID)
        intervals = bootstrap_intervals(ranking.ranks, [k], num_samples=1_000, seed=0)
        results[key] = metrics | {f"coverage@{k}": shown, "interval": intervals[name]}
    return results | {"verdict": judge(results, name)}


def ratio(counts: dict[str, int], key: str) -> float:
    """Share of a count in that of interactions."""
    return counts[key] / max(1, counts["interactions"])


def judge(results: dict[str, Any], name: str) -> str:
    """Say in a line what to do.

    >>> judge({"ranked": 7, "unknown_items_ratio": 0.0}, "hit_rate@10")
    'too little to judge: 7 interactions could be ranked, 100 are needed'

    Args:
        results: What was measured.
        name: Of the metric that decides.
    """
    unknown = results["unknown_items_ratio"]
    if unknown > MAX_UNKNOWN:
        return f"update: {unknown:.0%} of the interactions have items that the model does not know"
    if results["ranked"] < MIN_INTERACTIONS:
        return (
            f"too little to judge: {results['ranked']} interactions could be ranked, "
            f"{MIN_INTERACTIONS} are needed"
        )
    found, upper = results["model"][name], results["model"]["interval"][1]
    for baseline in ("item_knn", "popularity"):
        if baseline in results and upper < results[baseline][name]:
            return (
                f"train again: {name} is {found:.4f}, less than the {results[baseline][name]:.4f} "
                f"of {baseline.replace('_', '-')}"
            )
    tested = results["test"].get(name)
    if tested is not None and upper < MIN_SHARE_OF_TEST * tested:
        return f"train again: {name} is {found:.4f}, after {tested:.4f} on the test"
    beside = "" if tested is None else f", {tested:.4f} on the test"
    return f"fine: {name} is {found:.4f}{beside}"
