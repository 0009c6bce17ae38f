"""How likely a model holds the items that came next, in nats."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from bert4rec_hf.evaluation.ranking import FIRST_ITEM_ID, HISTORIES_AT_ONCE, Scorer


@torch.no_grad()
def cross_entropy(scorer: Scorer, histories: Sequence[np.ndarray], targets: np.ndarray) -> float:
    """Mean cross-entropy of the targets against the whole catalog, seen items included.

    Args:
        scorer: Whose scores are logits.
        histories: Items before the target, oldest first, as arrays of ids.
        targets: (histories,) ids of the held-out items.

    Returns:
        Nats; that of a uniform guess is the logarithm of the number of items.
    """
    total = 0.0
    for start in range(0, len(histories), HISTORIES_AT_ONCE):
        rows = range(start, min(start + HISTORIES_AT_ONCE, len(histories)))
        scores = scorer.score(
            scorer.encode([histories[row] for row in rows]), FIRST_ITEM_ID, scorer.vocab_size
        )
        columns = torch.tensor(targets[rows.start : rows.stop], device=scores.device).long()
        total += F.cross_entropy(scores, columns - FIRST_ITEM_ID, reduction="sum").item()
    return total / len(histories)
