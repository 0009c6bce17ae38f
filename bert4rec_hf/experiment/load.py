"""From a file of `configs/` to a checked experiment."""

from collections.abc import Sequence
from pathlib import Path

import torch

from bert4rec_hf.config import (
    BaseConfig,
    CardConfig,
    DataConfig,
    TrainingConfig,
    build_section,
    override,
    read_yaml,
    unknown_name,
)
from bert4rec_hf.evaluation.evaluator import EvaluationConfig

from .build import SMALLEST_VOCABULARY, build_collator, build_model
from .spec import Experiment, check_initialization, check_metric, check_trackers


def load_experiment(path: Path, arguments: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, settings of the command line over it.

    Args:
        path: One file of `configs/`.
        arguments: `--section.setting value` pairs.

    Raises:
        ValueError: A section or setting is unknown, missing, mistyped or out of range.
    """
    sections = read_yaml(path)
    override(sections, arguments)
    kinds = {
        "data": DataConfig,
        "training": TrainingConfig,
        "evaluation": EvaluationConfig,
        "card": CardConfig,
    }
    if "base" in sections:
        kinds["base"] = BaseConfig
    for name in sections:
        if name not in (known := [*kinds, "base", "adapter", "model"]):
            raise ValueError(f"{path}: {unknown_name(name, 'an experiment', known)}")
    try:
        experiment = Experiment(
            name=f"{path.resolve().parent.name}-{path.stem}",
            adapter=sections.get("adapter", {}),
            model=sections.get("model", {}),
            **{key: build_section(kind, sections.get(key, {}), key) for key, kind in kinds.items()},
        )
        # Built once with the smallest vocabulary, so that a mistake shows before any work is done.
        with torch.device("meta"):
            build_model(experiment, SMALLEST_VOCABULARY)
        build_collator(experiment)
        check_metric(experiment)
        check_initialization(experiment)
        check_trackers(experiment)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return experiment
