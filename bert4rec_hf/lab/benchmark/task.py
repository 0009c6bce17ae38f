"""What a contestant is asked to do, and what it answers."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.lab.benchmark.workloads import Shape, Workload

MASK_RATIO = 0.2
LEARNING_RATE = 1e-3
ADAPTERS = ("none", "lora", "ia3", "ilora")
"""The names of TUNERS, which an interpreter without PEFT cannot import, and `none`."""

ADAPTER_TARGETS = ("default", "all-linear")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What contestants of one benchmark may differ in; each uses those it has a meaning for."""

    batch_size: int = 256
    """Histories per step."""

    precision: str = "no"
    """Accelerate's mixed precision: `no`, `bf16` or `fp16`."""

    compile: str = "no"
    """Accelerate's dynamo backend, such as `inductor`; `no` runs eagerly."""

    adapter: str = "none"
    """What is trained in place of the whole model; `none` trains that."""

    adapter_targets: str = "default"
    """Layers that the adapter is put on: those that PEFT chooses, or `all-linear` for all."""

    r: int = 8
    """Channels of a LoRA pair; (IA)³ has none."""

    adapter_dropout: float = 0.0
    """Before a LoRA pair; none, as torch's own is slow on a CPU and no matter of the tuner."""

    prefix_view_ratio: float = 0.0
    """Share of the views that ask after prefixes, as the recipe's do (0.9); all others mask."""

    prefix_ratio: float = 1.0
    """Share of a history's prefixes that such a view asks after; of the recipe 0.5 to 1."""

    dropout: float = 0.1
    attention_dropout: float = 0.0
    num_negatives: int = 4_096
    """Of the sampled objectives, shared by all masked items of a step."""

    negative_distribution: str = "uniform"
    pad_to_multiple_of: int = 1
    """Fill packed batches up to such a number of items, so that compiled shapes stay put."""

    num_workers: int = 0
    """Loader processes beside the one that trains."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_negatives", "r"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, known in (
            ("precision", PRECISIONS),
            ("adapter", ADAPTERS),
            ("adapter_targets", ADAPTER_TARGETS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True, kw_only=True)
class Task:
    """All a contestant needs to know; it crosses to its process as JSON."""

    contestant: str
    """A name of CONTESTANTS."""

    workload: Workload
    shape: Shape
    settings: Settings = Settings()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.settings.batch_size > self.workload.num_histories:
            raise ValueError(
                f"batch_size must be at most the {self.workload.num_histories} histories of the "
                f"workload, got {self.settings.batch_size}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Task":
        """Take what `to_dict` gave."""
        parts = {"workload": Workload, "shape": Shape, "settings": Settings}
        return cls(**values | {name: kind(**values[name]) for name, kind in parts.items()})


class Work(NamedTuple):
    """What was done in answer to one request."""

    histories: int
    items: int
    """Of these histories as the model reads them, padding not counted."""


class Contestant(Protocol):
    """Someone who can train, and perhaps evaluate or collate, a number of batches.

    Made from a Task, with data but without a model; `build` makes that.
    """

    def build(self) -> None:
        """Make the model and its optimizer: from here on memory is counted.

        All of it, what a compiler takes included; what libraries hold once imported is not.
        """

    def train(self, batches: int) -> Work:
        """Take so many optimizer steps, from the histories of each to the weights after it."""

    def evaluate(self, batches: int) -> Work:
        """Rank a held-out item among the catalog for so many batches of histories."""

    def collate(self, batches: int) -> Work:
        """Only make the batches that training reads."""


def refuse_flags(task: Task, *names: str) -> None:
    """Say so where a contestant is asked for what it would not do by itself.

    Args:
        task: Its own.
        names: Settings that it has no meaning for.

    Raises:
        ValueError: One of them is set.
    """
    for name in names:
        value, default = getattr(task.settings, name), getattr(Settings, name)
        if value != default:
            raise ValueError(
                f"{task.contestant} has no {name}: it must be {default}, got {value!r}; "
                "leave it out"
            )


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch of nested dicts."""
    if isinstance(batch, dict):
        return {name: to_device(part, device) for name, part in batch.items()}
    return batch.to(device)


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterate over a loader again and again."""
    while True:
        yield from loader


def hold_out_last(histories: Histories, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Split the first histories, starting over where they run out, into inputs and targets.

    Returns:
        What comes before the last item of each history, and (count,) the last items.
    """
    chosen = [histories[row % len(histories)] for row in range(count)]
    return [history[:-1] for history in chosen], np.array([history[-1] for history in chosen])


def rank_by_comparison(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank targets the plain way, all scores of a batch at hand.

    Args:
        scores: (batch, candidates)
        targets: (batch,) columns of the targets.

    Returns:
        (batch,) ranks from 1.
    """
    return (scores >= scores.gather(1, targets.unsqueeze(1))).sum(dim=1)


def pad(histories: Sequence[Sequence[int]], length: int) -> Tensor:
    """Lay histories into rows of one length, filled up with zeros.

    Returns:
        (batch, length) int64
    """
    rows = torch.zeros(len(histories), length, dtype=torch.int64)
    for row, history in zip(rows, histories, strict=True):
        row[: len(history)] = torch.as_tensor(history)
    return rows
