import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

PATH = Path(__file__).parents[2] / "bert4rec_hf" / "evaluation" / "ranking_metric.py"


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(str(PATH), cache_dir=str(tmp_path))


def test_lists_of_raw_items_are_measured(metric):
    values = metric.compute(
        predictions=[["dune", "alien", "heat"], ["heat", "dune", "alien"]],
        references=["alien", "brazil"],
        k=[1, 3],
    )
    assert values == {
        "hit_rate@1": 0.0,
        "hit_rate@3": 0.5,
        "ndcg@1": 0.0,
        "ndcg@3": pytest.approx(0.5 / math.log2(3)),
        "mrr@1": 0.0,
        "mrr@3": 0.25,
    }


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list])
def test_lists_of_ids_are_measured(metric, kind):
    values = metric.compute(predictions=kind([[4, 5, 6], [7, 8, 9]]), references=kind([6, 7]), k=2)
    assert values == {"hit_rate@2": 0.5, "ndcg@2": 0.5, "mrr@2": 0.5}


def test_batches_add_up(metric):
    metric.add_batch(predictions=[[4, 5]], references=[5])
    metric.add_batch(predictions=[[4, 5], [6, 7]], references=[8, 6])
    assert metric.compute(k=2)["mrr@2"] == pytest.approx((0.5 + 0 + 1) / 3)


def test_a_list_that_is_too_short_is_named(metric):
    with pytest.raises(ValueError, match="prediction 1 has 2 items, too few for k = 3"):
        metric.compute(predictions=[[4, 5, 6], [7, 8]], references=[6, 7], k=[1, 3])


@pytest.mark.parametrize(
    ("predictions", "references", "hits"),
    [
        ([["0108775015", "108775015"]], ["108775015"], (0.0, 1.0)),
        ([["0132793040", "x"], ["B000000001", "B000000002"]], ["0132793040", "x"], (0.5, 0.5)),
        ([["9223372036854775809", "5"]], ["9223372036854775809"], (1.0, 1.0)),
        ([[9223372036854775809, 5]], ["5"], (0.0, 1.0)),
    ],
)
def test_items_are_texts_whatever_they_resemble(metric, predictions, references, hits):
    values = metric.compute(predictions=predictions, references=references, k=[1, 2])
    assert (values["hit_rate@1"], values["hit_rate@2"]) == hits


def test_single_histories_add_up(metric):
    metric.add(prediction=["07", "7"], reference="7")
    assert metric.compute(k=[1, 2])["mrr@2"] == 0.5
