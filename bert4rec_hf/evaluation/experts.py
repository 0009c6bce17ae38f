"""How a mixture's experts are shared among users, measured by their gate weights."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .evaluator import LENGTH_GROUPS, split_groups


def describe_experts(gate_weights: Tensor, lengths: np.ndarray) -> dict[str, Any]:
    """Summarize gate weights over users.

    The information in bits is what knowing the user tells about the expert: 0 if all users are
    mixed alike, as by a constant gate, and log2(experts) if each has one expert and all are used.

    >>> split = describe_experts(torch.eye(2), np.array([3, 4]))
    >>> split["information_bits"], split["mean"], split["top_share"]
    (1.0, [0.5, 0.5], [0.5, 0.5])

    Args:
        gate_weights: (histories, experts), which sum to one.
        lengths: (histories,) items of each.

    Returns:
        By expert `mean` and `deviation` of its weight and the `top_share` of users it weighs most
        for; `information_bits`; `effective_experts`, 2 to the mean entropy of a user's weights;
        `mean_by_length`; and the `histogram` of each weight in ten equal bins from 0 to 1.
    """
    weights = gate_weights.double()
    num_experts = weights.shape[1]
    mean = weights.mean(dim=0)
    own = _entropy_bits(weights).mean()
    top = torch.bincount(weights.argmax(dim=1), minlength=num_experts) / len(weights)
    return {
        "mean": mean.tolist(),
        "deviation": weights.std(dim=0, correction=0).tolist(),
        "top_share": top.tolist(),
        "information_bits": (_entropy_bits(mean) - own).clamp(min=0).item(),
        "effective_experts": (2**own).item(),
        "mean_by_length": {
            name: weights[torch.as_tensor(chosen)].mean(dim=0).tolist()
            for name, chosen in split_groups(lengths, LENGTH_GROUPS)
        },
        "histogram": [
            torch.histc(weight, bins=10, min=0, max=1).long().tolist() for weight in weights.T
        ],
    }


def _entropy_bits(weights: Tensor) -> Tensor:
    return torch.special.entr(weights).sum(dim=-1) / np.log(2)
