import pytest
import torch
from torch import nn
from transformers import get_scheduler

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.training.optimizer import build_optimizer, learning_rate


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_schedule_is_that_of_transformers(schedule):
    config = TrainingConfig(learning_rate=0.3, max_steps=20, warmup_ratio=0.25, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    reference = get_scheduler(schedule, optimizer, num_warmup_steps=5, num_training_steps=20)
    for step in range(20):
        # Theirs begins at zero, so that its first step is lost; ours is one step ahead in warmup.
        if step >= 5:
            assert learning_rate(step, config) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert [learning_rate(step, config) for step in range(5)] == pytest.approx(
        [0.06, 0.12, 0.18, 0.24, 0.3]
    )


def test_a_constant_schedule_stays_at_its_peak():
    config = TrainingConfig(learning_rate=0.3, max_steps=4, warmup_ratio=0, schedule="constant")
    assert [learning_rate(step, config) for step in range(4)] == [0.3] * 4


def test_weight_decay_spares_norms_biases_and_what_is_frozen():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2), nn.LayerNorm(2))
    model[0].weight.requires_grad_(False)
    config = TrainingConfig(learning_rate=1e-3, weight_decay=0.7)
    decayed, spared = build_optimizer(model, config).param_groups
    assert [id(weight) for weight in decayed["params"]] == [id(model[1].weight)]
    assert [tuple(weight.shape) for weight in spared["params"]] == [(2,), (2,), (2,)]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.7, 0.0)
