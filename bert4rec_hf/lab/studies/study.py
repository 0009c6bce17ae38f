"""A study: one experiment trained many times over with other settings; workers share its folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from filelock import FileLock, Timeout

from bert4rec_hf.config import to_arguments
from bert4rec_hf.data.prepared import PreparedDataset
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.experiment.build import build_accelerator
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.experiment.run import train_experiment
from bert4rec_hf.experiment.spec import Experiment
from bert4rec_hf.hub.dataset_repository import open_dataset
from bert4rec_hf.hub.model_folder import load_model
from bert4rec_hf.training.run_folder import describe_changes, flatten, write_whole


@dataclass(frozen=True)
class StudyRun:
    """One training of a study."""

    name: str
    """Of its folder."""

    labels: dict[str, Any]
    """What tells it from the others, for its results."""

    settings: dict[str, Any]
    """By `section.setting`, over those of the experiment."""


@dataclass(frozen=True)
class Study:
    """What is trained."""

    kind: str
    """Of the study, and the name of its results file."""

    name: str
    experiment: Path
    """File of `configs/` whose settings hold where those of a run say nothing."""

    description: dict[str, Any]
    """What was asked for, as plain values."""

    runs: list[StudyRun]
    """In the order they are trained in."""

    def build(self, run: StudyRun) -> Experiment:
        """Make the experiment of a run.

        Raises:
            ValueError: The experiment has no such setting, or it cannot have such a value.
        """
        return load_experiment(self.experiment, to_arguments(run.settings))


@dataclass(frozen=True)
class Trained:
    """What a run came to."""

    experiment: Experiment
    results: dict[str, Any]
    """As `train_experiment` returns them."""

    scorer: ModelScorer
    """Of the best model."""

    dataset: PreparedDataset


Measure = Callable[[Trained], dict[str, Any]]
"""What a study wants to know of each run, beside what is noted of all."""

Summarize = Callable[[list[dict[str, Any]]], dict[str, Any]]
"""What follows from the points there are so far."""


def run_study(study: Study, output: Path, measure: Measure, summarize: Summarize) -> dict[str, Any]:
    """Train what is not trained yet; several processes may do so at the same time.

    Args:
        study: What to train.
        output: The folder of the study, new or begun before: a folder of each run comes into it,
            and a file named after the study's kind, written after each.
        measure: Called with each trained run.
        summarize: Called with all points.

    Returns:
        What stands in the file, with the runs that are done so far.

    Raises:
        ValueError: The folder has another study.
    """
    open_study(study, output)
    for run in study.runs:
        try:
            with FileLock(output / f".{run.name}.lock", timeout=0):
                if not (output / run.name / "point.json").exists():
                    train_run(study, run, output / run.name, measure)
        except Timeout:  # another worker is at it
            continue
        write_results(study, output, summarize)
    return write_results(study, output, summarize)


def open_study(study: Study, output: Path) -> None:
    """Begin the folder of a study, or continue in it.

    Raises:
        ValueError: It is another study's.
    """
    output.mkdir(parents=True, exist_ok=True)
    path, now = output / "study.json", study.description
    with FileLock(output / ".lock"):
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
        if changes := describe_changes(flatten(before), flatten(now)):
            raise ValueError(
                f"{output} holds a different study: {changes}; choose another --output"
            )
        write_whole(path, json.dumps(now, indent=2) + "\n")


def train_run(study: Study, run: StudyRun, folder: Path, measure: Measure) -> None:
    """Train one model, or resume it, and write its results as `point.json`."""
    experiment = study.build(run)
    accelerator = build_accelerator(experiment, folder)
    set_seed(experiment.training.seed)
    is_resumed = (folder / "run.json").exists()
    results = train_experiment(experiment, folder, accelerator, is_resumed=is_resumed)
    model = load_model(folder / experiment.folder_name).to(accelerator.device).eval()
    dataset = open_dataset(experiment.data.dataset)
    training = results["training"]
    point = {
        **run.labels,
        "steps": training["step"],
        "best_step": training["best_step"],
        "parameters": results["parameters"],
        **measure(Trained(experiment, results, ModelScorer(model), dataset)),
        "train_seconds": training["train_seconds"],
        "histories": training["histories"],
        "process_peak_bytes": results["memory"]["process_peak_bytes"],
        "validation": training["validations"],
        "dataset_fingerprint": results["dataset_fingerprint"],
        "experiment": results["experiment"],
        **provenance(accelerator),
    }
    write_whole(folder / "point.json", json.dumps(point, indent=2) + "\n")


def write_results(study: Study, output: Path, summarize: Summarize) -> dict[str, Any]:
    """Put the runs that are done together."""
    points = [
        json.loads(path.read_text(encoding="utf-8"))
        for run in study.runs
        if (path := output / run.name / "point.json").exists()
    ]
    results = {
        "kind": study.kind,
        "name": study.name,
        **study.description,
        "points": points,
        **summarize(points),
        **provenance(Accelerator()),
    }
    write_whole(output / f"{study.kind}.json", json.dumps(results, indent=2) + "\n")
    return results


def check_different(name: str, values: Sequence[Any]) -> None:
    """Refuse a list that is empty or says something twice.

    Raises:
        ValueError: It is such a list.
    """
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} must be different numbers, one or more, got {values}")
