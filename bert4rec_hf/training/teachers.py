"""Trained models whose averaged predictions another one learns: an ensemble in one model.

Distillation as Hinton et al. have it, 2015, https://arxiv.org/abs/1503.02531.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor | int]

NUM_KEPT = 256
"""Items whose probabilities are learned at each masked position, at most."""

NOT_READ = ("labels", "masked_positions", "negatives", "negative_log_counts")
"""What a batch has for the loss alone."""


class Teachers:
    """Say what teachers expect at the masked positions of a batch.

    That is softmax(mean of their log-probabilities), of which the most probable items are kept. The
    rest of 1, the part `1 - weight` included, is left to the masked item itself.

    Args:
        models: BERT4Rec models of one catalog, on the device of the batches.
        weight: What all probabilities together count.
        max_scores: Scores that are held at once, at most.
    """

    def __init__(self, models: Sequence[nn.Module], weight: float, max_scores: int):
        self.models = [model.eval().requires_grad_(False) for model in models]
        self.weight = weight
        num_items = models[0].config.num_items
        self.num_kept = min(NUM_KEPT, num_items)
        # Their sum is held, and those of one teacher.
        self.run = max(1, max_scores // (2 * num_items))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        """Add `soft_target_ids` and `soft_target_weights`, (masked, kept), to a packed batch."""
        inputs = {name: value for name, value in batch.items() if name not in NOT_READ}
        positions = batch["masked_positions"]
        # Of filler there are no labels, and what is said of it does not matter.
        targets = batch["labels"].flatten()[positions].clamp(min=0)
        read = [model.encode_masked(positions, **inputs) for model in self.models]
        ids, weights = [], []
        for start in range(0, len(positions), self.run):
            part = slice(start, start + self.run)
            scores = torch.zeros((), device=positions.device)
            for model, (hidden, recent) in zip(self.models, read, strict=True):
                recent = None if recent is None else recent[part]
                # As good as log-probabilities, which differ by one number for all items.
                scores = scores + model.score_masked(hidden[part], recent, targets[part]).float()
            scores /= len(self.models)
            best = scores.topk(self.num_kept, dim=1, sorted=False)
            ids.append(best.indices)
            weights.append((best.values - scores.logsumexp(dim=1, keepdim=True)).exp())
        return batch | {
            "soft_target_ids": torch.cat(ids),
            "soft_target_weights": self.weight * torch.cat(weights),
        }
