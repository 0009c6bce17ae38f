"""What a gate sees of a history, and how it weighs the experts."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .prefixes import Prefixes

INITIAL_DEVIATION = 0.1
"""The largest of four weights is then .28 on average, and not .25."""

EPSILON = 1e-12
"""Far below the variance of any summary, those of a freshly initialized table included."""


@torch.no_grad()
def summarize_prefixes(embeddings: Tensor, prefixes: Prefixes) -> Tensor:
    """Average the item embeddings of each prefix, then bring the average to mean 0, variance 1.

    A gate thus sees numbers of order one, whatever the scale of the table. A masked item counts as
    the mask it was replaced by. A row depends on its own prefix alone: not on what follows it, and
    not on how the batch is laid out. No gradient flows through it.

    Args:
        embeddings: (batch, length, hidden) or, packed, (1, tokens, hidden)
        prefixes: What to read.

    Returns:
        (prefixes, hidden) at least float32; zeros where a prefix has no items.
    """
    rows = embeddings.flatten(0, 1)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if prefixes.is_item is None:
        sums, counts = _sum_runs(rows, prefixes), prefixes.stops - prefixes.starts
    else:
        sums = _sum_runs(rows * prefixes.is_item.unsqueeze(-1), prefixes)
        counts = F.pad(prefixes.is_item.cumsum(0), (1, 0))
        counts = counts[prefixes.stops] - counts[prefixes.starts]
    if prefixes.is_query is not None:
        sums = sums + rows * prefixes.is_query.unsqueeze(-1)
        counts = counts + prefixes.is_query
    means = sums / counts.clamp(min=1).unsqueeze(-1)
    return F.layer_norm(means, means.shape[-1:], eps=EPSILON)


def _sum_runs(rows: Tensor, prefixes: Prefixes) -> Tensor:
    """(prefixes, hidden) sums, each a difference of two running ones."""
    # In double precision, as running sums grow and their differences do not; Apple's GPUs lack it.
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    # Along the inner dimension, which GPUs sum in parallel.
    running = F.pad(rows.T.cumsum(1, dtype=exact), (1, 0)).T
    sums = running.index_select(0, prefixes.stops) - running.index_select(0, prefixes.starts)
    return sums.to(rows.dtype)


def spread(
    weights: Tensor, prefixes: Prefixes, batch: int, keep: Tensor | None
) -> tuple[Tensor, ...]:
    """Give every position the gate weights of its prefix, in each order that layers may see.

    Args:
        weights: (prefixes, experts)
        prefixes: Who reads which.
        batch: Rows of the batch.
        keep: (kept,) positions that the last layer goes on with, counted through the rows.

    Returns:
        (batch, length, experts) or (1, tokens, experts); and (1, kept, experts), given keep.
    """
    every = weights[prefixes.of_positions]
    rows = every.unflatten(0, (batch, -1))
    return (rows,) if keep is None else (rows, every[keep].unsqueeze(0))


class InstanceGate(nn.Linear):
    """Weigh the experts by what a history is like; the paper's gate.

    A fresh one weighs them nearly alike, so that no expert is left behind for how it was drawn: its
    logits have a deviation of INITIAL_DEVIATION.
    """

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=INITIAL_DEVIATION * self.in_features**-0.5)
        nn.init.zeros_(self.bias)

    def forward(self, summary: Tensor) -> Tensor:
        return super().forward(summary.to(self.weight.dtype))


class ConstantGate(nn.Module):
    """Weigh the experts by learned numbers, the same for every history; a control."""

    def __init__(self, _: int, num_experts: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_experts))

    def forward(self, summary: Tensor) -> Tensor:
        return self.logits.expand(len(summary), -1)


class UniformGate(nn.Module):
    """Weigh all experts the same, which is plain LoRA; a control."""

    def __init__(self, _: int, num_experts: int):
        super().__init__()
        self.num_experts = num_experts

    def forward(self, summary: Tensor) -> Tensor:
        return summary.new_zeros(len(summary), self.num_experts)


GATES: dict[str, Callable[[int, int], nn.Module]] = {
    "instance": InstanceGate,
    "constant": ConstantGate,
    "uniform": UniformGate,
}
"""From hidden size and number of experts to a module: (prefixes, hidden) → (prefixes, experts)"""
