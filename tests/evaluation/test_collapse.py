import numpy as np
import pytest
import torch

from bert4rec_hf.evaluation.collapse import Variety
from bert4rec_hf.evaluation.evaluator import (
    EvaluationConfig,
    evaluate,
    evaluate_in_detail,
    evaluate_with_variety,
)
from bert4rec_hf.evaluation.share import DistinctItems

VOCAB_SIZE = 403


@pytest.fixture
def split():
    """300 histories, each with a target of its own."""
    generator = np.random.default_rng(3)
    histories = [generator.integers(2, VOCAB_SIZE, size=size) for size in [4, 7, 11] * 100]
    return histories, 2 + generator.permutation(VOCAB_SIZE - 2)[:300]


def test_different_items_are_counted_in_the_first_ten_places():
    top_ids = torch.tensor([[*range(5, 15), 99], [5, 7, *[0] * 9]])
    distinct = DistinctItems([10, "targets"], vocab_size=100)
    distinct.add(10, top_ids[:, :10])
    distinct.add("targets", torch.tensor([4, 4]))
    assert distinct.count() == {10: 10, "targets": 1}
    assert Variety(10, 1, 40).to_metrics() == {
        "coverage@10": 0.25,
        "recommended_items@10": 10,
        "is_collapsed": 0,
    }


@pytest.mark.parametrize(("num_recommended", "is_collapsed"), [(10, True), (29, True), (30, False)])
def test_fewer_items_than_a_tenth_of_the_targets_are_a_collapse(num_recommended, is_collapsed):
    variety = Variety(num_recommended, num_targets=300, num_items=2_000_000)
    assert variety.is_collapsed == is_collapsed
    assert variety.to_dict()["is_collapsed"] == is_collapsed


def test_a_model_that_shows_everyone_the_same_has_collapsed(split, table_scorer):
    """Histories that hold one of its ten favourites are shown the next one instead."""
    favourites = torch.arange(VOCAB_SIZE, 0, -1.0).expand(300, -1)
    config = EvaluationConfig(ks=[5])
    metrics, variety = evaluate_with_variety(table_scorer(favourites), *split, config)
    shown = set()
    for history in split[0]:
        shown |= set([item for item in range(2, VOCAB_SIZE) if item not in history][:10])
    assert variety == (len(shown), 300, 401)
    assert len(shown) < 20
    assert variety.is_collapsed
    assert metrics["recommended_items@10"] == len(shown)
    assert f"are {len(shown)} different ones, while their targets are 300" in str(variety)


def test_a_model_that_follows_the_histories_has_not(split, dot_scorer):
    scorer = dot_scorer(torch.randn(VOCAB_SIZE, 19, generator=torch.Generator().manual_seed(1)))
    config = EvaluationConfig(ks=[5, 10], chunk_size=100)
    metrics, variety = evaluate_with_variety(scorer, *split, config)
    assert not variety.is_collapsed
    detail = evaluate_in_detail(scorer, *split, config, np.ones(VOCAB_SIZE))
    assert metrics.items() <= (detail.metrics | variety.to_metrics()).items()
    assert metrics["coverage@10"] == detail.metrics["coverage@10"] > 0.9
    assert detail.to_dict()["variety"] == variety.to_dict()


@pytest.mark.parametrize("candidates", ["full", "sampled"])
def test_nothing_is_ranked_otherwise_and_ranking_scores_the_catalog_no_more_often(
    split, recording_scorer, candidates
):
    scorer = recording_scorer(torch.randn(VOCAB_SIZE, 19))
    config = EvaluationConfig(ks=[5], candidates=candidates, num_negatives=31, chunk_size=100)
    popularity = np.ones(VOCAB_SIZE, dtype=np.int64)
    plain = evaluate(scorer, *split, config, popularity)
    num_blocks = len(scorer.blocks)
    metrics, _ = evaluate_with_variety(scorer, *split, config, popularity)
    assert plain.items() <= metrics.items()
    if candidates == "full":
        assert len(scorer.blocks) == 2 * num_blocks
