"""A study of scale: one experiment at several sizes, budgets and seeds, and the laws they follow.

Each run trains as any other and is measured once, on test; workers share the folder of a study.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from filelock import FileLock, Timeout
from huggingface_hub.dataclasses import strict

from bert4rec_hf.config import build_section, join_names, override, read_yaml, to_arguments
from bert4rec_hf.data.prepared import PreparedDataset, load_prepared
from bert4rec_hf.evaluation.evaluator import evaluate
from bert4rec_hf.evaluation.likelihood import cross_entropy
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.evaluation.scaling_laws import fit_laws, tell_parameters_apart
from bert4rec_hf.experiment import (
    Experiment,
    build_accelerator,
    build_loader,
    load_experiment,
    train_experiment,
)
from bert4rec_hf.hub.model_folder import load_model
from bert4rec_hf.training.run_folder import describe_changes, flatten, write_whole


@strict
@dataclass(kw_only=True)
class ScalingConfig:
    """Which experiment is scaled, and how often each size is trained."""

    experiment: str
    """File of `configs/` whose settings hold where this file says nothing."""

    seeds: list[int]
    """Every size is trained once with each."""

    max_steps: list[int]
    """Budgets; each is a training of its own, with the whole of the schedule."""

    def validate_lists(self) -> None:
        for name in ("seeds", "max_steps"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be different numbers, one or more, got {values}")


@dataclass(frozen=True)
class ScalingRun:
    """One size, budget and seed."""

    size: str
    max_steps: int
    seed: int
    settings: dict[str, Any]
    """By `section.setting`, over those of the experiment."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.size}-{self.max_steps}-{self.seed}"


@dataclass(frozen=True)
class ScalingStudy:
    """One file that says what is scaled."""

    name: str
    config: ScalingConfig
    sizes: dict[str, dict[str, Any]]
    """By name, the settings that make a size, by `section.setting`."""

    fixed: dict[str, Any]
    """Settings that differ from the experiment's at all sizes."""

    def runs(self) -> Iterator[ScalingRun]:
        """All there are, the shorter and smaller ones first."""
        for max_steps in sorted(self.config.max_steps):
            for size, settings in self.sizes.items():
                for seed in self.config.seeds:
                    budget = {
                        "training.max_steps": max_steps,
                        "training.checkpoint_steps": max_steps,
                        "training.seed": seed,
                    }
                    yield ScalingRun(size, max_steps, seed, self.fixed | settings | budget)

    def build(self, run: ScalingRun) -> Experiment:
        """Make the experiment of a run.

        Raises:
            ValueError: The experiment has no such setting, or it cannot have such a value.
        """
        return load_experiment(Path(self.config.experiment), to_arguments(run.settings))

    def describe(self) -> dict[str, Any]:
        """What was asked for, as plain values."""
        return {"study": dataclasses.asdict(self.config), "sizes": self.sizes, "fixed": self.fixed}


def load_scaling(path: Path, arguments: Sequence[str] = ()) -> ScalingStudy:
    """Read a file of a study: the sections `study` and `sizes`, and settings of the experiment.

    Args:
        path: Such as `configs/beauty/scaling.yaml`.
        arguments: `--section.setting value` pairs over the file.

    Raises:
        ValueError: Something in it is unknown, missing, or out of range.
    """
    sections = read_yaml(path)
    override(sections, arguments)
    config = build_section(ScalingConfig, sections.pop("study", {}), "study")
    sizes = sections.pop("sizes", {})
    if not sizes or not all(isinstance(size, dict) for size in sizes.values()):
        raise ValueError(
            f"{path}: sizes must name one size or more, each with settings such as "
            f"model.hidden_size, got {sizes}"
        )
    fixed = join_names(sections)
    study = ScalingStudy(path.stem, config, sizes, fixed)
    for run in study.runs():  # so that a mistake shows before any work is done
        study.build(run)
    return study


