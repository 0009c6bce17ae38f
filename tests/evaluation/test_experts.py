import math

import numpy as np
import pytest
import torch

from bert4rec_hf.evaluation.experts import describe_experts


def test_a_gate_that_mixes_all_alike_tells_nothing():
    experts = describe_experts(torch.tensor([[0.25, 0.75]]).expand(7, 2), np.arange(1, 8))
    assert experts["information_bits"] == pytest.approx(0, abs=1e-12)
    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert experts["effective_experts"] == pytest.approx(2**entropy)
    assert experts["mean"] == [0.25, 0.75]
    assert experts["deviation"] == [0, 0]
    assert experts["top_share"] == [0, 1]
    assert experts["histogram"] == [[0, 0, 7, *[0] * 7], [*[0] * 7, 7, 0, 0]]


def test_a_gate_that_gives_each_user_an_expert_tells_all():
    experts = describe_experts(torch.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]], np.array([3] * 4 + [60] * 4))
    assert experts["information_bits"] == pytest.approx(2)
    assert experts["effective_experts"] == pytest.approx(1)
    assert experts["mean_by_length"] == {"0-4": [0.25] * 4, "50-99": [0.25] * 4}


def test_weights_are_told_by_length_of_the_history():
    weights = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    experts = describe_experts(weights, np.array([2, 3, 7]))
    assert experts["mean_by_length"]["0-4"] == pytest.approx([0.7, 0.3])
    assert experts["mean_by_length"]["5-9"] == pytest.approx([0.2, 0.8])
    assert experts["top_share"] == pytest.approx([2 / 3, 1 / 3])
