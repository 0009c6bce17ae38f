"""The plan of a training: memory and time of everything from preparing to scoring all users."""

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.evaluation.ranking import FIRST_ITEM_ID
from bert4rec_hf.experiment.build import build_loader, build_model
from bert4rec_hf.experiment.run import estimate_start
from bert4rec_hf.experiment.spec import Experiment
from bert4rec_hf.lab.benchmark.workloads import Workload, draw_histories
from bert4rec_hf.modeling.objectives import max_scores
from bert4rec_hf.training.memory import MemoryEstimate

from .devices import PEAKS
from .step import Launch, Work, count_ranking, count_step, estimate_step

SAMPLED_USERS = 20_000
"""Histories that are drawn to read batches from; there may be many more users."""

COUNTED_BATCHES = 8
"""Of which the mean is taken."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much there is to learn from."""

    num_items: int
    num_users: int
    num_interactions: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"--{name.removeprefix('num_')} must be at least 1, got {value}")
        if self.mean_length < 2:
            raise ValueError(
                f"--interactions {self.num_interactions:,} of {self.num_users:,} users are "
                f"{self.mean_length:.1f} each; there must be two or more to learn from"
            )

    @property
    def mean_length(self) -> float:
        """Items of a history."""
        return self.num_interactions / self.num_users


@dataclass(frozen=True)
class ImaginedDataset:
    """What training asks of a prepared dataset, drawn at random."""

    train: Histories
    popularity: np.ndarray
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What everything takes, before it is known how fast it is done."""

    size: Size
    memory: MemoryEstimate
    start_bytes: int
    """At the height of the start from co-occurrence, before the first step."""

    step: Work
    steps_per_epoch: float
    max_steps: int
    num_validations: int
    validation_histories: int
    ranking: Work
    """Of one user, for its rank."""

    scoring: Work
    """Of one user, for the best items."""

    checkpoint_bytes: int

    def training_stages(self) -> dict[str, Work]:
        """The work of training, by what it is for."""
        return {
            "a training step": self.step,
            f"an epoch ({self.steps_per_epoch:,.0f} steps)": self.step.times(self.steps_per_epoch),
            f"all {self.max_steps:,} steps": self.step.times(self.max_steps),
        }

    def ranking_stages(self) -> dict[str, Work]:
        """The work of using the model, by what it is for."""
        validated = self.num_validations * self.validation_histories
        return {
            f"{self.num_validations:,} validations of {self.validation_histories:,} users": (
                self.ranking.times(validated)
            ),
            "evaluating all users once": self.ranking.times(self.size.num_users),
            "scoring all users once": self.scoring.times(self.size.num_users),
        }


def imagine_dataset(size: Size, seed: int = 0) -> ImaginedDataset:
    """Draw histories of log-normal length and items by a power law, as real ones mostly are."""
    shortest = int(min(5, size.mean_length))
    workload = Workload(
        name="planned",
        num_items=size.num_items,
        min_length=shortest,
        mean_length=size.mean_length,
        log_spread=1.0,
        max_length=100 * int(size.mean_length),
        zipf_exponent=0.7,
        epoch_histories=size.num_users,
        num_histories=min(size.num_users, SAMPLED_USERS),
    )
    histories = draw_histories(workload, seed)
    vocab_size = size.num_items + FIRST_ITEM_ID
    return ImaginedDataset(
        histories, np.bincount(histories.values, minlength=vocab_size), vocab_size
    )


def make_plan(experiment: Experiment, size: Size, device: str, precision: str = "no") -> Plan:
    """Work out what an experiment takes on a dataset of a size.

    Args:
        experiment: Its dataset is not read.
        size: Of the dataset.
        device: A name of PEAKS, or of CPU threads; it decides how many scores are held at once.
        precision: Accelerate's mixed precision.
    """
    dataset, training = imagine_dataset(size), experiment.training
    experiment = replace(experiment, data=replace(experiment.data, num_workers=0))
    with torch.device("meta"):
        model = build_model(experiment, dataset.vocab_size)
    launch = Launch(precision, training.gradient_accumulation_steps)
    loader = build_loader(experiment, dataset, 1, first_step=0)
    batches = list(islice(loader, COUNTED_BATCHES))
    kind = "cuda" if device in PEAKS else "cpu"
    memory = estimate_step(model, batches[0], launch, kind, max_scores(torch.device(kind)))
    accumulated = training.gradient_accumulation_steps
    batch_size = min(training.batch_size, size.num_users)
    length = size.mean_length
    return Plan(
        size=size,
        memory=memory,
        start_bytes=estimate_start(experiment, all_lengths(dataset, size), model),
        step=count_step(model, batches, launch).times(accumulated),
        steps_per_epoch=size.num_users / (batch_size * accumulated),
        max_steps=training.max_steps,
        num_validations=-(-training.max_steps // training.evaluation_steps),
        validation_histories=min(training.validation_histories, size.num_users),
        ranking=count_ranking(model, length, count_passes(experiment, size)),
        scoring=count_ranking(model, length),
        checkpoint_bytes=checkpoint_bytes(model),
    )


def count_passes(experiment: Experiment, size: Size) -> int:
    """How often ranking scores the catalog: twice where it is too large for its scores to stay."""
    return 1 if size.num_items <= experiment.evaluation.chunk_size else 2


def all_lengths(dataset: ImaginedDataset, size: Size) -> np.ndarray:
    """Lengths of as many histories as there are users, but no more than memory depends on."""
    wanted = min(size.num_users, 100 * SAMPLED_USERS)
    return np.resize(dataset.train.lengths, wanted)


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of weights and two moments in a checkpoint."""
    return 3 * sum(4 * weight.numel() for weight in model.parameters() if weight.requires_grad)


def to_dict(plan: Plan) -> dict[str, Any]:
    """As plain values."""
    return {
        "size": vars(plan.size),
        "memory_bytes": {**vars(plan.memory), "total": plan.memory.total},
        "start_bytes": plan.start_bytes,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "work": {
            name: work._asdict()
            for name, work in (plan.training_stages() | plan.ranking_stages()).items()
        },
    }