def run_scaling(study: ScalingStudy, output: Path) -> dict[str, Any]:
    """Train what is not trained yet; several processes may do so at the same time.

    Args:
        study: What to train.
        output: The folder of the study, new or begun before: a folder of each run comes into it,
            and `scaling.json`, written after each.

    Returns:
        What stands in `scaling.json`, with the runs that are done so far.

    Raises:
        ValueError: The folder has another study.
    """
    open_study(study, output)
    for run in study.runs():
        try:
            with FileLock(output / f".{run.name}.lock", timeout=0):
                if not (output / run.name / "point.json").exists():
                    train_run(study, run, output / run.name)
        except Timeout:  # another worker is at it
            continue
        write_scaling(study, output)
    return write_scaling(study, output)


def open_study(study: ScalingStudy, output: Path) -> None:
    """Begin the folder of a study, or go on with it.

    Raises:
        ValueError: It is another study's.
    """
    output.mkdir(parents=True, exist_ok=True)
    path, now = output / "study.json", study.describe()
    with FileLock(output / ".lock"):
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
        if changes := describe_changes(flatten(before), flatten(now)):
            raise ValueError(f"{output} has another study, as {changes}; choose another --output")
        write_whole(path, json.dumps(now, indent=2) + "\n")


def train_run(study: ScalingStudy, run: ScalingRun, folder: Path) -> None:
    """Train one model, or go on with it, and write what it came to as `point.json`."""
    experiment = study.build(run)
    accelerator = build_accelerator(experiment, folder)
    set_seed(run.seed)
    is_resumed = (folder / "run.json").exists()
    trained = train_experiment(experiment, folder, accelerator, is_resumed=is_resumed)
    dataset = load_prepared(Path(experiment.data.dataset))
    scorer = ModelScorer(load_model(folder / experiment.folder_name).to(accelerator.device).eval())
    split, training = dataset.test, trained["training"]
    seen = count_work(experiment, dataset, training["step"])
    point = {
        "size": run.size,
        "seed": run.seed,
        "max_steps": run.max_steps,
        "steps": training["step"],
        "best_step": training["best_step"],
        "parameters": trained["parameters"],
        **seen,
        "compute": count_operations(trained["parameters"], experiment, seen, dataset.num_items),
        "train_seconds": training["train_seconds"],
        "histories": training["histories"],
        "process_peak_bytes": trained["memory"]["process_peak_bytes"],
        "validation": training["looks"],
        "test": {
            "loss": cross_entropy(scorer, split, split.targets),
            **evaluate(scorer, split, split.targets, experiment.evaluation),
        },
        "dataset_fingerprint": trained["dataset_fingerprint"],
        "experiment": trained["experiment"],
        **provenance(accelerator),
    }
    write_whole(folder / "point.json", json.dumps(point, indent=2) + "\n")


def count_work(experiment: Experiment, dataset: PreparedDataset, steps: int) -> dict[str, int]:
    """Count what encoder and head had to do in so many steps, by making the batches again."""
    loader = build_loader(experiment, dataset, 1, 0)
    batches = steps * experiment.training.gradient_accumulation_steps
    items = masked_items = 0
    for batch, _ in zip(loader, range(batches), strict=False):
        items += batch["input_ids"].numel()
        masked_items += int(batch["labels"].ne(-100).sum())
    return {"items": items, "masked_items": masked_items}


def count_operations(
    parameters: dict[str, int], experiment: Experiment, work: dict[str, int], num_items: int
) -> int:
    """Floating-point operations of the training's matrix products, attention's own left out.

    Two per weight forward and four backward (Kaplan et al., 2020, https://arxiv.org/abs/2001.08361,
    section 2.1): of the encoder for each item read, of the head for each masked item. Looking items
    up costs none.
    """
    head = experiment.model["hidden_size"] * num_items
    return 6 * (parameters["encoder"] * work["items"] + head * work["masked_items"])


def write_scaling(study: ScalingStudy, output: Path) -> dict[str, Any]:
    """Put the runs that are done together, with the laws they follow."""
    points = [
        json.loads(path.read_text(encoding="utf-8"))
        for run in study.runs()
        if (path := output / run.name / "point.json").exists()
    ]
    results = {
        "kind": "scaling",
        "name": study.name,
        **study.describe(),
        "points": points,
        "laws": fit_laws(points),
        "by_doubling": tell_parameters_apart(points),
        **provenance(Accelerator()),
    }
    write_whole(output / "scaling.json", json.dumps(results, indent=2) + "\n")
    return results
