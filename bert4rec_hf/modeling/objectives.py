"""What training minimizes, as a function of the states at masked positions."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def full_softmax(
    states: Tensor, targets: Tensor, item_embeddings: Tensor, item_bias: Tensor | None
) -> Tensor:
    """Cross-entropy of the masked items against the whole catalog.

    Args:
        states: (masked, hidden) output of the head at masked positions.
        targets: (masked,) columns of the masked items in the catalog, from 0.
        item_embeddings: (candidates, hidden) one vector per item of the catalog.
        item_bias: (candidates,) one number per item, or None.

    Returns:
        Scalar, float32: the sum over masked items, so that any mean can be taken of it.
    """
    scores = F.linear(states, item_embeddings, item_bias)  # (masked, candidates)
    return F.cross_entropy(scores.float(), targets, reduction="sum")


Objective = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

OBJECTIVES: dict[str, Objective] = {"full_softmax": full_softmax}
