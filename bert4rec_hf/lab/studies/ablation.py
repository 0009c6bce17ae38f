"""An ablation: one experiment and itself with one thing changed, judged on validation."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict

from bert4rec_hf.config import build_section, join_names, override, read_yaml
from bert4rec_hf.lab.studies.study import Study, StudyRun, Trained, check_different, run_study

UNCHANGED = "recipe"
"""Name of the runs in which nothing is changed."""

METRICS = ("hit_rate@10", "ndcg@10")


@strict
@dataclass(kw_only=True)
class AblationConfig:
    """Which experiment is changed, and how often each change is trained."""

    experiment: str
    """File of `configs/` whose settings hold where this file says nothing."""

    seeds: list[int]
    """The experiment and each change are trained once with each."""

    def validate_lists(self) -> None:
        check_different("seeds", self.seeds)


def load_ablation(path: Path, arguments: Sequence[str] = ()) -> Study:
    """Read a file of an ablation: the sections `study` and `changes`, and settings for all runs.

    Args:
        path: Such as `configs/beauty/ablation.yaml`.
        arguments: `--section.setting value` pairs over the file.

    Raises:
        ValueError: Something in it is unknown, missing, or out of range.
    """
    sections = read_yaml(path)
    override(sections, arguments)
    config = build_section(AblationConfig, sections.pop("study", {}), "study")
    changes = sections.pop("changes", {})
    if not changes or not all(each and isinstance(each, dict) for each in changes.values()):
        raise ValueError(
            f"{path}: changes must name one change or more, each with settings such as "
            f"model.is_causal, got {changes}"
        )
    if UNCHANGED in changes:
        raise ValueError(f"{path}: changes.{UNCHANGED} is the experiment itself; rename it")
    fixed = join_names(sections)
    description = {"study": dataclasses.asdict(config), "changes": changes, "fixed": fixed}
    runs = [
        StudyRun(
            f"{change}-{seed}",
            {"change": change, "seed": seed},
            fixed | settings | {"training.seed": seed},
        )
        for seed in config.seeds
        for change, settings in {UNCHANGED: {}, **changes}.items()
    ]
    study = Study("ablation", path.stem, Path(config.experiment), description, runs)
    for run in runs:  # so that a mistake shows before any work is done
        study.build(run)
    return study


def run_ablation(study: Study, output: Path) -> dict[str, Any]:
    """Train what is not trained yet, as `run_study` does, and put the changes side by side."""
    return run_study(study, output, find_possible, lambda points: {"rows": summarize(points)})


def find_possible(trained: Trained) -> dict[str, Any]:
    """What the best predictor would reach, where interactions are generated and it is known."""
    protocol = trained.experiment.evaluation
    is_comparable = protocol.candidates == "full" and protocol.exclude_seen
    possible = trained.dataset.statistics.get("best_possible", {}) if is_comparable else {}
    return {"best_possible": {name: possible[name] for name in METRICS}} if possible else {}


def summarize(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and deviation over seeds of every change, the unchanged experiment first."""
    by_change: dict[str, dict[int, dict[str, Any]]] = {}
    for point in points:
        by_change.setdefault(point["change"], {})[point["seed"]] = point
    rows = []
    for change, runs in by_change.items():
        row: dict[str, Any] = {"change": change, "seeds": len(runs)}
        for metric in METRICS:
            values = [best_validation(point)[metric] for point in runs.values()]
            row[metric] = statistics.mean(values)
            row[f"{metric}_deviation"] = statistics.stdev(values) if len(values) > 1 else None
        counts = [best_validation(point).get("recommended_items@10") for point in runs.values()]
        if None not in counts:  # points of before version 0.2 do not have it
            row["recommended_items@10"] = statistics.mean(counts)
        rows.append(row)
    return rows


def best_validation(point: dict[str, Any]) -> dict[str, float]:
    """Metrics of the best validation."""
    return next(each for each in point["validation"] if each["step"] == point["best_step"])
