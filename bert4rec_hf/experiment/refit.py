"""A second training on everything, as long as the first one, its twin, needed to be best."""

import dataclasses
from pathlib import Path
from typing import Any

from bert4rec_hf.data.prepared import PreparedDataset
from bert4rec_hf.hub.results import read_results
from bert4rec_hf.training.run_folder import describe_changes, flatten

from .spec import Experiment

MAY_DIFFER = (
    "data.dataset",
    "data.num_workers",
    "training.max_steps",
    "training.evaluation_steps",
    "training.checkpoint_steps",
    "training.logging_steps",
    "training.keep_checkpoints",
    "training.patience",
    "training.trackers",
)
"""Settings that do not change what is learned in a step."""


def plan_refit(
    experiment: Experiment, twin: Path, dataset: PreparedDataset
) -> tuple[Experiment, dict[str, Any]]:
    """Set the steps to those of the twin's best validation, scaled to the data.

    Args:
        experiment: The twin's, with another dataset.
        twin: Folder of a finished run.
        dataset: All interactions, without a held-out part.

    Returns:
        The experiment to train, and the results of the twin with the field `refit`.

    Raises:
        ValueError: The twin is not finished, is another experiment, or the dataset holds out.
    """
    path = twin / "results.json"
    if not path.is_file():
        raise ValueError(f"--refit {twin} has no results.json; name the folder of a finished run")
    if len(dataset.validation):
        raise ValueError(
            f"{dataset.folder} holds out {len(dataset.validation):,} histories to validate, and a "
            "refit trains on everything; prepare the same interactions with --split none"
        )
    results = read_results(path)
    check_experiment(experiment, results, twin)
    best_step = results["training"]["best_step"]
    learned = results["dataset"]["splits"]["train"]["interactions"]
    steps = max(1, round(best_step * len(dataset.train.values) / learned))
    training = dataclasses.replace(experiment.training, max_steps=steps, evaluation_steps=steps)
    refit = {
        "twin": results["run"],
        "twin_dataset_fingerprint": results["dataset_fingerprint"],
        "twin_best_step": best_step,
        "twin_interactions": learned,
        "interactions": len(dataset.train.values),
    }
    return dataclasses.replace(experiment, training=training), {**results, "refit": refit}


def check_experiment(experiment: Experiment, results: dict[str, Any], twin: Path) -> None:
    """Refuse to pass the twin's numbers off as those of another experiment.

    Raises:
        ValueError: A setting of the model, the batches or the steps differs.
    """
    before, now = (flatten(each) for each in (results["experiment"], experiment.to_dict()))
    for name in MAY_DIFFER:
        before.pop(name, None)
        now.pop(name, None)
    if changes := describe_changes(before, now):
        raise ValueError(
            f"the experiment differs from that of --refit {twin}: {changes}; change only "
            "data.dataset"
        )
