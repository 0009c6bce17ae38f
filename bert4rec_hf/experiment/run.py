"""From an experiment to a trained, measured model folder."""

import dataclasses
import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.data.histories import Histories
from bert4rec_hf.data.prepared import PreparedDataset
from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.hub.adapter_base import fingerprint_weights
from bert4rec_hf.hub.card import write_card
from bert4rec_hf.hub.dataset_repository import open_dataset
from bert4rec_hf.hub.model_folder import load_weights, save_model_folder
from bert4rec_hf.hub.pull import fetch_folder
from bert4rec_hf.modeling.objectives import max_scores
from bert4rec_hf.training.agreement import failing_together
from bert4rec_hf.training.checkpoint import TrainingState, newest_checkpoint
from bert4rec_hf.training.initialization import co_occurrence_bytes
from bert4rec_hf.training.item_shards import check_item_shards
from bert4rec_hf.training.limits import raise_file_limit
from bert4rec_hf.training.loop import TrainingRun, going_on_without_trackers
from bert4rec_hf.training.memory import (
    MemoryEstimate,
    available_memory,
    check_memory,
    check_start,
    estimate_memory,
    host_memory,
    peak_memory,
)
from bert4rec_hf.training.profiling import profile_steps
from bert4rec_hf.training.run_folder import flatten, open_output, write_whole

from .build import build_loader, build_model, initialize
from .measurement import check_vocabulary, count_parameters, measure, validate_model
from .neighbors import add_neighbors, repeat_choice
from .refit import plan_refit
from .spec import Experiment
from .teachers import add_memory, identify_teachers, load_teachers

logger = logging.getLogger(__name__)


OnValidation = Callable[[int, dict[str, float]], None]
"""Called with the step and the metrics of each validation."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What can be said of a run beside its experiment."""

    is_resumed: bool = False
    profiled_steps: int = 0
    ignores_memory: bool = False
    on_validation: OnValidation = lambda step, metrics: None


def run_experiment(  # noqa: PLR0913 - the options of a run
    experiment: Experiment,
    output: Path,
    accelerator: Accelerator,
    *,
    is_resumed: bool = False,
    profiled_steps: int = 0,
    ignores_memory: bool = False,
    refit: Path | None = None,
) -> dict[str, Any]:
    """Train, keep the best model, measure it and write its card.

    Takes the arguments of train_experiment, and raises what that and plan_refit do.

    Args:
        experiment: What to run.
        output: The run's folder.
        accelerator: As `build_accelerator` makes it.
        is_resumed: Go on from the newest checkpoint in that folder.
        profiled_steps: How many steps to profile, near the first.
        ignores_memory: Go on where a step is estimated not to fit.
        refit: Folder of a finished run, its twin, where this one trains on everything; the results
            then are the twin's.

    Returns:
        What stands in `results.json`.
    """
    dataset = open_dataset(experiment.data.dataset)
    measured = None
    if refit is not None:
        experiment, measured = plan_refit(experiment, refit, dataset)
    elif len(dataset.validation) == 0:
        raise ValueError(
            f"{dataset.folder} holds out nothing to validate; give a finished run of this "
            "experiment with --refit, which sets how long to train, or prepare with another split"
        )
    options = RunOptions(
        is_resumed=is_resumed, profiled_steps=profiled_steps, ignores_memory=ignores_memory
    )
    with ExitStack() as held:
        trained = _train(experiment, output, accelerator, options, held)
        accelerator.wait_for_everyone()
        learned = output / experiment.folder_name
        if experiment.training.added_neighbors:
            of_twin = None if measured is None else measured["neighbors"]
            trained["neighbors"] = add_to_run(experiment, dataset, learned, accelerator, of_twin)
        base = experiment.base.model if experiment.base else None
        if measured is None:
            measured = measure(learned, dataset, experiment.evaluation, accelerator, base)
        own = {"run": experiment.name, **trained}
        results = {**own, **measured, **own}  # of a twin there are all fields
        if accelerator.is_main_process:
            write_whole(output / "results.json", json.dumps(results, indent=2) + "\n")
            _write_card(results, learned / "README.md")
    accelerator.state.destroy_process_group()
    return results


def _write_card(results: dict[str, Any], path: Path) -> None:
    try:
        write_card(results, path)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost a trained run
        logger.warning(
            "%s could not be written: %s: %s; the model and results.json were written; fix the "
            "card section of the experiment, and --resume writes the card without training again",
            *(path, type(error).__name__, error),
        )


