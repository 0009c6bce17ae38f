"""What a training step and a ranking compute and move, counted from a model and its batches.

Nothing is run: the model has no weights, and batches are those that training would read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate.utils import DistributedType, DynamoBackend
from torch import Tensor, nn

from bert4rec_hf.experiment.measurement import count_parameters
from bert4rec_hf.training.memory import MemoryEstimate, estimate_memory
from bert4rec_hf.training.optimizer import row_tables

Batch = dict[str, Tensor | int]

FORWARD, TRAINING = 2, 6
"""Operations per weight and item: two forward, four more backward (Kaplan et al., 2020,
https://arxiv.org/abs/2001.08361, section 2.1)."""

MOVED_BY_ADAMW = 7
"""Numbers per weight: weight, gradient and two moments are read, all but the gradient written."""

PASSES_OVER_SCORES = 4
"""They are written, turned into their gradient, and read by two products."""


class Work(NamedTuple):
    """What has to be done, whoever does it."""

    operations: float
    """Floating-point operations of the matrix products."""

    bytes: float
    """Read from and written to memory, the caches left aside."""

    def times(self, count: float) -> "Work":
        """The same so many times."""
        return Work(self.operations * count, self.bytes * count)


class Launch:
    """What the memory estimate asks of an accelerator, for a device that need not be here."""

    num_processes = 1
    distributed_type = DistributedType.NO
    device = torch.device("cpu")  # where shapes are gone through

    def __init__(self, precision: str = "no", accumulation_steps: int = 1):
        self.mixed_precision, self.gradient_accumulation_steps = precision, accumulation_steps
        plugin = type("Plugin", (), {"backend": DynamoBackend.NO})
        self.state = type("State", (), {"dynamo_plugin": plugin})

    def autocast(self) -> torch.autocast:
        """In bf16 for either of the half precisions, which take the same space."""
        is_half = self.mixed_precision != "no"
        return torch.autocast("cpu", torch.bfloat16, enabled=is_half)


def estimate_step(
    model: nn.Module, batch: Batch, launch: Launch, device: str, scores_at_once: int
) -> MemoryEstimate:
    """Estimate the memory of a step as training does before its first, on `cpu` or `cuda`."""
    heap = {} if device == "cpu" else {"heap_bytes": 0}
    return estimate_memory(model, batch, launch, scores_at_once, **heap)


def count_step(model: nn.Module, batches: Sequence[Batch], launch: Launch) -> Work:
    """Count a training step, one batch each, in the mean over some batches."""
    return mean_work([_count_batch(model, batch, launch) for batch in batches])


def mean_work(works: Sequence[Work]) -> Work:
    """The mean of several."""
    return Work(*(sum(column) / len(works) for column in zip(*works, strict=True)))


def _count_batch(model: nn.Module, batch: Batch, launch: Launch) -> Work:
    config, size = model.config, count_parameters(model)
    items, masked = batch["input_ids"].numel(), len(batch["masked_positions"])
    squares = batch["cu_seq_lens_q"].diff().double().square().sum().item()
    num_negatives = len(batch.get("negatives", ()))
    scored = num_negatives + 1 if num_negatives else config.num_items
    operations = TRAINING * (size["encoder"] * items + config.hidden_size * scored * masked)
    # Weights of attention, and values by these weights.
    operations += TRAINING * 2 * config.hidden_size * squares * config.num_hidden_layers
    number = 4 if launch.mixed_precision == "no" else 2
    saved = estimate_memory(model, batch, launch, 1, heap_bytes=0).activations
    rows = items + masked + num_negatives if row_tables(model) else 0
    stepped = size["encoder"] + rows * config.hidden_size if rows else size["trainable"]
    moved = 2 * saved + PASSES_OVER_SCORES * number * masked * scored
    return Work(operations, moved + MOVED_BY_ADAMW * 4 * stepped)


def count_ranking(model: nn.Module, length: float, passes: int = 1) -> Work:
    """Count what it takes to score the catalog for one user.

    Args:
        model: Whose encoder reads the history, a mask behind it.
        length: Items that it reads of a history, in the mean.
        passes: How often the catalog is scored; twice where its scores are not kept.
    """
    config, encoder = model.config, count_parameters(model)["encoder"]
    items = min(length + 1, config.max_history_length)
    attention = 2 * config.hidden_size * items**2 * config.num_hidden_layers
    head = passes * config.num_items * config.hidden_size
    operations = FORWARD * (encoder * items + attention + head)
    return Work(operations, PASSES_OVER_SCORES * 4 * passes * config.num_items)
