"""What a training step needs in memory, and what there is, told before the first one."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from transformers.modeling_layers import GradientCheckpointingLayer

from bert4rec_hf.training.cgroups import cgroup_room
from bert4rec_hf.training.item_shards import item_weights
from bert4rec_hf.training.limits import address_space_room
from bert4rec_hf.training.optimizer import row_tables
from bert4rec_hf.training.process_memory import peak_resident_bytes
from bert4rec_hf.training.sharding import find_units, is_sharded

Batch = dict[str, Tensor | int]

HEAP_BYTES = 2**25
"""Blocks up to this size share glibc's heap, where what is freed is seldom of use to the next one.

After some steps about twice as much as they hold is resident, seen at many shapes; setting
MALLOC_MMAP_THRESHOLD_=100000 in the environment avoids that.
"""

SAMPLED_SCORE_BYTES = {"sampled_softmax": 4 * 4 + 1, "gbce": 3 * 4 + 1}
"""Per score of a negative at the height of the backward pass: the scores, which of them are no
negatives, and what the gradient is computed from."""

SMALLER_BATCHES = (
    "lower training.batch_size and raise training.gradient_accumulation_steps by the same factor"
)
SHARDED_TABLE = "train on several processes and set training.item_table to sharded"
ADVICE = {
    "parameters": f"lower model.hidden_size or model.num_hidden_layers, or {SHARDED_TABLE}",
    "gradients": "lower model.hidden_size, or set model.objective to sampled_softmax and "
    "training.row_sparse to true, so that few rows of the item table have one",
    "optimizer_state": "lower model.hidden_size, or set model.tie_word_embeddings to true, or "
    f"{SHARDED_TABLE}",
    "activations": f"{SMALLER_BATCHES}, or set training.gradient_checkpointing to true, or launch "
    "with --mixed_precision bf16",
    "scores": f"{SMALLER_BATCHES}, or lower data.num_negatives",
}
"""What makes each part smaller."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that each process needs at the height of a training step, by what they hold."""

    parameters: int
    gradients: int
    optimizer_state: int
    activations: int
    """What the forward pass keeps for the backward pass."""

    scores: int
    """Those of masked items, as many as are held at once."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(vars(self).values())

    def __str__(self) -> str:
        parts = [f"{name.replace('_', ' ')} {_gb(part)}" for name, part in vars(self).items()]
        return f"{_gb(self.total)} GB ({', '.join(parts)})"


def estimate_memory(
    model: nn.Module,
    batch: Batch,
    accelerator: Accelerator,
    max_scores: int,
    *,
    shards_items: bool = False,
    heap_bytes: int | None = None,
) -> MemoryEstimate:
    """Work out what `TrainingRun` will need, in less than a second and next to no memory.

    Args:
        model: As training gets it, or the same on the meta device; put into training mode.
        batch: A packed one of the run.
        accelerator: Tells device, precision, processes and accumulation.
        max_scores: Scores that the full softmax holds at once, at most.
        shards_items: Whether the item table is dealt out to the processes, see ItemShards.
        heap_bytes: In place of HEAP_BYTES on a CPU and 0 elsewhere; for a device that is not here.
    """
    if heap_bytes is None:
        heap_bytes = HEAP_BYTES if accelerator.device.type == "cpu" else 0
    shards = accelerator.num_processes if is_sharded(accelerator) else 1
    trainable = _num_bytes(_trainable(model.parameters()))
    elsewhere, fetched = 0, 0
    if shards_items:
        tables = _num_bytes(item_weights(model))
        elsewhere = tables - tables // accelerator.num_processes
        fetched = _named_rows(batch) * sum(_num_bytes([each[0]]) for each in item_weights(model))
    return MemoryEstimate(
        parameters=_num_bytes(model.parameters()) // shards
        - elsewhere
        + _num_bytes(model.buffers())
        + _gathered_bytes(model, accelerator)
        + fetched,
        gradients=_gradient_bytes(model, batch, accelerator) + fetched,
        optimizer_state=2 * (trainable // shards - elsewhere),
        activations=_activation_bytes(model, batch, accelerator, heap_bytes),
        scores=_score_bytes(model, batch, accelerator, max_scores),
    )


def check_memory(estimate: MemoryEstimate, available: int) -> None:
    """Refuse what cannot fit, before it fails halfway.

    An estimate can be wrong: `bert4rec train --ignore-memory-estimate` goes on all the same.

    Args:
        estimate: What a step needs.
        available: Bytes that the process may take.

    Raises:
        ValueError: It needs more than that.
    """
    if estimate.total > available:
        largest = max(vars(estimate), key=vars(estimate).get)
        raise ValueError(
            f"a training step needs {estimate} and {_gb(available)} GB are available; the largest "
            f"part is {largest.replace('_', ' ')}: to shrink it, {ADVICE[largest]}; if the "
            "estimate is wrong, train with --ignore-memory-estimate"
        )


def check_start(start: int, parameters: int, available: int) -> None:
    """Refuse initial item embeddings that cannot be worked out beside the model's weights.

    Args:
        start: Bytes that the counting and factorizing takes; 0 where there is none.
        parameters: Bytes of the weights.
        available: Bytes that the process may take.

    Raises:
        ValueError: There is not as much.
    """
    if start and start + parameters > available:
        raise ValueError(
            f"the start from co-occurrence needs {_gb(start)} GB beside {_gb(parameters)} GB of "
            f"weights, and {_gb(available)} GB are available; set training.item_initialization to "
            "random, or lower model.hidden_size; if the estimate is wrong, train with "
            "--ignore-memory-estimate"
        )


def available_memory(accelerator: Accelerator) -> int:
    """Bytes that this process may take on its device."""
    if accelerator.device.type == "cuda":
        return torch.cuda.mem_get_info(accelerator.device)[0]
    return host_memory(accelerator)


def host_memory(accelerator: Accelerator) -> int:
    """Bytes that this process may take beside its device; processes share what there is."""
    num_neighbors = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    shared = min(psutil.virtual_memory().available, *cgroup_room()) // num_neighbors
    return min(shared, *address_space_room(), shared)


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held so far: on its GPU, else resident, libraries too."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def _activation_bytes(
    model: nn.Module, batch: Batch, accelerator: Accelerator, heap_bytes: int
) -> int:
    """What the forward pass keeps; layers that run again keep their input, and one all it makes."""
    checkpointed = [
        layer
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing
    ]
    if not checkpointed:
        return _saved_bytes(model, batch, accelerator, heap_bytes)
    for layer in checkpointed:
        layer.gradient_checkpointing = False
    saved = _saved_bytes(model, batch, accelerator, heap_bytes)
    for layer in checkpointed:
        layer.gradient_checkpointing = True
    inputs = 4 * batch["input_ids"].numel() * model.get_input_embeddings().weight.shape[1]
    return len(checkpointed) * inputs + saved // len(checkpointed)


def _saved_bytes(model: nn.Module, batch: Batch, accelerator: Accelerator, heap_bytes: int) -> int:
    """What the forward pass saves, weights and scores left out.

    It is gone through with tensors that have a shape and a device, but no numbers.
    """
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        saved[_storage(tensor)] = tensor
        return tensor

    def imitate(tensor: Tensor) -> Tensor:
        # Without its number, which accelerate gives to a CPU, too, and which tensors there lack.
        device = accelerator.device.type
        imitation = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        return imitation.requires_grad_(tensor.requires_grad)

    model.train()
    # A tuner may hold a table that no module of the model shows.
    faking = FakeTensorMode(allow_non_fake_inputs=True)
    with faking, accelerator.autocast(), saved_tensors_hooks(save, lambda kept: kept):
        state = {name: imitate(weight) for name, weight in model.named_parameters()}
        state |= {name: imitate(buffer) for name, buffer in model.named_buffers()}
        inputs = {
            name: imitate(value) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        functional_call(model, state, (), inputs)
    weights = {_storage(tensor) for tensor in state.values()}
    # Counted elsewhere: scores, and the table's gradient, which the full softmax makes at once.
    scores = (len(batch["masked_positions"]), len(batch.get("negatives", ())))
    num_rows = len(model.get_output_embeddings().weight)
    sizes = [
        tensor.untyped_storage().nbytes()
        for key, tensor in saved.items()
        if key not in weights and tensor.shape != scores and tensor.shape[:1] != (num_rows,)
    ]
    in_heap = [size for size in sizes if size <= heap_bytes]
    return sum(sizes) + sum(in_heap)


def _score_bytes(model: nn.Module, batch: Batch, accelerator: Accelerator, max_scores: int) -> int:
    """Scores of masked items, and what is computed from them at the same time."""
    num_masked = len(batch["masked_positions"])
    if "negatives" in batch:
        return SAMPLED_SCORE_BYTES[model.config.objective] * num_masked * len(batch["negatives"])
    num_rows, hidden = model.get_output_embeddings().weight.shape
    num_scores = min(num_masked, max(1, max_scores // num_rows)) * num_rows
    if accelerator.mixed_precision == "no":
        return 4 * num_scores
    # A softmax in single precision; and the table and its gradient in half.
    return (2 + 4) * num_scores + 2 * 2 * num_rows * hidden


def _gather(model: nn.Module, accelerator: Accelerator) -> tuple[list[Tensor], list[Tensor]]:
    """Weights that FSDP gathers for the whole step, and those of the largest of its units."""
    units = [list(unit.parameters()) for unit in find_units(model, accelerator)]
    inside = {weight for unit in units for weight in unit}
    outside = [weight for weight in model.parameters() if weight not in inside]
    return outside, max(units, key=_num_bytes, default=[])


def _gathered_bytes(model: nn.Module, accelerator: Accelerator) -> int:
    """What FSDP gathers at once: of the units, one that computes and one that comes next."""
    if not is_sharded(accelerator):
        return 0
    if not accelerator.state.fsdp_plugin.reshard_after_forward:
        return _num_bytes(model.parameters())
    outside, unit = _gather(model, accelerator)
    return _num_bytes(outside + 2 * unit)


def _sharded_gradient_bytes(model: nn.Module, accelerator: Accelerator) -> int:
    """The shares; and gradients that are whole yet, that of a unit with a copy that is sent.

    What is outside of the units is copied when its weights are no longer gathered. Gradients that
    are accumulated stay whole until the last of them.
    """
    outside, unit = map(_trainable, _gather(model, accelerator))
    trainable = _trainable(model.parameters())
    whole = trainable if accelerator.gradient_accumulation_steps > 1 else outside + unit
    return _num_bytes(trainable) // accelerator.num_processes + _num_bytes(whole + unit)


def _gradient_bytes(model: nn.Module, batch: Batch, accelerator: Accelerator) -> int:
    """Gradients of all that is trained; those of tables by row of just the rows of a step."""
    if is_sharded(accelerator):
        return _sharded_gradient_bytes(model, accelerator)
    is_compiled = accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
    tables = [] if is_compiled else row_tables(model)
    dense = [
        _num_bytes([weight])
        for weight in _trainable(model.parameters())
        if not any(weight is table for table in tables)
    ]
    # Processes sum copies of them; and one that is accumulated is there beside the sum.
    size = sum(dense) * (2 if accelerator.num_processes > 1 else 1)
    size += max(dense) if accelerator.gradient_accumulation_steps > 1 else 0
    for table in tables[:1]:
        rows = _named_rows(batch) * accelerator.gradient_accumulation_steps
        size += rows * _num_bytes([table[0]])
    return size


def _named_rows(batch: Batch) -> int:
    """Rows of the item table that a batch names, at most."""
    return sum(batch[name].numel() for name in ("input_ids", "masked_positions", "negatives"))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _trainable(weights: Iterable[Tensor]) -> list[Tensor]:
    return [weight for weight in weights if weight.requires_grad]


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f}"
