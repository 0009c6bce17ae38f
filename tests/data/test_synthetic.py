import gzip
import json
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from bert4rec_hf.data import synthetic
from bert4rec_hf.data.synthetic import (
    Chain,
    SyntheticConfig,
    best_gains,
    best_probabilities,
    draw_histories,
    generate_interactions,
    make_chain,
    write_amazon_json,
)

SMALL = {"num_users": 301, "num_items": 83, "mean_length": 9.0, "max_length": 37}

SERIES = {"series_length": 5, "num_successors": 2}


@pytest.fixture(scope="module")
def data():
    return generate_interactions(SyntheticConfig())


@pytest.fixture
def chain():
    config = SyntheticConfig(num_items=11, max_length=5, mean_length=5.0, **SERIES)
    return make_chain(config, np.random.default_rng(4))


def true_distribution(chain: Chain, seen: list[int]) -> np.ndarray:
    """What the next item may be, written down from the words of the docstrings."""
    num_items, num_successors = chain.successors.shape
    newest = [seen[-1], seen[-2] if len(seen) > 1 else seen[-1]]
    distribution = (1 - 0.7) * chain.popularity
    weights = np.array([[4, 2], [2, 1]]) / 9 * 0.7
    for age, item in enumerate(newest):
        for place in range(num_successors):
            distribution[chain.successors[item, place]] += weights[age, place]
    distribution[seen] = 0
    return distribution / distribution.sum()


def test_no_item_occurs_twice_in_a_history_and_time_goes_on(data):
    frame = data.interactions
    assert frame.schema == {"user": pl.String, "item": pl.String, "timestamp": pl.Int64}
    assert frame.is_duplicated().sum() == 0
    assert frame.select("user", "item").is_duplicated().sum() == 0
    assert frame.group_by("user").agg((pl.col("timestamp").diff() > 0).all())["timestamp"].all()


def test_counts_are_as_asked_and_survive_5_core_filtering(data):
    config = SyntheticConfig()
    lengths = data.interactions.group_by("user").len()["len"]
    assert len(lengths) == config.num_users
    assert lengths.mean() == pytest.approx(config.mean_length, rel=0.05)
    assert lengths.min() == 5
    assert config.mean_length * 3 < lengths.max() <= config.max_length
    popularity = data.interactions.group_by("item").len()["len"]
    assert len(popularity) == config.num_items
    assert popularity.min() >= 5


def test_popularity_falls_like_a_power(data):
    counts = np.sort(data.interactions.group_by("item").len()["len"].to_numpy())[::-1]
    places = np.arange(1, len(counts) + 1)
    slope = np.polyfit(np.log(places), np.log(counts), 1)[0]
    assert slope == pytest.approx(-SyntheticConfig().zipf_exponent, abs=0.15)


def test_the_seed_decides():
    first, again, other = (
        generate_interactions(SyntheticConfig(**SMALL, seed=seed)) for seed in (1, 1, 2)
    )
    assert first.interactions.equals(again.interactions)
    assert first.best_possible == again.best_possible
    assert not first.interactions.equals(other.interactions)


def test_names_tell_neither_popularity_nor_length(data):
    numbers = pl.col("item").str.strip_prefix("item-").cast(pl.Int64)
    counts = data.interactions.group_by("item").len().sort(numbers)["len"].to_numpy()
    assert abs(np.corrcoef(np.arange(len(counts)), counts)[0, 1]) < 0.15


def test_successors_are_the_next_items_of_a_series_and_lead_round_it(chain):
    nexts = chain.successors[:, 0]
    assert sorted(nexts) == list(range(11))
    np.testing.assert_array_equal(chain.successors[:, 1], nexts[nexts])
    lengths = []
    for item in range(11):
        series = [item]
        while nexts[series[-1]] != item:
            series.append(nexts[series[-1]])
        lengths.append(len(series))
    assert sorted(lengths) == [5] * 5 + [6] * 6


