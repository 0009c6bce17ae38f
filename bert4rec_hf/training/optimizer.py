"""The optimizer and the rate it runs at."""

import math

from torch import nn
from torch.optim import AdamW

from bert4rec_hf.config import TrainingConfig


def build_optimizer(model: nn.Module, config: TrainingConfig) -> AdamW:
    """AdamW over what is trainable; weight decay spares norms and biases."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    return AdamW(
        [
            {"params": [w for w in trainable if w.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [w for w in trainable if w.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        fused=True,
    )


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Rate of one optimizer step, a function of the step alone, so that resuming needs no state.

    Args:
        step: Optimizer steps taken before, from 0.
        config: Peak rate, warmup and schedule.
    """
    warmup = round(config.max_steps * config.warmup_ratio)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(config.max_steps - warmup, 1)
    factor = {
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "constant": 1.0,
    }[config.schedule]
    return config.learning_rate * factor
