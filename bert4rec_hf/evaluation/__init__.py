"""Scores to ranks, ranks to metrics, and the baselines to beat."""

from .baselines import BASELINES, count_popularity
from .evaluator import Evaluation, EvaluationConfig, describe_protocol, evaluate, evaluate_in_detail
from .metrics import (
    METRICS,
    bootstrap_intervals,
    compute_metrics,
    coverage,
    hit_rate,
    ndcg,
    reciprocal_rank,
)
from .ranking import CatalogScores, ItemSets, Scorer, item_sets, rank_targets, top_items
from .shared_ranking import Ranking, rank_histories

__all__ = [
    "BASELINES",
    "count_popularity",
    "Evaluation",
    "EvaluationConfig",
    "Ranking",
    "describe_protocol",
    "evaluate",
    "evaluate_in_detail",
    "rank_histories",
    "METRICS",
    "bootstrap_intervals",
    "compute_metrics",
    "coverage",
    "hit_rate",
    "ndcg",
    "reciprocal_rank",
    "CatalogScores",
    "ItemSets",
    "Scorer",
    "item_sets",
    "rank_targets",
    "top_items",
]
