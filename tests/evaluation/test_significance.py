import numpy as np
import pytest
import torch
from scipy import stats

from bert4rec_hf.evaluation.evaluator import EvaluationConfig
from bert4rec_hf.evaluation.share import Share
from bert4rec_hf.evaluation.significance import (
    find_differences,
    find_differences_of_shares,
    paired_bootstrap,
)


def compare(first, second):
    """By one metric."""
    (found,) = paired_bootstrap(first[None], second[None])
    return found


def draw(shape, mean, seed):
    return np.random.default_rng(seed).normal(mean, 1, shape)


def test_one_seed_each_agrees_with_a_paired_t_test():
    first, second = draw((1, 301), 0.1, 0), draw((1, 301), 0.0, 1)
    ours = compare(first, second)
    theirs = stats.ttest_rel(first[0], second[0])
    assert ours.difference == pytest.approx(first.mean() - second.mean())
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.02)
    assert ours.interval == pytest.approx(tuple(theirs.confidence_interval()), abs=0.01)


def test_users_are_paired():
    """A small difference under a large common part is seen only by those who pair."""
    common, small = draw((1, 97), 0, 2), draw((1, 97), 0.5, 3) / 10
    ours = compare(common + small, common)
    unpaired = stats.ttest_ind((common + small)[0], common[0])
    assert ours.p_value < 0.01 < 0.5 < unpaired.pvalue


def test_luck_with_seeds_counts_as_luck():
    """Seeds that differ far more than users leave the difference of their means undecided."""
    users = draw((1, 401), 0, 4) / 100
    first = users + np.array([[1.0], [-1.2], [0.9], [-0.4]])
    second = users + np.array([[-0.8], [1.0], [-0.9]])
    ours = compare(first, second)
    assert ours.p_value > 0.3
    low, high = ours.interval
    assert low < -0.5 < 0.5 < high


def test_equal_models_do_not_differ():
    gains = draw((2, 53), 0, 5)
    assert compare(gains[:1], gains[:1]) == (0.0, (0.0, 0.0), 1.0)


def test_other_histories_are_refused():
    with pytest.raises(ValueError, match="needs the same histories for both, got 5 and 6"):
        compare(np.zeros((1, 5)), np.zeros((1, 6)))


def test_each_metric_is_compared_as_if_alone():
    first, second = draw((3, 2, 97), 0.1, 6), draw((3, 4, 97), 0, 7)
    together = paired_bootstrap(first, second)
    assert together == [compare(*pair) for pair in zip(first, second, strict=True)]


def test_counted_pairs_of_ranks_are_compared_as_the_users_that_have_them():
    generator = np.random.default_rng(9)
    ranks = generator.geometric(0.08, size=(2, 701))
    ranks[1, ::3] = ranks[0, ::3]  # users for whom there is no difference
    config = EvaluationConfig(ks=[3, 10], num_bootstrap_samples=800)
    shares = [Share(np.arange(701), torch.from_numpy(each), None, None, {}) for each in ranks]
    counted = find_differences_of_shares(*shares, config)
    single = find_differences(ranks[:1], ranks[1:], config)
    assert counted.keys() == single.keys()
    for name, ours in counted.items():
        assert ours["difference"] == pytest.approx(single[name]["difference"], abs=1e-12)
        assert ours["interval"] == pytest.approx(single[name]["interval"], abs=2e-3)
        assert ours["p_value"] == pytest.approx(single[name]["p_value"], abs=0.03)