def add_to_run(
    experiment: Experiment,
    dataset: PreparedDataset,
    folder: Path,
    accelerator: Accelerator,
    of_twin: dict[str, float] | None = None,
) -> dict[str, float]:
    """Mix neighbors into the model that a run has kept, if they help on validation.

    Args:
        experiment: Of the run.
        dataset: It was trained on.
        folder: Where the model lies, and will.
        accelerator: Tells the processes apart.
        of_twin: What came out for the twin of a refit, which has no validation of its own.

    Returns:
        The metric of the run by the weight of neighbors.
    """
    model, training = load_weights(folder).to(accelerator.device), experiment.training
    count = training.added_neighbors
    if of_twin is None:
        found = add_neighbors(model, dataset, count, experiment.evaluation, training.metric)
    else:
        found = repeat_choice(model, dataset, count, of_twin)
    if accelerator.is_main_process:
        save_model_folder(model, dataset.folder, folder)
    accelerator.wait_for_everyone()
    return found


def train_experiment(  # noqa: PLR0913 - what can be said on a command line
    experiment: Experiment,
    output: Path,
    accelerator: Accelerator,
    *,
    is_resumed: bool = False,
    profiled_steps: int = 0,
    ignores_memory: bool = False,
    on_validation: OnValidation = lambda step, metrics: None,
) -> dict[str, Any]:
    """Train and keep the model that is best on validation; the test split is not read.

    Args:
        experiment: What to run.
        output: The run's folder: `run.json`, `experiment.yaml`, `checkpoints/`, `logs/`, `model/`
            or `adapter/`, and a `profile/` come into it.
        accelerator: As `build_accelerator` makes it.
        is_resumed: Continue from the newest whole checkpoint in that folder.
        profiled_steps: How many steps to profile, near the first.
        ignores_memory: Go on where the estimate says that a step does not fit into memory.
        on_validation: Called with the step and the metrics of each validation.

    Returns:
        What depends on the training alone of `results.json`.

    Raises:
        FileNotFoundError: The dataset was not prepared.
        ValueError: The output folder exists and the run is not resumed, or is another run's, or has
            a process at work in it; a step does not fit into memory, or is not finite; or there are
            too few file handles.
        OSError: The last checkpoint, or the best model, could not be written.
        Interrupted: A signal asked to stop.
    """
    options = RunOptions(
        is_resumed=is_resumed,
        profiled_steps=profiled_steps,
        ignores_memory=ignores_memory,
        on_validation=on_validation,
    )
    with ExitStack() as held:
        return _train(experiment, output, accelerator, options, held)


def _train(
    experiment: Experiment,
    output: Path,
    accelerator: Accelerator,
    options: RunOptions,
    held: ExitStack,
) -> dict[str, Any]:
    """Train as `train_experiment` does; the folder is nobody else's until `held` is left."""
    raise_file_limit(experiment.data.num_workers)
    dataset = open_dataset(experiment.data.dataset)
    identity = identify_run(experiment, dataset, accelerator)
    memory = estimate_run(experiment, dataset, accelerator, ignores_memory=options.ignores_memory)
    model = build_model(experiment, dataset.vocab_size)
    # Taken now: the checkout may have moved on when the training ends.
    origin = {"parameters": count_parameters(model), **provenance(accelerator)}
    is_resumed = options.is_resumed
    changes = held.enter_context(open_output(output, identity, accelerator, is_resumed=is_resumed))
    accelerator.init_trackers(
        experiment.name,
        config=flatten({**identity, **origin}),
        init_kwargs=tracker_settings(output, is_resumed=is_resumed),
    )
    initialize(model, dataset, experiment.training)
    run = TrainingRun(
        model,
        experiment.training,
        accelerator,
        output / "checkpoints",
        load_teachers(experiment, accelerator),
    )
    if checkpoint := newest_checkpoint(output / "checkpoints", accelerator):
        run.resume(checkpoint)
        check_length(run.state, experiment.training)
    split = draw_validation(dataset, experiment.training)
    popularity = dataset.popularity

    def validate(model: nn.Module) -> dict[str, float]:
        metrics = validate_model(model, split, experiment.evaluation, popularity)
        options.on_validation(run.state.step, metrics)
        return metrics

    def keep_best(model: nn.Module) -> None:
        with failing_together(accelerator):
            if accelerator.is_main_process:
                save_model_folder(model, dataset.folder, output / experiment.folder_name)

    loader = build_loader(experiment, dataset, accelerator.num_processes, run.state.step)
    with profile_steps(accelerator, output / "profile", options.profiled_steps) as on_step:
        state = run.train(loader, validate if len(split) else None, keep_best, on_step)
    with going_on_without_trackers(accelerator):
        for tracker in accelerator.trackers:  # not end_training, which parts the processes as well
            tracker.finish()
    return {
        **identity,
        **({"changes": changes} if changes else {}),
        "training": dataclasses.asdict(state),
        "memory": {
            "estimated_bytes": vars(memory),
            "process_peak_bytes": peak_memory(accelerator.device),
        },
        **origin,
    }


