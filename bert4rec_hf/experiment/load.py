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
    missing_settings,
    override,
    read_yaml,
    required_settings,
    unknown_name,
)
from bert4rec_hf.evaluation.evaluator import EvaluationConfig

from .build import SMALLEST_VOCABULARY, build_collator, build_model
from .spec import Experiment, check_initialization, check_metric, check_neighbors, check_trackers
from .teachers import check_teachers


def load_experiment(
    path: Path, arguments: Sequence[str] = (), name: str | None = None
) -> Experiment:
    """Read an experiment file, settings of the command line over it.

    Args:
        path: One file of `configs/`.
        arguments: `--section.setting value` pairs.
        name: Of the run; None names it after the file.

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
    for section in sections:
        if section not in (known := [*kinds, "base", "adapter", "model"]):
            raise ValueError(f"{path}: {unknown_name(section, 'an experiment', known)}")
    missing = [
        f"{section}.{setting}"
        for section, kind in kinds.items()
        for setting in required_settings(kind, vars(kind)["__annotations__"])
        - sections.get(section, {}).keys()
    ]
    if missing:
        raise ValueError(f"{path}: {missing_settings(missing)}")
    try:
        experiment = Experiment(
            name=name or name_of(path),
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
        check_neighbors(experiment)
        check_teachers(experiment)
        check_trackers(experiment)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return experiment


def name_of(path: Path) -> str:
    """Name a run after its file; in a folder of `configs/`, after the dataset and the file.

    >>> name_of(Path("purchases.yaml")), name_of(Path("configs/beauty/bert4rec.yaml"))
    ('purchases', 'beauty-bert4rec')
    """
    folder = path.resolve().parent
    return f"{folder.name}-{path.stem}" if folder.parent.name == "configs" else path.stem
