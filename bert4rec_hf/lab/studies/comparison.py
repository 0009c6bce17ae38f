"""Several runs side by side: mean and deviation over seeds, and what is more than luck."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from bert4rec_hf.data.prepared import PreparedDataset
from bert4rec_hf.evaluation.baselines import BASELINES
from bert4rec_hf.evaluation.evaluator import (
    LENGTH_GROUPS,
    Evaluation,
    EvaluationConfig,
    evaluate_in_detail,
    split_groups,
)
from bert4rec_hf.evaluation.experts import describe_experts
from bert4rec_hf.evaluation.metrics import user_gains
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.evaluation.significance import find_differences
from bert4rec_hf.experiment.measurement import check_vocabulary, read_gates, read_protocol
from bert4rec_hf.hub.dataset_repository import open_dataset
from bert4rec_hf.hub.model_folder import load_model
from bert4rec_hf.hub.results import read_results
from bert4rec_hf.tuners import ILoraModel

Groups = dict[str, np.ndarray]
"""From names to (histories,) True for the members."""


def compare_folders(
    folders: Sequence[Path],
    dataset_folder: Path,
    arguments: Sequence[str],
    accelerator: Accelerator,
    *,
    against: str,
    segments: Path | None = None,
) -> dict[str, Any]:
    """Measure folders of runs on one test, and put together those that differ in the seed alone.

    Args:
        folders: Models or adapters, each as it lies in the folder of its run.
        dataset_folder: The prepared dataset, of the vocabulary that all of them have.
        arguments: `--evaluation.setting value` pairs.
        accelerator: Tells device and processes.
        against: Experiment that all others are tested against.
        segments: A csv file with the columns `user` and `segment`, by which to report apart.

    Returns:
        `runs` by experiment; the `differences` to the one named; `baselines`; the `segments`, by
        length of the history if none are given; and where the numbers come from.

    Raises:
        ValueError: A folder is not of a run, runs of one name differ in more than the seed, or a
            setting is wrong.
    """
    config, dataset = read_protocol(arguments), open_dataset(dataset_folder)
    runs = group_runs(folders)
    if against not in runs:
        raise ValueError(f"--against must be one of {', '.join(runs)}, got {against!r}")
    for folder in folders:
        check_vocabulary(folder, dataset)
    groups = (
        read_segments(segments, dataset)
        if segments
        else dict(split_groups(dataset.test.lengths, LENGTH_GROUPS))
    )
    measured, ranks = {}, {}
    for name, places in runs.items():
        measurements = [
            measure_run(place, dataset, config, accelerator, groups) for place in places
        ]
        measured[name] = [result for result, _ in measurements]
        ranks[name] = np.stack([each.ranks.numpy() for _, each in measurements])
        protocol = measurements[0][1].protocol
    popularity = dataset.popularity
    return {
        "kind": "comparison",
        "against": against,
        "dataset": dataset.statistics,
        "protocol": protocol,
        "segments": {name: int(chosen.sum()) for name, chosen in groups.items()},
        "runs": measured,
        "differences": {
            name: find_differences(ranks[name], ranks[against], config)
            for name in runs
            if name != against
        },
        "baselines": {
            name: evaluate_in_detail(
                baseline(dataset.train, dataset.vocab_size),
                dataset.test,
                dataset.test.targets,
                config,
                popularity,
            ).metrics
            for name, baseline in BASELINES.items()
        },
        **provenance(accelerator),
    }


def group_runs(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Put folders of runs together by the name of their experiment, in the order of seeds.

    Raises:
        ValueError: A folder has no results beside it, or a setting but the seed differs.
    """
    runs: dict[str, dict[int, Path]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for folder in folders:
        results = read_run(folder)
        name, experiment = results["run"], results["experiment"]
        seed = experiment["training"].pop("seed")
        if settings.setdefault(name, experiment) != experiment:
            raise ValueError(
                f"the runs of {name} differ in more than the seed, {folder} has other settings "
                "than the first; compare runs of the same experiment"
            )
        if seed in runs.setdefault(name, {}):
            raise ValueError(f"{name} has seed {seed} twice, the second time in {folder}")
        runs[name][seed] = folder
    return {name: [by_seed[seed] for seed in sorted(by_seed)] for name, by_seed in runs.items()}


def read_run(folder: Path) -> dict[str, Any]:
    """Read what the run wrote beside its model or adapter."""
    path = folder.resolve().parent / "results.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is not in the folder of a finished run: {path.name} is missing beside it"
        )
    return read_results(path)


def measure_run(
    folder: Path,
    dataset: PreparedDataset,
    config: EvaluationConfig,
    accelerator: Accelerator,
    groups: Groups,
) -> tuple[dict[str, Any], Evaluation]:
    """Measure one folder on the test.

    Returns:
        What a results file says of it, and everything.
    """
    popularity = dataset.popularity
    test = dataset.test

    def evaluate(model: nn.Module) -> Evaluation:
        scorer = ModelScorer(
            accelerator.prepare_model(model, device_placement=True, evaluation_mode=True).eval()
        )
        return evaluate_in_detail(scorer, test, test.targets, config, popularity)

    model = load_model(folder)
    evaluation = evaluate(model)
    results, ranks = read_run(folder), evaluation.ranks
    training = results["experiment"]["training"]
    metric = training["metric"]
    name, _, k = metric.partition("@")
    gains = user_gains(ranks, name, int(k))
    summary = {
        "seed": training["seed"],
        "commit": results["commit"],
        "experiment": results["experiment"],
        "parameters": results["parameters"],
        "training": {key: results["training"][key] for key in ("step", "best_step", "best_metric")},
        "train_seconds": results["training"]["train_seconds"],
        "metrics": evaluation.metrics,
        "segments": {each: gains[chosen].mean() for each, chosen in groups.items()},
    }
    if isinstance(model, PeftModel) and isinstance(model.base_model, ILoraModel):
        gates = read_gates(model, test)
        summary["experts"] = describe_experts(gates, test.lengths)
        summary["gates"] = {
            each: gates[torch.as_tensor(chosen)].mean(dim=0).tolist()
            for each, chosen in groups.items()
        }
        # What is lost if all users are mixed as they are on average.
        merged = model.merge_and_unload(gate_weights=gates.mean(dim=0))
        summary["mean_gate_metrics"] = evaluate(merged).metrics
    return summary, evaluation


def read_segments(path: Path, dataset: PreparedDataset) -> Groups:
    """Find who of the test belongs to which segment.

    Raises:
        ValueError: A column is missing, or a user of the test has no segment.
    """
    table = pl.read_csv(path, infer_schema=False)
    if not {"user", "segment"} <= set(table.columns):
        raise ValueError(f"{path} must have the columns user and segment, got {table.columns}")
    by_user = dict(table.select("user", "segment").iter_rows())
    users = datasets.load_from_disk(str(dataset.folder))["test"]["user"]
    missing = [user for user in users if user not in by_user]
    if missing:
        raise ValueError(
            f"{path} has no segment for {len(missing):,} users of the test, the first is "
            f"{missing[0]!r}; add them"
        )
    segments = np.array([by_user[user] for user in users])
    return {str(name): segments == name for name in sorted(set(segments))}
