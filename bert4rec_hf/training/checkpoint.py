"""The state of a run, to go on from: safetensors and JSON, whole or not there.

Of what is sharded each process writes the rows that it has, to a file of its own, and reads those
that it needs, on whatever number of processes. All else is written by the main one.
"""

import dataclasses
import json
import logging
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps taken."""

    best_step: int = 0
    best_metric: float = -1.0
    """Below any metric; JSON has no infinity."""

    looks_since_best: int = 0
    """Evaluations since the best one."""

    train_seconds: float = 0.0
    """Time spent in steps, evaluations left out."""

    histories: int = 0
    """Histories read, over all processes."""

    looks: list[dict[str, float]] = field(default_factory=list)
    """Step and validation metrics of every look."""

    late_rise: float = 0.0
    """How much of its best the last look has gained over all looks before the last fifth of the
    steps, if it is the best; else 0."""


def find_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*"))


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    state: TrainingState,
    accelerator: Accelerator,
    keep: int,
) -> None:
    """Write `step-<steps>` under another name, rename it when whole, and prune old ones.

    Args:
        folder: Of the run's checkpoints.
        model: Unwrapped.
        optimizer: As it steps, with one state entry per trainable parameter.
        state: Where the run stands.
        accelerator: Tells the processes apart.
        keep: How many checkpoints stay.
    """
    unfinished = folder / f".unfinished-{state.step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    save_file(_random_state(), unfinished / f"random-{accelerator.process_index}.safetensors")
    # What is frozen is in the base model's folder.
    _save_rows(_trainable(model), unfinished, "model", accelerator)
    _save_rows(_optimizer_tensors(model, optimizer), unfinished, "optimizer", accelerator)
    if accelerator.is_main_process:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        text = json.dumps({"state": dataclasses.asdict(state), "scaler": scaler}, indent=2)
        (unfinished / "state.json").write_text(text + "\n")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unfinished.rename(folder / f"step-{state.step:08d}")
        for old in find_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)


def load_checkpoint(
    checkpoint: Path, model: nn.Module, optimizer: Optimizer, accelerator: Accelerator
) -> TrainingState:
    """Put model, optimizer and, on as many processes, random state back as they were saved.

    Args:
        checkpoint: A folder of `find_checkpoints`.
        model: Unwrapped.
        optimizer: Made for this model.
        accelerator: Tells the processes apart.

    Raises:
        ValueError: The checkpoint holds other tensors than model and optimizer have.
    """
    saved = json.loads((checkpoint / "state.json").read_text())
    _load_rows(checkpoint, "model", _trainable(model))
    _begin(model, optimizer)
    _load_rows(checkpoint, "optimizer", _optimizer_tensors(model, optimizer))
    if accelerator.scaler is not None and saved["scaler"] is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    num_processes = len(list(checkpoint.glob("random-*.safetensors")))
    if num_processes == accelerator.num_processes:
        _load_random_state(checkpoint / f"random-{accelerator.process_index}.safetensors")
    elif accelerator.is_main_process:
        logger.info(
            "%s was written by %d processes and %d go on with it: same weights, moments and "
            "batches, yet not bit for bit, as dropout draws anew",
            *(checkpoint, num_processes, accelerator.num_processes),
        )
    return TrainingState(**saved["state"])


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>/<state>` tensors."""
    return {
        f"{name}/{key}": value
        for name, weight in _trainable(model).items()
        for key, value in optimizer.state[weight].items()
    }


def _begin(model: nn.Module, optimizer: Optimizer) -> None:
    """Make the state that the optimizer has from its first step on."""
    tables = [w for group in optimizer.param_groups if group.get("by_row") for w in group["params"]]
    for weight in _trainable(model).values():
        is_by_row = any(weight is table for table in tables)
        optimizer.state[weight] = {
            "step": torch.zeros(weight.shape[:1] if is_by_row else (), device=weight.device),
            "exp_avg": torch.zeros_like(weight, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(weight, requires_grad=False),
        }


def _own_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """What a process has of a tensor, and where that begins: FSDP deals out equal runs of rows.

    Returns:
        (rows, …), a number as one row; and the place of the first.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach().view(tensor.shape or 1), 0
    mesh = tensor.device_mesh
    first = mesh.get_local_rank() * -(-len(tensor) // mesh.size())
    return tensor.detach().to_local(), min(first, len(tensor))


def _save_rows(
    tensors: dict[str, Tensor], folder: Path, kind: str, accelerator: Accelerator
) -> None:
    """Write what only this process has; the main process also what all have.

    torch's own checkpoints do the same, with two more copies of it in memory.
    """
    is_main = accelerator.is_main_process
    own = {
        name: _own_rows(each)
        for name, each in tensors.items()
        if is_main or isinstance(each, DTensor)
    }
    if own:
        save_file(
            {name: rows for name, (rows, _) in own.items()},
            folder / f"{kind}-{accelerator.process_index}.safetensors",
            metadata={name: str(first) for name, (_, first) in own.items()},
        )


def _load_rows(checkpoint: Path, kind: str, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, or what this process has of them, from the files of all who wrote some.

    Raises:
        ValueError: The files hold less of a tensor, or more.
    """
    with ExitStack() as stack:
        paths = checkpoint.glob(f"{kind}-*.safetensors")
        files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
        for name, tensor in tensors.items():
            runs = [
                (int(begin), file.get_slice(name))
                for file in files
                if (begin := file.metadata().get(name)) is not None
            ]
            needed = tensor.shape[0] if tensor.shape else 1
            if (found := sum(run.get_shape()[0] for _, run in runs)) != needed:
                raise ValueError(
                    f"{checkpoint} holds {found} rows of {name} and {needed} are needed; a table "
                    "with row-sparse gradients goes on with FSDP only if it began with it, and "
                    "without only if it did so"
                )
            rows, first = _own_rows(tensor)
            for begin, run in runs:
                _copy_rows(rows, first, run, begin)


def _copy_rows(rows: Tensor, first: int, run: Tensor, begin: int) -> None:
    """Copy between two runs of rows of one tensor what they have in common.

    Args:
        rows: (rows, …) to be filled.
        first: Its place in the tensor.
        run: (rows, …) to be read, a slice of a file.
        begin: Its place in the tensor.
    """
    start, stop = max(first, begin), min(first + len(rows), begin + run.get_shape()[0])
    if start < stop:
        rows[start - first : stop - first] = run[start - begin : stop - begin]


def _random_state() -> dict[str, Tensor]:
    """State of torch's generators; nothing else is drawn from."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _load_random_state(path: Path) -> None:
    with safe_open(path, "pt") as tensors:
        torch.set_rng_state(tensors.get_tensor("cpu"))
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors.get_tensor("cuda"))
