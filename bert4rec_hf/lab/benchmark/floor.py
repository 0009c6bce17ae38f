"""What a step cannot do without: its matrix products, and on a GPU the optimizer's bytes.

In it, at the mean size of the workload's own batches, in the dtype of the precision: the linear
layers of the encoder on real items (in the last layer, all but keys and values on masked ones) and
the products of attention, each forward and twice backward (with respect to what was read and to the
weight); the head's three products on masked items with the whole catalog, or with the negatives;
and on a GPU what AdamW reads and writes of weights, gradients and both moments in float32, for all
weights or, with negatives, for the encoder and the item rows that have a gradient.

Not in it: embedding lookups, norms, activations, dropout, softmax, losses, clipping, allocation and
collation. Every buffer is there beforehand.
"""

from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from bert4rec_hf.lab.benchmark.bert4rec import (
    build_accelerator,
    build_config,
    build_loader,
    count_items,
)
from bert4rec_hf.lab.benchmark.task import Task, Work, refuse_flags
from bert4rec_hf.modeling import BERT4RecForMaskedItemModeling

IGNORE_INDEX = -100
NUM_BATCHES_COUNTED = 64
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class BatchSize(NamedTuple):
    """What the cost of a batch depends on."""

    items: float
    masked: float
    squares: float
    """Sum over histories of the squared length."""

    item_rows: float
    """Different ids, as input or label."""


class Product:
    """A linear layer's product, rows (inner) by a weight (columns, inner), and its backward."""

    def __init__(self, *sizes: int, dtype: torch.dtype, device: torch.device):
        *batch, rows, columns, inner = sizes
        make = {"dtype": dtype, "device": device}
        self.read = torch.randn(*batch, rows, inner, **make)
        self.weight = torch.randn(*batch, columns, inner, **make)
        self.written = torch.randn(*batch, rows, columns, **make)
        self.read_grad, self.weight_grad = (
            torch.zeros_like(each) for each in (self.read, self.weight)
        )

    def run(self) -> None:
        torch.matmul(self.read, self.weight.mT, out=self.written)
        torch.matmul(self.written, self.weight, out=self.read_grad)
        torch.matmul(self.written.mT, self.read, out=self.weight_grad)


class FloorContestant:
    """The floor under full softmax, or under an objective with negatives."""

    def __init__(self, task: Task, *, is_sampled: bool):
        refuse_flags(task, "adapter")
        self.task, self.is_sampled = task, is_sampled
        self.accelerator = build_accelerator(task)
        unfilled = replace(task, settings=replace(task.settings, pad_to_multiple_of=1))
        loader = build_loader(unfilled, is_sampled=is_sampled)
        sizes = [measure_batch(batch) for batch in islice(loader, NUM_BATCHES_COUNTED)]
        self.size = BatchSize(*(sum(column) / len(sizes) for column in zip(*sizes, strict=True)))

    def build(self) -> None:
        device = self.accelerator.device
        make = {"dtype": DTYPES[self.task.settings.precision], "device": device}
        self.products = [
            Product(*sizes, **make)
            for sizes in product_sizes(self.task, self.size, is_sampled=self.is_sampled)
        ]
        moved = self._count_optimized_weights() if device.type == "cuda" else 0
        # AdamW reads four numbers per weight and writes three; a copy reads one and writes one.
        self.source, self.copy = torch.zeros(2, 7 * moved // 2, device=device)

    @torch.no_grad()
    def train(self, batches: int) -> Work:
        for _ in range(batches):
            for product in self.products:
                product.run()
            self.copy.copy_(self.source)
        return Work(batches * self.task.settings.batch_size, round(batches * self.size.items))

    def _count_optimized_weights(self) -> int:
        with torch.device("meta"):
            model = BERT4RecForMaskedItemModeling(build_config(self.task, "full_softmax"))
        if not self.is_sampled:
            return sum(weight.numel() for weight in model.parameters())
        encoder = sum(weight.numel() for weight in model.model.layers.parameters())
        rows = self.size.item_rows + self.task.settings.num_negatives
        return encoder + round(rows * self.task.shape.hidden_size)


def measure_batch(batch: dict[str, Tensor]) -> BatchSize:
    """Read off a batch without filler what its cost depends on."""
    lengths = batch["cu_seq_lens_q"].diff()
    labels = batch["labels"][batch["labels"] != IGNORE_INDEX]
    ids = torch.cat([batch["input_ids"].flatten(), labels])
    squares = lengths.double().square().sum().item()
    return BatchSize(count_items(batch).item(), len(labels), squares, len(ids.unique()))


def product_sizes(task: Task, size: BatchSize, *, is_sampled: bool) -> list[tuple[int, ...]]:
    """List rows, columns and inner size of all products of a step, any batch in front.

    Attention is computed as over histories of one length, whose square is the mean of the squares.
    The last layer needs keys and values of all items, but all else at masked items only.
    """
    histories = task.settings.batch_size
    items, masked = round(size.items), round(size.masked)
    length = round((size.squares / histories) ** 0.5)
    masked_length = max(1, round(length * masked / items))
    layer = layer_sizes(task, items, items, length, length)
    last = layer_sizes(task, items, masked, length, masked_length)
    scored = task.settings.num_negatives if is_sampled else task.workload.num_items
    head = (masked, scored, task.shape.hidden_size)
    return [*layer * (task.shape.num_layers - 1), *last, head]


def layer_sizes(
    task: Task, items: int, wanted: int, length: int, wanted_length: int
) -> list[tuple[int, ...]]:
    """List the products of one layer whose states are wanted at some of its items only.

    Args:
        task: Its shape and its histories per batch.
        items: Of all histories.
        wanted: Items whose states are wanted.
        length: Items of one history.
        wanted_length: Of these, those that are wanted.
    """
    hidden = task.shape.hidden_size
    heads = task.settings.batch_size * task.shape.num_heads
    head_dim = hidden // task.shape.num_heads
    return [
        (items, 2 * hidden, hidden),  # keys and values
        (wanted, hidden, hidden),  # queries
        (heads, wanted_length, length, head_dim),  # weights of attention
        (heads, wanted_length, head_dim, length),  # values by these weights
        (wanted, hidden, hidden),
        (wanted, 4 * hidden, hidden),
        (wanted, hidden, 4 * hidden),
    ]
