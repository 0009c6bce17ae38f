"""Whether what was measured is what a config says today, setting by setting."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from bert4rec_hf.config import CardConfig, DataConfig, TrainingConfig, build_section
from bert4rec_hf.evaluation.evaluator import EvaluationConfig
from bert4rec_hf.lab.studies.study import Study

Changes = dict[str, tuple[str, str]]
"""From settings to what they were when it was measured and what they are now, as text."""

SECTIONS = {
    "data": DataConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "card": CardConfig,
}
"""Those whose defaults are known without a model."""

FREE = ("training.seed",)
"""What runs of one experiment may differ in."""


def complete(sections: dict[str, Any]) -> dict[str, Any]:
    """Name the settings of an experiment, those left to their defaults too.

    Settings that did not exist when it was measured thus have the value that they would have had.
    """
    named = {}
    for section, settings in sections.items():
        if section in SECTIONS:
            settings = dataclasses.asdict(build_section(SECTIONS[section], settings, section))
        named |= {f"{section}.{setting}": value for setting, value in settings.items()}
    return named


def find_changes(measured: dict[str, Any], now: dict[str, Any]) -> Changes:
    """Compare all settings of two experiments, the seed left out."""
    before, after = complete(measured), complete(now)
    return {
        name: (_show(before, name), _show(after, name))
        for name in sorted(before.keys() | after.keys())
        if name not in FREE and _show(before, name) != _show(after, name)
    }


def find_study_changes(study: Study, points: Sequence[dict[str, Any]]) -> Changes:
    """Compare the experiment of each point with that of its run in the study as it is now.

    The section `card`, which nothing that is measured depends on, is left out.

    Args:
        study: As its file in `configs/` says.
        points: Of the results of that study.
    """
    changes: Changes = {}
    for run in study.runs:
        for point in points:
            if all(point[name] == value for name, value in run.labels.items()):
                changes |= find_changes(point["experiment"], study.build(run).to_dict())
    return {name: each for name, each in changes.items() if not name.startswith("card.")}


def describe_age(experiment: str, changes: Changes) -> list[str]:
    """Paragraphs that say what has changed since; none if nothing has."""
    if not changes:
        return []
    listed = ", ".join(f"`{name}` {was} → {now}" for name, (was, now) in changes.items())
    return [
        f"**These points are of an older recipe and say nothing of `{experiment}` as it is now.** "
        f"Its settings have changed since they were measured: {listed}.",
        "",
    ]


def _show(settings: dict[str, Any], name: str) -> str:
    """A value as text, which is the same for 1 and 1.0, and for any order of keys."""
    value = settings.get(name, "not set")
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else str(value)