def draw_validation(dataset: PreparedDataset, config: TrainingConfig) -> Histories:
    """The histories that training validates on."""
    return dataset.validation.draw(config.validation_histories, config.seed)


def check_length(state: TrainingState, config: TrainingConfig) -> None:
    """Refuse to go on with a run that is to be shorter than it is.

    Raises:
        ValueError: It is so.
    """
    if state.step > config.max_steps:
        raise ValueError(
            f"training.max_steps is {config.max_steps:,} and the run is at step {state.step:,}; "
            "give it at least that"
        )


def estimate_run(
    experiment: Experiment,
    dataset: PreparedDataset,
    accelerator: Accelerator,
    *,
    ignores_memory: bool = False,
) -> MemoryEstimate:
    """Say what memory a step takes, by the first batch of the run and before there is a model.

    Raises:
        ValueError: There is not as much, and that is not to be ignored.
    """
    with torch.device("meta"):
        model = build_model(experiment, dataset.vocab_size)
    shards_items = check_item_shards(model, experiment.training, accelerator)
    loader = build_loader(experiment, dataset, accelerator.num_processes, first_step=0)
    batch = loader.collate_fn(loader.dataset.__getitems__(next(iter(loader.batch_sampler))))
    estimate = estimate_memory(
        model, batch, accelerator, max_scores(accelerator.device), shards_items=shards_items
    )
    estimate = add_memory(estimate, experiment)
    start = estimate_start(experiment, dataset.train.lengths, model)
    available = available_memory(accelerator)
    if accelerator.is_main_process:
        logger.info("memory of a step: %s of %.2f GB", estimate, available / 1e9)
    try:
        check_memory(estimate, available)
        check_start(start, estimate.parameters, host_memory(accelerator))
    except ValueError as error:
        if not ignores_memory:
            raise
        logger.warning("continuing anyway: %s", error)
    return estimate


def estimate_start(experiment: Experiment, lengths: np.ndarray, model: nn.Module) -> int:
    """Bytes that are taken for what item embeddings begin with, before the first step.

    Args:
        experiment: Of the run.
        lengths: (histories,) items of each that is trained on.
        model: As `build_model` makes it.
    """
    if experiment.training.item_initialization != "co_occurrence":
        return 0
    return co_occurrence_bytes(lengths, *model.get_input_embeddings().weight.shape)


def tracker_settings(output: Path, *, is_resumed: bool) -> dict[str, dict[str, str]]:
    """What trackers would choose otherwise: the name of the run, and a place outside its folder.

    TensorBoard goes by the folder that `build_accelerator` gives it.
    """
    return {
        "wandb": {"name": output.name, "dir": str(output)},
        "trackio": {"name": output.name, "resume": "allow" if is_resumed else "never"},
    }


def identify_run(
    experiment: Experiment, dataset: PreparedDataset, accelerator: Accelerator
) -> dict[str, Any]:
    """What must be the same when the run is resumed.

    Raises:
        ValueError: The base model has another vocabulary than the dataset, or a teacher cannot be
            one.
    """
    identity = {
        "dataset_fingerprint": dataset.fingerprint,
        "num_processes": accelerator.num_processes,
        "experiment": experiment.to_dict(),
    }
    if experiment.base is not None:
        folder = fetch_folder(experiment.base.model)
        check_vocabulary(folder, dataset)
        identity["base_weights"] = fingerprint_weights(folder)
    if experiment.training.teachers:
        identity["teacher_weights"] = identify_teachers(experiment, dataset)
    return identity
