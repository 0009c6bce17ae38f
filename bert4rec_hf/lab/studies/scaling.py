"""A study of scale: one experiment at several sizes, budgets and seeds, and the laws they follow.

Each run trains as any other and is measured once, on test.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict

from bert4rec_hf.config import build_section, join_names, override, read_yaml
from bert4rec_hf.data.prepared import PreparedDataset
from bert4rec_hf.evaluation.evaluator import evaluate
from bert4rec_hf.experiment.build import build_config, build_loader
from bert4rec_hf.experiment.spec import Experiment
from bert4rec_hf.lab.statistics.likelihood import cross_entropy
from bert4rec_hf.lab.statistics.scaling_laws import fit_laws, tell_parameters_apart
from bert4rec_hf.lab.studies.study import Study, StudyRun, Trained, check_different, run_study
from bert4rec_hf.modeling import SAMPLED_OBJECTIVES


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
        check_different("seeds", self.seeds)
        check_different("max_steps", self.max_steps)


def load_scaling(path: Path, arguments: Sequence[str] = ()) -> Study:
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
    description = {"study": dataclasses.asdict(config), "sizes": sizes, "fixed": fixed}
    runs = list(list_runs(config, sizes, fixed))
    study = Study("scaling", path.stem, Path(config.experiment), description, runs)
    for run in runs:  # so that a mistake shows before any work is done
        study.build(run)
    return study


def list_runs(
    config: ScalingConfig, sizes: dict[str, dict[str, Any]], fixed: dict[str, Any]
) -> Iterator[StudyRun]:
    """All there are, the shorter and smaller ones first."""
    for max_steps in sorted(config.max_steps):
        for size, settings in sizes.items():
            for seed in config.seeds:
                budget = {
                    "training.max_steps": max_steps,
                    "training.checkpoint_steps": max_steps,
                    "training.seed": seed,
                }
                yield StudyRun(
                    f"{size}-{max_steps}-{seed}",
                    {"size": size, "seed": seed, "max_steps": max_steps},
                    fixed | settings | budget,
                )


def run_scaling(study: Study, output: Path) -> dict[str, Any]:
    """Train what is not trained yet, as `run_study` does, and fit the laws."""
    return run_study(study, output, measure_point, summarize_points)


def measure_point(trained: Trained) -> dict[str, Any]:
    """What a training took, and what it came to on test."""
    experiment, dataset, scorer = trained.experiment, trained.dataset, trained.scorer
    work = count_work(experiment, dataset, trained.results["training"]["step"])
    parameters, split = trained.results["parameters"], dataset.test
    return {
        **work,
        "compute": count_operations(parameters, experiment, work, dataset.vocab_size),
        "test": {
            "loss": cross_entropy(scorer, split, split.targets),
            **evaluate(scorer, split, split.targets, experiment.evaluation),
        },
    }


def summarize_points(points: list[dict[str, Any]]) -> dict[str, Any]:
    """The laws that points follow."""
    return {"laws": fit_laws(points), "by_doubling": tell_parameters_apart(points)}


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
    parameters: dict[str, int], experiment: Experiment, work: dict[str, int], vocab_size: int
) -> int:
    """Floating-point operations of the training's matrix products, attention's own left out.

    Two per weight forward and four backward (Kaplan et al., 2020, https://arxiv.org/abs/2001.08361,
    section 2.1): of the encoder for each item read, of the head for each masked item, which is
    scored against the catalog, or against itself and the negatives of a sampled objective. Looking
    items up costs none.
    """
    config = build_config(experiment, vocab_size)
    is_sampled = config.objective in SAMPLED_OBJECTIVES
    num_scored = experiment.data.num_negatives + 1 if is_sampled else config.num_items
    head = config.hidden_size * num_scored
    return 6 * (parameters["encoder"] * work["items"] + head * work["masked_items"])
