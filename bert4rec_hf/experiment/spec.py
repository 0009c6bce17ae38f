"""What one file of `configs/` says, section by section."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from bert4rec_hf.config import (
    INITIALIZATIONS,
    BaseConfig,
    CardConfig,
    DataConfig,
    TrainingConfig,
)
from bert4rec_hf.evaluation.evaluator import EvaluationConfig
from bert4rec_hf.evaluation.metrics import METRICS


@dataclass(kw_only=True)
class Experiment:
    """One file of `configs/`, checked."""

    name: str
    """`<dataset>-<experiment>`, from the path of the file."""

    data: DataConfig
    base: BaseConfig | None = None
    """What is trained further; None trains from scratch."""

    adapter: dict[str, Any] = field(default_factory=dict)
    """A `tuner` of TUNERS and settings of its config; without, all weights are trained."""

    model: dict[str, Any]
    """Settings of BERT4RecConfig; its `vocab_size` follows from the dataset. With a base model, the
    few that may differ from it."""

    training: TrainingConfig
    evaluation: EvaluationConfig
    card: CardConfig

    @property
    def folder_name(self) -> str:
        """What the run's folder calls that which was learned."""
        return "adapter" if self.adapter else "model"

    def to_dict(self) -> dict[str, Any]:
        """The sections as plain settings, as the file has them."""
        sections = dataclasses.asdict(self)
        del sections["name"]
        return {key: value for key, value in sections.items() if value or key == "model"}


def check_metric(experiment: Experiment) -> None:
    """Refuse to choose the best model, or to write a card, by something that is not measured."""
    if 10 not in experiment.evaluation.ks:
        raise ValueError(
            "evaluation.ks must contain 10, at which everyone reports, "
            f"got {experiment.evaluation.ks}"
        )
    measured = [f"{name}@{k}" for name in METRICS for k in experiment.evaluation.ks]
    if experiment.training.metric not in measured:
        raise ValueError(
            f"training.metric must be one of {', '.join(measured)}, "
            f"got {experiment.training.metric!r}"
        )


def check_initialization(experiment: Experiment) -> None:
    """Refuse to draw anew what a base model brings along."""
    for name in INITIALIZATIONS:
        value = getattr(experiment.training, name)
        if experiment.base is not None and value != "random":
            raise ValueError(
                f"training.{name} is for training from scratch, and base.model brings its "
                f"weights; leave it out, got {value!r}"
            )


def check_neighbors(experiment: Experiment) -> None:
    """Refuse neighbors that are to be mixed in twice, or into an adapter."""
    count = experiment.training.added_neighbors
    if count and experiment.adapter:
        raise ValueError(
            f"training.added_neighbors is {count}, but an adapter cannot hold neighbors; add "
            "them to its base model with the command neighbors"
        )
    if count and (beside := experiment.model.get("num_neighbors", 0)):
        raise ValueError(
            "training.added_neighbors mixes neighbors into the trained model, and "
            f"model.num_neighbors trains it beside them; set one of the two, got {count} and "
            f"{beside}"
        )


def check_trackers(experiment: Experiment) -> None:
    """Refuse a tracker that accelerate would silently leave out."""
    known = [str(name) for name in LoggerType.list() if name != "all"]
    installed = [str(name) for name in get_available_trackers()]
    for name in experiment.training.trackers:
        if name not in known:
            raise ValueError(f"training.trackers must be of {', '.join(known)}, got {name!r}")
        if name not in installed:
            raise ValueError(
                f"training.trackers names {name}, which is not installed; pip install {name}"
            )
