"""Why an item is recommended: what each item of the history adds, and how a gate mixes."""

from collections.abc import Sequence

import torch
from peft import PeftModel

from bert4rec_hf.evaluation.model_scorer import append_masks
from bert4rec_hf.tuners import ILoraModel

from .recommender import Recommender


def leave_one_out(recommender: Recommender, history: Sequence[str], item: str) -> list[float]:
    """Score an item again without each item of the history.

    Args:
        recommender: A trained model.
        history: Raw items, oldest first; at least two.
        item: What was recommended.

    Returns:
        One number per item of the history: by how much the score falls without it.

    Raises:
        ValueError: The history has a single item, without which nothing is left to read.
    """
    if len(history) < 2:
        raise ValueError(
            f"leaving one item out needs a history of at least two, got {len(history)}"
        )
    shorter = [[*history[:place], *history[place + 1 :]] for place in range(len(history))]
    rows = recommender.recommend([history, *shorter], 1, candidates=[item], exclude_seen=False)
    whole, *parts = (row[0].score for row in rows)
    return [whole - part for part in parts]


@torch.no_grad()
def read_gate(recommender: Recommender, history: Sequence[str]) -> list[float]:
    """Read how an iLoRA adapter mixes its experts for a history; empty for any other model."""
    model = recommender.scorer.model
    if not isinstance(model, PeftModel) or not isinstance(model.base_model, ILoraModel):
        return []
    inputs = append_masks([recommender.vocabulary.encode(history)], model.config, model.device)
    return model.base_model.gate_weights(**inputs)[0].tolist()
