"""The optimizer and the rate it runs at."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from bert4rec_hf.config import TrainingConfig


class RowAdamW(AdamW):
    """AdamW that also takes row-sparse gradients, and then touches no other row.

    Each row of such a parameter is stepped as `torch.optim.AdamW` steps a parameter of its own
    that has no gradient in the other steps: its moments, its bias correction and its decay count
    the steps it took part in. Groups with `by_row` are stepped so even if their gradient is dense
    (that of a compiled model is); rows of zeros have then taken no part.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # The fused kernel looks for overflow in fp16 itself; rows need the scaler to do so.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Step the rows, then all else as AdamW does."""
        grads = {}
        for group in self.param_groups:
            for table in group["params"] if group.get("by_row") else ():
                if table.grad is not None:
                    self._step_rows(table, group)
                    grads[table], table.grad = table.grad, None
        super().step(closure)
        for table, grad in grads.items():
            table.grad = grad

    def _step_rows(self, table: Tensor, group: dict) -> None:
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(len(table), device=table.device)
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table)
        rows, grad = rows_of(table.grad)
        beta1, beta2 = group["betas"]
        step, exp_avg, exp_avg_sq = (
            state[name].index_select(0, rows) for name in ("step", "exp_avg", "exp_avg_sq")
        )
        step += 1
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        for name, value in (("step", step), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
            state[name].index_copy_(0, rows, value)
        step = step.double().unsqueeze(1)
        size = (group["lr"] / (1 - beta1**step)).to(table.dtype)
        root = exp_avg_sq.sqrt_().div_((1 - beta2**step).sqrt_().to(table.dtype))
        change = exp_avg.div_(root.add_(group["eps"])).mul_(size)
        kept = table.index_select(0, rows).mul_(1 - group["lr"] * group["weight_decay"])
        table.index_copy_(0, rows, kept.sub_(change))


def rows_of(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows have a gradient, and which.

    Args:
        grad: (rows, hidden) sparse by row; or dense, where rows of zeros have none.

    Returns:
        (touched,) and (touched, hidden).
    """
    if grad.is_sparse:
        grad = grad.coalesce()
        return grad.indices()[0], grad.values()
    rows = grad.any(dim=1).nonzero().squeeze(1)
    return rows, grad[rows]


def item_tables(model: nn.Module) -> list[Tensor]:
    """Item tables that are trained, a tied one once."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = dict.fromkeys(layer.weight for layer in layers if hasattr(layer, "weight"))
    return [table for table in tables if table.requires_grad]


def row_tables(model: nn.Module) -> list[Tensor]:
    """Tables whose gradient is sparse by row: the item tables of a model that says so."""
    return item_tables(model) if getattr(model, "has_row_gradients", False) else []


def build_optimizer(model: nn.Module, config: TrainingConfig) -> AdamW:
    """AdamW over what is trainable; weight decay spares norms and biases.

    Each group has its `rate`, by which the learning rate is multiplied.
    """
    tables, by_row = set(item_tables(model)), bool(row_tables(model))
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in trainable if w.ndim > 1 and w not in tables], "rate": 1.0},
        {"params": [w for w in trainable if w.ndim <= 1], "rate": 1.0, "weight_decay": 0.0},
        {
            "params": [w for w in trainable if w in tables],
            "rate": config.item_learning_rate_factor,
            "by_row": by_row,
        },
    ]
    for group in groups:
        group["lr"] = config.learning_rate * group["rate"]
    kind = RowAdamW if by_row else AdamW
    return kind(groups, weight_decay=config.weight_decay, fused=True)


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
