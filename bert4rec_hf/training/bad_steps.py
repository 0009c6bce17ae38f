"""Steps whose loss or gradient is not finite: noticed, described, and skipped or the end."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert4rec_hf.training.checkpoint import TrainingState

logger = logging.getLogger(__name__)

MOST_SKIPPED_IN_A_ROW = 5
"""More than so many are no accident."""


def spread_to_gradients(loss: Tensor) -> Tensor:
    """Make the gradients NaN where a loss is not finite, and change nothing where it is.

    A loss can be infinite though its gradients are finite, and on one process alone. Gradients are
    averaged over processes, so that their length then says the same everywhere.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype)


@dataclass
class _Pending:
    """A step that is not judged yet, as its numbers are still on their way from the GPU."""

    step: int
    norm: Tensor
    losses: Tensor
    arrival: torch.cuda.Event


class StepGuard:
    """Judges each step before it is taken; on a GPU, which would have to be waited for, one later.

    Later is soon enough to stop, as nothing is saved before. To skip a step it is waited for.

    Args:
        model: Unwrapped.
        skips: Whether bad steps are skipped as long as they are few.
        accelerator: Tells the processes apart, and has the scaler of half precision.
    """

    def __init__(self, model: nn.Module, skips: bool, accelerator: Accelerator):
        self.model = model
        self.skips = skips
        self.accelerator = accelerator
        self.describe_batches: Callable[[int], str] = lambda step: ""
        """Describes what a step has read."""
        self._losses: list[Tensor] = []
        self._pending: _Pending | None = None

    def add(self, loss: Tensor) -> None:
        """Take note of the loss of a batch of the step."""
        self._losses.append(loss.detach().float())

    def allows(self, norm: Tensor, state: TrainingState) -> bool:
        """Whether the step may be taken.

        Args:
            norm: () length of the gradient of all weights, the same on every process.
            state: Where the run stands before the step, and where a skipped one is counted.

        Raises:
            ValueError: A step is not finite, and cannot or must not be skipped.
        """
        losses, self._losses = torch.stack(self._losses), []
        if self.accelerator.scaler is not None:
            is_good = self._is_good_in_half_precision(norm, losses)
        elif is_far(norm) and not self.skips:
            self.settle()
            self._pending = _send(state.step + 1, norm, losses)
            return True
        else:
            is_good = bool(norm.isfinite())
        if not is_good:
            text = self._describe(state.step + 1, norm, losses) + describe_gradients(self.model)
            self._skip_or_stop(text, state)
        return is_good

    def settle(self) -> None:
        """Judge the step before; to be called before anything of the model is saved.

        Raises:
            ValueError: It is not finite.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.arrival.synchronize()
            if not pending.norm.isfinite():
                raise ValueError(
                    self._describe(pending.step, pending.norm, pending.losses)
                    + advise(pending.step)
                )

    def _is_good_in_half_precision(self, norm: Tensor, losses: Tensor) -> bool:
        """The scaler looks for the largest scale at which no gradient overflows, by skipping steps.

        What is bad is a loss that is not finite itself, or an overflow at a scale below 1.
        """
        num_bad = self.accelerator.reduce((~losses.isfinite()).sum(), "sum")
        has_scale = self.accelerator.scaler.get_scale() >= 1
        return not num_bad and (has_scale or bool(norm.isfinite()))

    def _describe(self, step: int, norm: Tensor, losses: Tensor) -> str:
        found = ", ".join(gather_object([f"{loss:g}" for loss in losses.tolist()]))
        return (
            f"step {step} is not finite: loss {found}, length of the gradient {norm.item():g}"
            f"{self.describe_batches(step)}"
        )

    def _skip_or_stop(self, text: str, state: TrainingState) -> None:
        step = state.step + 1
        last = [*state.skipped_steps, step][-MOST_SKIPPED_IN_A_ROW - 1 :]
        for weight in gather_object([name] if (name := first_not_finite(self.model)) else []):
            raise ValueError(f"{text}; {weight} itself is not finite{advise(step)}")
        if not self.skips:
            raise ValueError(f"{text}{advise(step)}")
        if last == list(range(step - MOST_SKIPPED_IN_A_ROW, step + 1)):
            raise ValueError(
                f"{text}; the {MOST_SKIPPED_IN_A_ROW} steps before were skipped{advise(step)}"
            )
        state.skipped_steps.append(step)
        if self.accelerator.is_main_process:
            logger.warning("%s; skipped, as training.on_bad_step says", text)


def advise(step: int) -> str:
    """Say how to go on."""
    return (
        f". Look at it with --replay-step {step} instead of --resume; then --resume with "
        "--training.on_bad_step skip, or train with a lower training.learning_rate"
    )


def describe_gradients(model: nn.Module) -> str:
    """Say which gradients are not finite, and which of the others is the largest."""
    bad, largest, place = [], -1.0, ""
    for name, weight in model.named_parameters():
        if weight.grad is None:
            continue
        values = _own(weight.grad).abs()
        if not (peak := values.max().item() if values.numel() else 0.0) < torch.inf:
            bad.append(name)
        elif peak > largest:
            largest, place = peak, name
    text = f"; not finite in {len(bad)} weights, the first is {bad[0]}" if bad else ""
    return text + (f"; the largest finite one is {largest:g} in {place}" if place else "")


def first_not_finite(model: nn.Module) -> str:
    """Name a weight that holds what is no number; empty if there is none."""
    weights = model.named_parameters()
    return next((name for name, each in weights if not _own(each).isfinite().all()), "")


def is_far(tensor: Tensor) -> bool:
    """Whether it is on a GPU that computes ahead, which reading the tensor would end."""
    return tensor.device.type == "cuda"


def _own(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, without the rows that a sparse one leaves out."""
    tensor = tensor.detach()
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def _send(step: int, norm: Tensor, losses: Tensor) -> _Pending:
    """Let the numbers of a step leave the GPU behind what it has been given to do so far."""
    copies = [torch.empty(each.shape, pin_memory=True) for each in (norm, losses)]
    for copy, each in zip(copies, (norm, losses), strict=True):
        copy.copy_(each, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return _Pending(step, *copies, arrival)
