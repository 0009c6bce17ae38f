"""The state of a run, to go on from: safetensors and JSON, whole or not there."""

import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer


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
    if accelerator.is_main_process:
        # What is frozen is in the base model's folder.
        save_file(_trainable(model), unfinished / "model.safetensors")
        save_file(_optimizer_tensors(model, optimizer), unfinished / "optimizer.safetensors")
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
    """Put model, optimizer and random state back as they were saved.

    Args:
        checkpoint: A folder of `find_checkpoints`.
        model: Unwrapped.
        optimizer: Made for this model.
        accelerator: Tells the processes apart.
    """
    saved = json.loads((checkpoint / "state.json").read_text())
    trainable, device = _trainable(model), str(accelerator.device)
    with (
        safe_open(checkpoint / "model.safetensors", "pt", device=device) as tensors,
        torch.no_grad(),
    ):
        for name, weight in trainable.items():
            weight.copy_(tensors.get_tensor(name))
    with safe_open(checkpoint / "optimizer.safetensors", "pt", device=device) as tensors:
        for name, weight in trainable.items():
            optimizer.state[weight] = {
                key: tensors.get_tensor(f"{name}/{key}")
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
    if accelerator.scaler is not None and saved["scaler"] is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    random = checkpoint / f"random-{accelerator.process_index}.safetensors"
    with safe_open(random, "pt") as tensors:
        torch.set_rng_state(tensors.get_tensor("cpu"))
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors.get_tensor("cuda"))
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


def _random_state() -> dict[str, Tensor]:
    """State of torch's generators; nothing else is drawn from."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
