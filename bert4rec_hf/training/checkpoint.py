"""The state of a run, to go on from: safetensors and JSON, whole or not there.

Of what is sharded each process writes the rows that it has, to a file of its own, and reads those
that it needs, on whatever number of processes. All else is written by the main one. Checksums of
all files come last, and a checkpoint is taken only if they are right.
"""

import dataclasses
import json
import logging
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from bert4rec_hf.training.agreement import failing_together, from_main_process
from bert4rec_hf.training.checksums import (
    STATE,
    digest_file,
    find_damage,
    name_of_step,
    sync,
    write_checksums,
)
from bert4rec_hf.training.row_shard import show_whole
from bert4rec_hf.training.tensor_files import load_rows, save_rows

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps taken."""

    best_step: int = 0
    best_metric: float = -1.0
    """Below any metric; JSON has no infinity."""

    validations_since_best: int = 0
    """Validations since the best one."""

    train_seconds: float = 0.0
    """Time spent in steps, evaluations left out."""

    histories: int = 0
    """Histories read, over all processes."""

    validations: list[dict[str, float]] = field(default_factory=list)
    """Step and metrics of every validation."""

    skipped_steps: list[int] = field(default_factory=list)
    """Steps whose loss or gradient was not finite, and which changed nothing."""

    still_improving: float = 0.0
    """If the last validation is the best, the share of its metric that came in the last fifth of
    the steps; else 0."""


FORMER_NAMES = {
    "looks": "validations",
    "looks_since_best": "validations_since_best",
    "late_rise": "still_improving",
}
"""Fields of TrainingState in checkpoints and results of before version 0.2."""


def find_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first, damaged ones among them."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_checkpoint(folder: Path, accelerator: Accelerator) -> Path | None:
    """The newest whole checkpoint of a run; those that are newer and damaged are put aside.

    Args:
        folder: Of the run's checkpoints.
        accelerator: Tells the processes apart; all take what the main one finds.

    Returns:
        Its folder; None where nothing was saved yet.

    Raises:
        ValueError: There are checkpoints, and each is damaged.
    """
    newest = None
    with failing_together(accelerator):
        if accelerator.is_main_process:
            newest, damages = find_whole(find_checkpoints(folder))
            for path, damage in damages:
                aside = path.with_name(f"damaged-{path.name}")
                logger.warning("%s is damaged: %s; it is now %s", path, damage, aside.name)
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
    return from_main_process(newest)


def find_whole(checkpoints: list[Path]) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Verify checkpoints from the last on, until one is whole.

    Returns:
        It, or None of none; and those behind it, each with what is wrong with it.

    Raises:
        ValueError: There are some, and none is whole.
    """
    damages = []
    for checkpoint in reversed(checkpoints):
        if not (damage := find_damage(checkpoint)):
            return checkpoint, damages
        damages.append((checkpoint, damage))
    if damages:
        listed = "; ".join(f"{path.name}: {damage}" for path, damage in damages)
        raise ValueError(
            f"{damages[0][0].parent} has no complete checkpoint to resume from ({listed}); put a "
            "copy of one there, or remove the folder of the run and train again"
        )
    return None, damages


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

    Raises:
        OSError: A process could not write its part; the older checkpoints are all there.
        ValueError: A weight, or what the optimizer knows of it, is not finite; likewise.
    """
    tensors = {"model": _weights(model), "optimizer": _optimizer_tensors(model, optimizer)}
    whole = folder / name_of_step(state.step)
    unfinished = folder / f".unfinished-{whole.name}"
    try:
        with failing_together(accelerator):
            check_finite(tensors["model"] | tensors["optimizer"], state.step)
            if accelerator.is_main_process:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
        digests = _write_tensors(tensors, unfinished, accelerator)
        with failing_together(accelerator):
            if accelerator.is_main_process:
                digests[STATE] = _write_state(state, unfinished / STATE, accelerator)
                write_checksums(unfinished, digests)
                shutil.rmtree(whole, ignore_errors=True)  # what was damaged, or is the same
                unfinished.rename(whole)
                sync(folder)
                _prune(folder, state.step, keep)
    except OSError:
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise


def check_finite(tensors: dict[str, Tensor], step: int) -> None:
    """Refuse tensors that hold what is no number.

    Raises:
        ValueError: One of them does.
    """
    for name, tensor in tensors.items():
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if not own.isfinite().all():
            raise ValueError(
                f"{name} is not finite after step {step}, and nothing of it is saved; continue "
                "from the previous checkpoint with --resume, with a lower "
                "training.learning_rate in a run of its own, or look at the step with --replay-step"
            )


def _write_tensors(
    tensors: dict[str, dict[str, Tensor]], folder: Path, accelerator: Accelerator
) -> dict[str, dict[str, Any]]:
    """Write what this process has of each kind, and its random state; the checksums of all."""
    place = accelerator.process_index
    digests = []
    with failing_together(accelerator):
        save_file(_random_state(), folder / f"random-{place}.safetensors")
        for kind, each in tensors.items():
            save_rows(each, folder, kind, accelerator)
        digests = [(path.name, digest_file(path)) for path in folder.glob(f"*-{place}.safetensors")]
    return dict(gather_object(digests))


def _write_state(state: TrainingState, path: Path, accelerator: Accelerator) -> dict[str, Any]:
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    text = json.dumps({"state": dataclasses.asdict(state), "scaler": scaler}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    return digest_file(path)


def _prune(folder: Path, step: int, keep: int) -> None:
    """Remove all checkpoints up to a step but the last ones."""
    up_to_now = [path for path in find_checkpoints(folder) if path.name <= name_of_step(step)]
    for old in up_to_now[:-keep]:
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
    load_rows(checkpoint, "model", _weights(model))
    _begin(model, optimizer)
    load_rows(checkpoint, "optimizer", _optimizer_tensors(model, optimizer))
    if accelerator.scaler is not None and saved["scaler"] is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    num_processes = len(list(checkpoint.glob("random-*.safetensors")))
    if num_processes == accelerator.num_processes:
        _load_random_state(checkpoint / f"random-{accelerator.process_index}.safetensors")
    elif accelerator.is_main_process:
        logger.info(
            "%s was written by %d processes and is resumed by %d: same weights, moments and "
            "batches, but not bit for bit, as dropout draws differently",
            *(checkpoint, num_processes, accelerator.num_processes),
        )
    state = saved["state"].items()
    return TrainingState(**{FORMER_NAMES.get(name, name): value for name, value in state})


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, each in the shape that it has over all processes."""
    return {name: show_whole(weight, weight) for name, weight in _trainable(model).items()}


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>/<state>` tensors."""
    return {
        f"{name}/{key}": show_whole(weight, value)
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
