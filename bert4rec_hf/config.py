"""The sections of an experiment, and how YAML and command line become dataclasses, strictly."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from bert4rec_hf.strict_yaml import load_yaml, load_yaml_file

Section = TypeVar("Section")

PUBLISHED_METRICS = ("hit_rate@10", "ndcg@10")
PUBLISHED = ("model", *PUBLISHED_METRICS, "source")
INITIALIZATIONS = ("item_initialization", "attention_initialization")
"""Settings that decide how weights are initialized."""


@strict
@dataclass(kw_only=True)
class DataConfig:
    """Which prepared dataset to learn from, and what the model is shown of it."""

    dataset: str
    """Folder that bert4rec prepare wrote."""

    mask_ratio: float | int = 0.2
    """Expected share of masked items in a view."""

    last_item_ratio: float | int = 0.1
    """Share of views in which just the last item is masked, as at test time."""

    prefix_view_ratio: float | int = 0.0
    """Share of views that read several prefixes of a history at once, drawn at random, and ask for
    the item after each: what is asked at test time."""

    prefix_ratio: float | int = 0.5
    """Expected share of items that such a view asks for."""

    random_window_ratio: float | int = 0.0
    """Share of views that end at a random item of the history, not at its newest."""

    num_negatives: int = 4_096
    """Items drawn per batch as wrong answers; only sampled objectives read them."""

    negative_distribution: Literal["uniform", "popularity", "mixed"] = "uniform"
    """How they are drawn: `uniform`, by `popularity`, or `mixed`: half of them other targets of the
    batch, the rest uniform."""

    pad_to_multiple_of: int = 1
    """Fill packed batches up to such a number of items, so that compiled shapes stay put."""

    num_workers: int = 0
    """Loader processes; the batches do not depend on their number."""

    def validate_num_workers(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {self.num_workers}")


@strict
@dataclass(kw_only=True)
class TrainingConfig:
    """How long, how fast and from which seed to train."""

    learning_rate: float | int
    """Peak rate, reached at the end of the warmup."""

    batch_size: int = 128
    """Histories per device and forward pass."""

    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    """Keep only what enters each layer, and run it again in the backward pass: less memory, a third
    more work in the encoder."""

    max_steps: int = 10_000
    """Optimizer steps, not batches."""

    warmup_ratio: float | int = 0.1
    """Share of max_steps spent on the linear warmup."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What the rate does after the warmup: `linear` or `cosine` to zero, or `constant`."""

    item_initialization: Literal["random", "co_occurrence"] = "random"
    """What item embeddings begin with: `random`, or `co_occurrence`, counted in the training part
    and factorized, which saves tens of epochs."""

    attention_initialization: Literal["random", "average"] = "random"
    """What attention begins with: `random`, or `average`, with which an untrained model reads the
    mean of the history's items, and everything else is a small correction to it."""

    item_learning_rate_factor: float | int = 1.0
    """How many times the learning rate the item embeddings have."""

    weight_decay: float | int = 0.01
    """For matrices and embeddings; never for norms and biases."""

    added_neighbors: int = 0
    """Neighbors of each item that are mixed into the model when it is trained, with the weight that
    is best on validation; none are where that is 0. See the command `neighbors`."""

    teachers: list[str] = field(default_factory=list)
    """Folders of models trained on the same dataset, whose averaged predictions are learned beside
    the items themselves; each of them predicts in every step."""

    teacher_weight: float | int = 0.5
    """Share of the teachers' predictions in what is learned; the items themselves have the rest."""

    row_sparse: bool = True
    """Under a sampled objective, step only the rows of the item table that have a gradient."""

    item_table: Literal["replicated", "sharded"] = "replicated"
    """Whether each of several processes has the whole item table, or `sharded`: a share of its rows
    and of their moments, for catalogs that do not fit otherwise. Needs a sampled objective."""

    max_grad_norm: float | int = 5.0
    """Longer gradients are cut to this length."""

    on_bad_step: Literal["stop", "skip"] = "stop"
    """What to do with a step whose loss or gradient is not finite: `stop` ends the training, `skip`
    leaves the step out; more than a few in a row also end it."""

    seed: int = 0
    logging_steps: int = 50
    evaluation_steps: int = 500
    """Steps between two validations."""

    metric: str = "ndcg@10"
    """The validation metric that chooses the best model; higher is better."""

    validation_histories: int = 50_000
    """How many histories of the validation split training validates on, drawn once by the seed; all
    where there are no more. What the card reports is measured on all."""

    patience: int = 10
    """Validations without a better metric after which training stops."""

    checkpoint_steps: int = 500
    """Steps between two checkpoints to resume from."""

    keep_checkpoints: int = 2
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Names that accelerate knows: tensorboard, wandb, trackio, ..."""

    def validate_counts(self) -> None:
        for name in (
            "batch_size",
            "gradient_accumulation_steps",
            "max_steps",
            "logging_steps",
            "evaluation_steps",
            "validation_histories",
            "patience",
            "checkpoint_steps",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def validate_rates(self) -> None:
        for name in ("learning_rate", "item_learning_rate_factor", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "seed", "added_neighbors"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def validate_teacher_weight(self) -> None:
        if not 0 <= self.teacher_weight <= 1:
            raise ValueError(f"teacher_weight must be in [0, 1], got {self.teacher_weight}")

    def validate_warmup_ratio(self) -> None:
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio must be in [0, 1), got {self.warmup_ratio}")


@strict
@dataclass(kw_only=True)
class BaseConfig:
    """What fine-tuning begins with."""

    model: str
    """Folder of a model that was trained with the vocabulary of the dataset."""


@strict
@dataclass(kw_only=True)
class CardConfig:
    """What the model card says that no run can measure."""

    dataset_name: str
    dataset_license: str
    published: list[dict[str, str | float | int]] = field(default_factory=list)
    """Numbers of others under the same protocol, each with the keys of PUBLISHED."""

    def validate_published(self) -> None:
        for place, entry in enumerate(self.published):
            if entry.keys() != set(PUBLISHED):
                raise ValueError(
                    f"published entry {place} must have {', '.join(PUBLISHED)}, "
                    f"got {', '.join(entry) or 'nothing'}"
                )
            for name, value in entry.items():
                if isinstance(value, str) == (name in PUBLISHED_METRICS):
                    raise ValueError(
                        f"published entry {place}: {name} must be "
                        f"{'a number' if name in PUBLISHED_METRICS else 'text'}, got {value!r}"
                    )


def read_yaml(path: Path) -> dict[str, dict[str, Any]]:
    """Read an experiment file as plain sections of settings.

    Raises:
        ValueError: The file is missing, is not YAML that `load_yaml` takes, or is not sections of
            settings.
    """
    sections = load_yaml_file(path)
    if not isinstance(sections, dict) or not all(isinstance(v, dict) for v in sections.values()):
        raise ValueError(
            f"{path} must hold sections of settings, such as 'training:' with lines under it"
        )
    return sections


def override(sections: dict[str, dict[str, Any]], arguments: Sequence[str]) -> None:
    """Put `--section.setting value` pairs of a command line over the file's settings, in place.

    >>> sections = {"training": {"max_steps": 10}}
    >>> override(sections, ["--training.max_steps", "20", "--training.learning_rate=1e-3"])
    >>> sections
    {'training': {'max_steps': 20, 'learning_rate': '1e-3'}}

    Raises:
        ValueError: An argument is not of that form.
    """
    pairs = iter(arguments)
    for argument in pairs:
        name, equals, value = argument.removeprefix("--").partition("=")
        section, dot, setting = name.partition(".")
        if not argument.startswith("--") or not dot:
            raise ValueError(f"{argument!r} is not a setting; write --section.setting value")
        if not equals and (value := next(pairs, None)) is None:
            raise ValueError(f"{argument} has no value; write --section.setting value")
        sections.setdefault(section, {})[setting] = load_yaml(value, f"the value of --{name}")


def join_names(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Name settings as a command line does.

    >>> join_names({"training": {"max_steps": 10}})
    {'training.max_steps': 10}
    """
    return {
        f"{section}.{setting}": value
        for section, settings in sections.items()
        for setting, value in settings.items()
    }