def test_drawn_items_follow_the_true_distribution(chain):
    histories = draw_histories(chain, np.full(200_000, 4), np.random.default_rng(6))
    beginnings, counts = np.unique(histories[:, :3], axis=0, return_counts=True)
    for row in np.argsort(-counts)[:5]:
        beginning = beginnings[row]
        followers = histories[(histories[:, :3] == beginning).all(axis=1), 3]
        observed = np.bincount(followers, minlength=11) / counts[row]
        expected = true_distribution(chain, beginning.tolist())
        error = 4 * np.sqrt(expected / counts[row])
        assert (abs(observed - expected) <= error).all()


@pytest.mark.parametrize("length", [1, 2, 5])
def test_best_probabilities_match_the_whole_distribution(chain, length):
    generator = np.random.default_rng(7)
    seen = np.array([generator.permutation(11)[:length] for _ in range(97)])
    best = best_probabilities(chain, seen)
    for row, items in zip(best, seen, strict=True):
        expected = np.sort(true_distribution(chain, items.tolist()))[::-1]
        np.testing.assert_allclose(row[:11], expected, atol=1e-12)
        assert (row[11:] == 0).all()


def test_best_gains_are_those_of_the_last_item_by_hand(chain):
    histories = np.array([[3, 1, 4, 5, 9], [2, 6, 8, -1, -1]])
    gains = best_gains(chain, histories, np.array([5, 3]))
    for row, seen in zip(gains, ([3, 1, 4, 5], [2, 6]), strict=True):
        best = np.sort(true_distribution(chain, seen))[::-1]
        discounts = 1 / np.log2(np.arange(2, 13))
        expected = [best[:1].sum(), best[:5].sum(), best[:10].sum(), 1.0]
        expected += [best[:k] @ discounts[:k] for k in (1, 5, 10, 11)]
        np.testing.assert_allclose(row, expected)


def test_ranking_by_the_truth_hits_as_often_as_said(chain):
    histories = draw_histories(chain, np.full(3_001, 5), np.random.default_rng(8))
    expected = best_gains(chain, histories, np.full(3_001, 5))[:, 1].mean()
    hits = [
        history[-1] in np.argsort(-true_distribution(chain, history[:-1].tolist()))[:5]
        for history in histories
    ]
    assert np.mean(hits) == pytest.approx(expected, abs=3 * np.sqrt(0.25 / 3_001))


def test_chunks_of_users_cover_everyone_once(monkeypatch):
    monkeypatch.setattr(synthetic, "MAX_MATRIX_SIZE", 100)
    frame = generate_interactions(SyntheticConfig(**SMALL)).interactions
    assert frame["user"].n_unique() == 301
    changes = sum(one != other for one, other in pairwise(frame["user"]))
    assert changes == 300


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_users": 0}, "num_users must be at least 1, got 0"),
        ({"num_recent": 0}, "num_recent must be at least 1, got 0"),
        ({"mean_length": 4.0}, "got mean_length 4.0"),
        ({"max_length": 301}, "got mean_length 20.0, max_length 301, num_items 400"),
        ({"series_length": 3}, "series_length must be .* got 3 with 3 and 400"),
        ({"pattern_ratio": 1.0}, r"pattern_ratio must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(Exception, match=message):
        SyntheticConfig(**settings)


def test_amazon_json_holds_every_interaction(tmp_path):
    data = generate_interactions(SyntheticConfig(**SMALL))
    write_amazon_json(data.interactions, tmp_path / "reviews.json.gz")
    with gzip.open(tmp_path / "reviews.json.gz", "rt", encoding="utf-8") as lines:
        reviews = [json.loads(line) for line in lines]
    found = {(r["reviewerID"], r["asin"], r["unixReviewTime"]) for r in reviews}
    assert found == set(data.interactions.iter_rows())
    assert len(reviews) == len(data.interactions)
    assert {"overall", "verified", "reviewTime", "reviewText", "summary"} <= reviews[0].keys()
    assert 100 < np.mean([len(review["reviewText"]) for review in reviews]) < 1_000
