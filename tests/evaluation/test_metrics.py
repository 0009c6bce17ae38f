import math

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from bert4rec_hf.evaluation.metrics import (
    METRICS,
    bootstrap_intervals,
    compute_metrics,
    coverage,
    hit_rate,
    ndcg,
    reciprocal_rank,
    user_gains,
)


@pytest.mark.parametrize(
    ("rank", "expected"), [(1, 1.0), (2, 1 / math.log2(3)), (10, 1 / math.log2(11)), (11, 0.0)]
)
def test_ndcg_at_10_of_one_history(rank, expected):
    assert ndcg(torch.tensor([rank]), k=10).item() == pytest.approx(expected)


def test_metrics_of_four_histories_by_hand():
    ranks = torch.tensor([1, 3, 4, 100])
    assert hit_rate(ranks, k=3).item() == 0.5
    assert ndcg(ranks, k=3).item() == (1 + 0.5) / 4
    assert reciprocal_rank(ranks, k=3).item() == pytest.approx((1 + 1 / 3) / 4)


@pytest.mark.parametrize(
    ("name", "witness"),
    [
        ("hit_rate", RetrievalHitRate),
        ("ndcg", RetrievalNormalizedDCG),
        ("mrr", RetrievalMRR),
    ],
)
def test_torchmetrics_agrees(name, witness):
    scores, targets = torch.randn(17, 23), torch.randint(23, (17,))
    is_target = torch.nn.functional.one_hot(targets, 23).bool()
    ranks = (scores >= scores[is_target][:, None]).sum(dim=1)
    histories = torch.arange(17)[:, None].expand_as(scores)
    expected = witness(top_k=5)(scores.flatten(), is_target.flatten(), histories.flatten())
    assert METRICS[name](ranks, 5).item() == pytest.approx(expected.item(), abs=1e-6)


def test_every_metric_is_given_at_every_k():
    names = {"hit_rate@1", "hit_rate@7", "ndcg@1", "ndcg@7", "mrr@1", "mrr@7"}
    assert set(compute_metrics(torch.tensor([1, 2]), [1, 7])) == names


def test_coverage_counts_each_item_of_the_first_k_once():
    top_ids = torch.tensor([[2, 3, 9], [3, 4, 8], [5, 0, 0]])
    assert coverage(top_ids, k=2, num_items=8) == 4 / 8
    assert coverage(top_ids, k=3, num_items=8) == 6 / 8


def test_intervals_match_users_drawn_one_by_one():
    ranks = torch.from_numpy(np.random.default_rng(1).geometric(0.1, size=401))
    intervals = bootstrap_intervals(ranks, [3, 10], num_samples=4_000, seed=2)
    generator = torch.Generator().manual_seed(3)
    draws = torch.randint(401, (4_000, 401), generator=generator)
    for name, metric in METRICS.items():
        values = np.array([metric(ranks[rows], 10) for rows in draws])
        expected = np.quantile(values, [0.025, 0.975])
        assert intervals[f"{name}@10"] == pytest.approx(expected, abs=0.004)


def test_intervals_follow_from_the_seed():
    ranks = torch.randint(1, 30, (101,))
    first, again, other = (
        bootstrap_intervals(ranks, [5], num_samples=99, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert first["ndcg@5"][0] < ndcg(ranks, 5).item() < first["ndcg@5"][1]


@pytest.mark.parametrize("name", METRICS)
def test_the_mean_of_what_each_user_adds_is_the_metric(name):
    ranks = torch.tensor([[1, 4, 5, 6, 90], [2, 3, 5, 1000, 1]])
    gains = user_gains(ranks, name, k=5)
    assert gains.shape == (2, 5)
    assert gains.mean(axis=1) == pytest.approx([METRICS[name](row, 5).item() for row in ranks])
