from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.evaluation.evaluator import EvaluationConfig
from bert4rec_hf.experiment.measurement import validate_model


class SteadyModel(torch.nn.Module):
    """Has the same state for every history, or one that is the newest item's row."""

    def __init__(self, follows: bool):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=402, max_history_length=9, mask_token_id=1)
        self.table = torch.nn.Parameter(torch.randn(402, 31, generator=torch.manual_seed(0)))
        self.follows = follows

    def next_item_states(self, input_ids, *, cu_seq_lens_q, max_length_q):
        newest = input_ids[0, cu_seq_lens_q[1:].long() - 2]
        return self.table[newest if self.follows else torch.full_like(newest, 7)]

    def next_item_neighbors(self, states, input_ids, **lengths):
        return None

    def read_head(self):
        return self.table, None


@pytest.mark.parametrize("follows", [True, False])
def test_validation_warns_of_a_collapse_and_of_nothing_else(follows, caplog):
    generator = np.random.default_rng(1)
    values = generator.integers(2, 402, size=1_200).astype(np.int32)
    targets = 2 + generator.permutation(400)[:300]
    split = Histories(values, np.arange(0, 1_201, 4), targets)
    metrics = validate_model(
        SteadyModel(follows), split, EvaluationConfig(ks=[10]), np.ones(402, dtype=np.int64)
    )
    assert metrics["coverage@10"] == metrics["recommended_items@10"] / 400
    if follows:
        assert metrics["recommended_items@10"] > 300
        assert caplog.text == ""
    else:
        count = metrics["recommended_items@10"]
        assert count < 30
        assert (
            "recommendations have collapsed on validation: the 10 best items of all histories are "
            f"{count} different ones, while their targets are 300; if it stays so, set "
            "model.objective to full_softmax, or data.negative_distribution to popularity"
        ) in caplog.text
