import numpy as np
import pytest

from bert4rec_hf.data.negatives import NegativeSampler

POPULARITY = np.array([0, 0, 1, 7, 0, 12])


def draw_many(distribution, num_negatives=500):
    sampler = NegativeSampler(POPULARITY, num_negatives, distribution)
    draws = [sampler.draw(np.uint64(key)) for key in range(100)]
    ids = np.concatenate([each["negatives"].numpy() for each in draws])
    logs = np.concatenate([each["negative_log_counts"].numpy() for each in draws])
    return ids, logs


@pytest.mark.parametrize(
    ("distribution", "shares"),
    # An item that nobody met is drawn as one that was met once.
    [("uniform", [1 / 4] * 4), ("popularity", [1 / 21, 7 / 21, 1 / 21, 12 / 21])],
)
def test_items_are_drawn_as_often_as_expected(distribution, shares):
    ids, logs = draw_many(distribution)
    counts = np.bincount(ids, minlength=6)
    assert counts[:2].tolist() == [0, 0]
    # 50,000 draws: three standard deviations of a share are 0.007 at most.
    np.testing.assert_allclose(counts[2:] / len(ids), shares, atol=0.008)
    expected = np.log(np.array([np.nan, np.nan, *shares]) * 500)
    np.testing.assert_allclose(logs, expected[ids], rtol=1e-5)


def test_a_key_always_draws_the_same_and_another_something_else():
    sampler = NegativeSampler(POPULARITY, 40, "uniform")
    first, again, other = (sampler.draw(np.uint64(key))["negatives"].tolist() for key in (5, 5, 6))
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "uniform"), "num_negatives must be at least 1, got 0"),
        ((5, "popular"), "negative_distribution must be one of uniform, popularity, got 'popular'"),
    ],
)
def test_an_impossible_draw_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NegativeSampler(POPULARITY, *arguments)
