import math

import numpy as np
import pytest
import torch

from bert4rec_hf.evaluation.evaluator import EvaluationConfig, evaluate_in_detail
from bert4rec_hf.evaluation.metrics import compute_metrics
from bert4rec_hf.evaluation.ranking import CatalogScores
from bert4rec_hf.evaluation.target_sets import measure_target_sets, rank_sets


class Sets(list):
    """Histories with the sets of their targets."""

    def __init__(self, histories, target_sets):
        super().__init__(map(np.array, histories))
        self.target_sets = [np.array(each) for each in target_sets]


TABLE = torch.tensor(
    [  # ids 0 and 1 are padding and mask
        [9.0, 9.0, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
        [9.0, 9.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    ]
)


def measure(table_scorer, table, histories, sets, **settings):
    config = EvaluationConfig(ks=[2, 3], **settings)
    data = Sets(histories, sets)
    firsts = np.array([each[0] for each in sets])
    popularity = np.ones(table.shape[1], dtype=np.int64)
    return evaluate_in_detail(table_scorer(table), data, firsts, config, popularity)


def test_recall_and_ndcg_of_sets_are_those_worked_out_by_hand(table_scorer):
    # The first history finds its targets 2 and 4 at ranks 1 and 3 and misses 7; the second finds 6
    # at rank 2 of a single target.
    evaluation = measure(table_scorer, TABLE, [[3], [2]], [[2, 4, 7], [6]], exclude_seen=False)
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    assert evaluation.target_sets == {
        "num_targets": 2.0,
        "recall@2": pytest.approx((1 / 3 + 1) / 2),
        "recall@3": pytest.approx((2 / 3 + 1) / 2),
        "ndcg@2": pytest.approx((1 / (1 + second) + second) / 2),
        "ndcg@3": pytest.approx(((1 + third) / (1 + second + third) + second) / 2),
    }


@pytest.mark.parametrize(
    ("settings", "recall"),
    [
        ({"exclude_seen": False}, (1 / 2 + 0) / 2),  # 2 3 | 4, and 7 6 | 5
        ({"exclude_seen": True}, (0 + 1) / 2),  # 3 4, and 6 5: both lists begin with what was seen
        ({"exclude_seen": True, "seen_targets": "ranked"}, (1 / 2 + 1) / 2),  # 2 3, and 6 5
    ],
)
def test_seen_items_are_left_out_as_the_protocol_says(table_scorer, settings, recall):
    evaluation = measure(table_scorer, TABLE, [[2], [7]], [[2, 6], [5]], **settings)
    assert evaluation.target_sets["recall@2"] == pytest.approx(recall)


def test_one_target_gives_the_usual_metrics(dot_scorer):
    generator = torch.Generator().manual_seed(3)
    scorer = dot_scorer(torch.randn(53, 5, generator=generator))
    draw = np.random.default_rng(4)
    histories = [draw.integers(2, 53, size=size) for size in draw.integers(1, 9, size=37)]
    targets = draw.integers(2, 53, size=37)
    config = EvaluationConfig(ks=[1, 5, 20], batch_size=11)
    data = Sets(histories, targets[:, None])
    evaluation = evaluate_in_detail(scorer, data, targets, config, np.ones(53, dtype=np.int64))
    expected = compute_metrics(evaluation.ranks, config.ks)
    for k in config.ks:
        assert evaluation.target_sets[f"recall@{k}"] == pytest.approx(expected[f"hit_rate@{k}"])
        assert evaluation.target_sets[f"ndcg@{k}"] == pytest.approx(expected[f"ndcg@{k}"])


def test_sets_agree_with_a_full_sort_in_any_chunks(dot_scorer):
    generator = torch.Generator().manual_seed(5)
    scorer = dot_scorer(torch.randn(101, 7, generator=generator))
    draw = np.random.default_rng(6)
    histories = [draw.integers(2, 101, size=4) for _ in range(23)]
    sets = [np.unique(draw.integers(2, 101, size=size)) for size in draw.integers(1, 40, size=23)]
    scores = scorer.score(scorer.encode(histories), 2, 101)
    hits = []
    for row, wanted in zip(scores.argsort(dim=1, descending=True), sets, strict=True):
        hits.append(len(set((row[:10] + 2).tolist()) & set(wanted.tolist())) / len(wanted))
    rows = [np.arange(0, 23, 2), np.arange(1, 23, 2)]
    for chunk_size in (13, 1000):
        config = EvaluationConfig(ks=[10], exclude_seen=False, chunk_size=chunk_size)
        measured = measure_target_sets(scorer, histories, sets, config, rows)
        assert measured["recall@10"] == pytest.approx(np.mean(hits))


def test_a_constant_model_finds_no_target(table_scorer):
    constant = torch.zeros(2, 9)
    evaluation = measure(table_scorer, constant, [[3], [2]], [[2, 4], [6]], exclude_seen=False)
    assert evaluation.target_sets["recall@3"] == evaluation.target_sets["ndcg@3"] == 0


def test_a_tie_with_another_item_counts_against_the_target(table_scorer):
    table = torch.tensor([[9.0, 9.0, 0.5, 0.5, 0.9, 0.1]])
    ranks = rank_sets(CatalogScores(table_scorer(table), table), [np.array([2])], None, 3)
    assert sorted(ranks[0].tolist()) == [0, 0, 0, 3]  # 4 is ahead of it, and so is 3


def test_sampled_candidates_and_single_targets_have_no_sets(table_scorer):
    table = torch.randn(2, 300)
    sampled = {"candidates": "sampled", "num_negatives": 50}
    assert measure(table_scorer, table, [[3], [2]], [[2, 4], [6]], **sampled).target_sets == {}
    config, counts = EvaluationConfig(ks=[2]), np.ones(300, dtype=np.int64)
    histories, targets = [np.array([3]), np.array([2])], np.array([2, 6])
    detail = evaluate_in_detail(table_scorer(table), histories, targets, config, counts)
    assert detail.target_sets == {}
