"""What a gate sees of a history, and how it weighs the experts."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-12
"""Far below the variance of any summary, those of a freshly initialized table included."""


@torch.no_grad()
def summarize_histories(
    embeddings: Tensor, attention_mask: Tensor | None, cu_seq_lens: Tensor | None
) -> Tensor:
    """Average the item embeddings of each history, then bring the average to zero mean, variance 1.

    A gate thus sees numbers of order one, whatever the scale of the table. A masked item counts as
    the mask it was replaced by. A row depends on its own history alone, and not on how the batch is
    laid out. No gradient flows through it.

    Args:
        embeddings: (batch, length, hidden) or, packed, (1, tokens, hidden)
        attention_mask: (batch, length) 0 for padding; of no use where histories are packed.
        cu_seq_lens: (histories + 1,) cumulative lengths of packed histories, else None.

    Returns:
        (histories, hidden) at least float32; zeros where a history has no items.
    """
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    if cu_seq_lens is None:
        counts = attention_mask.unsqueeze(-1).to(embeddings.dtype)
        means = (embeddings * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
    else:
        tokens = torch.arange(
            embeddings.shape[1], dtype=cu_seq_lens.dtype, device=cu_seq_lens.device
        )
        means = F.embedding_bag(tokens, embeddings[0], cu_seq_lens[:-1], mode="mean")
    return F.layer_norm(means, means.shape[-1:], eps=EPSILON)


def spread(
    weights: Tensor, length: int, cu_seq_lens: Tensor | None, keep: Tensor | None
) -> tuple[Tensor, ...]:
    """Give every position the gate weights of its history, in each order that layers may see.

    Args:
        weights: (histories, experts)
        length: Positions of a row of the batch.
        cu_seq_lens: (histories + 1,) cumulative lengths of packed histories, else None.
        keep: (kept,) positions that the last layer goes on with, counted through the rows.

    Returns:
        (batch, length, experts) or (1, tokens, experts); and (1, kept, experts), given keep.
    """
    if cu_seq_lens is None:
        every = weights.unsqueeze(1).expand(-1, length, -1)
    else:
        tokens = torch.arange(length, dtype=cu_seq_lens.dtype, device=cu_seq_lens.device)
        every = weights[torch.searchsorted(cu_seq_lens[1:], tokens, right=True)].unsqueeze(0)
    return (every,) if keep is None else (every, every.flatten(0, 1)[keep].unsqueeze(0))


class InstanceGate(nn.Linear):
    """Weigh the experts by what a history is like; the paper's gate."""

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
"""From hidden size and number of experts to a module: (histories, hidden) → (histories, experts)"""
