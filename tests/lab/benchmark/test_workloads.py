import numpy as np
import pytest
import torch

from bert4rec_hf.lab.benchmark.bert4rec import build_config
from bert4rec_hf.lab.benchmark.task import Task
from bert4rec_hf.lab.benchmark.workloads import SHAPES, WORKLOADS, draw_histories
from bert4rec_hf.modeling import BERT4RecForMaskedItemModeling


@pytest.mark.parametrize(
    ("name", "mean", "median", "longest"),
    [("electronics", 9.7, 7, 50), ("beauty", 6.7, 4, 50), ("movielens", 111, 93, 200)],
)
def test_lengths_are_those_of_the_dataset(name, mean, median, longest):
    lengths = draw_histories(WORKLOADS[name], seed=0).lengths
    assert lengths.mean() == pytest.approx(mean, rel=0.02)
    assert np.median(lengths) == pytest.approx(median, abs=3)
    assert lengths.min() == WORKLOADS[name].min_length
    assert lengths.max() == longest


def test_popularity_falls_as_the_exponent_says():
    workload = WORKLOADS["movielens"]
    values = draw_histories(workload, seed=0).values
    counts = -np.sort(-np.bincount(values, minlength=workload.num_items + 2))
    assert counts[0] / counts[99] == pytest.approx(100**0.7, rel=0.1)


def test_ids_are_items_and_a_seed_draws_the_same_again():
    workload = WORKLOADS["movielens"]
    first, again, other = (draw_histories(workload, seed) for seed in (3, 3, 4))
    assert first.values.min() == 2
    assert first.values.max() == workload.num_items + 1
    np.testing.assert_array_equal(first.values, again.values)
    assert len(first.values) != len(other.values) or (first.values != other.values).any()


@pytest.mark.parametrize(
    ("name", "millions"), [("5m", 5), ("85m", 85), ("130m", 130), ("430m", 430)]
)
def test_a_shape_is_named_by_its_parameters(name, millions):
    task = Task(contestant="full_softmax", workload=WORKLOADS["electronics"], shape=SHAPES[name])
    with torch.device("meta"):
        model = BERT4RecForMaskedItemModeling(build_config(task, "full_softmax"))
    parameters = sum(weight.numel() for weight in model.parameters())
    assert parameters == pytest.approx(millions * 1e6, rel=0.04)