def to_arguments(settings: dict[str, Any]) -> list[str]:
    """Write settings as a command line that `override` reads.

    >>> to_arguments({"training.trackers": ["wandb"], "model.norm_first": True})
    ['--training.trackers=["wandb"]', '--model.norm_first=true']
    """
    return [f"--{name}={json.dumps(value)}" for name, value in settings.items()]


def unknown_name(name: str, owner: str, known: Sequence[str]) -> str:
    """Say that a name is not known, and which one was likely meant."""
    close = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
    return f"{name} is not a setting of {owner}; {hint}"


def build_section(
    kind: type[Section], settings: dict[str, Any], name: str, **given: Any
) -> Section:
    """Make a section's dataclass from plain settings; nothing unknown, missing or mistyped passes.

    Args:
        kind: Dataclass of the section; only fields that it declares itself are settings.
        settings: As read from the file and the command line.
        name: Of the section, for messages.
        given: Fields that are not settings but follow from elsewhere.

    Raises:
        ValueError: A setting is unknown, missing, of the wrong type or outside its range.
    """
    # What the class itself declares: transformers' base config has fields that are no settings.
    hints = vars(kind)["__annotations__"]
    known = [key for key in hints if key not in given]
    for key in settings:
        if key not in known:
            raise ValueError(unknown_name(f"{name}.{key}", kind.__name__, known))
    if missing := [f"{name}.{each}" for each in required_settings(kind, known) - settings.keys()]:
        raise ValueError(missing_settings(missing))
    values = {key: _number(value, hints[key]) for key, value in settings.items()}
    check_finite_settings(values, name)
    try:
        return kind(**values, **given)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error.__cause__ or error}") from error


def required_settings(kind: type, known: Sequence[str]) -> set[str]:
    """Names among the known of the fields that have no default."""
    no_default = (dataclasses.MISSING, dataclasses.MISSING)
    fields = dataclasses.fields(kind)
    return {
        each.name for each in fields if (each.default, each.default_factory) == no_default
    } & set(known)


def missing_settings(names: Sequence[str]) -> str:
    """Say which settings are to be added.

    >>> missing_settings(["training.learning_rate", "data.dataset"])
    'data.dataset and training.learning_rate are missing and have no default; add them'
    """
    *others, last = sorted(names)
    if not others:
        return f"{last} is missing and has no default; add it"
    return f"{', '.join(others)} and {last} are missing and have no default; add them"


def check_finite_settings(value: Any, name: str) -> None:
    """Refuse `.nan` and `.inf`, and numbers too large to be told from them, wherever they stand.

    Raises:
        ValueError: There is one, at this name or below it.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, and settings are finite; write a number")
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            check_finite_settings(each, f"{name}.{key}")


def _number(value: Any, hint: Any) -> Any:
    """Read text as a number where the field is one, as YAML takes 1e-3 for text."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, str) and float in kinds:
        try:
            return float(value)
        except ValueError:
            return value
    return value
