"""Where the parts meet: from one experiment file to a trained, measured model folder."""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, TorchDynamoPlugin
from peft import PeftConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader

from bert4rec_hf.config import (
    INITIALIZATIONS,
    BaseConfig,
    CardConfig,
    DataConfig,
    TrainingConfig,
    build_section,
    override,
    read_yaml,
    unknown_name,
)
from bert4rec_hf.data.collators import MaskedItemCollator, TrainingViews, ViewBatchSampler
from bert4rec_hf.data.negatives import NegativeSampler
from bert4rec_hf.data.prepared import PreparedDataset, load_prepared
from bert4rec_hf.evaluation.baselines import count_popularity
from bert4rec_hf.evaluation.evaluator import EvaluationConfig, evaluate
from bert4rec_hf.evaluation.metrics import METRICS
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.hub.card import write_card
from bert4rec_hf.hub.model_folder import (
    fingerprint_weights,
    load_weights,
    read_config,
    save_model_folder,
)
from bert4rec_hf.measurement import check_vocabulary, count_parameters, measure
from bert4rec_hf.modeling import (
    SAMPLED_OBJECTIVES,
    BERT4RecConfig,
    BERT4RecForMaskedItemModeling,
)
from bert4rec_hf.modeling.objectives import max_scores
from bert4rec_hf.training.checkpoint import find_checkpoints
from bert4rec_hf.training.initialization import (
    begin_with_average,
    co_occurrence_vectors,
    set_item_vectors,
)
from bert4rec_hf.training.launch import check_flags, check_launch, share_cores
from bert4rec_hf.training.loop import TrainingRun
from bert4rec_hf.training.memory import (
    MemoryEstimate,
    available_memory,
    check_memory,
    estimate_memory,
    peak_memory,
)
from bert4rec_hf.training.profiling import profile_steps
from bert4rec_hf.training.run_folder import flatten, open_output
from bert4rec_hf.tuners import TUNERS

logger = logging.getLogger(__name__)

SMALLEST_VOCABULARY = 3

FREE_SETTINGS = ("objective", "gbce_calibration", "hidden_dropout", "attention_dropout")
"""Of a model that is trained further; all others follow from the weights it has."""


@dataclass(kw_only=True)
class Experiment:
    """One file of `configs/`, checked."""

    name: str
    """`<dataset>-<experiment>`, from the path of the file."""

    data: DataConfig
    base: BaseConfig | None = None
    """What is trained further; None trains from scratch."""

    adapter: dict[str, Any] = field(default_factory=dict)
    """A `tuner` of TUNERS and settings of its config; without, all weights are trained."""

    model: dict[str, Any]
    """Settings of BERT4RecConfig; its `vocab_size` follows from the dataset. With a base model, the
    few that may differ from it."""

    training: TrainingConfig
    evaluation: EvaluationConfig
    card: CardConfig

    @property
    def folder_name(self) -> str:
        """What the run's folder calls that which was learned."""
        return "adapter" if self.adapter else "model"

    def to_dict(self) -> dict[str, Any]:
        """The sections as plain settings, as the file has them."""
        sections = dataclasses.asdict(self)
        del sections["name"]
        return {key: value for key, value in sections.items() if value or key == "model"}


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


def check_metric(experiment: Experiment) -> None:
    """Refuse to choose the best model, or to write a card, by something that is not measured."""
    if 10 not in experiment.evaluation.ks:
        raise ValueError(
            "evaluation.ks must contain 10, at which everyone reports, "
            f"got {experiment.evaluation.ks}"
        )
    measured = [f"{name}@{k}" for name in METRICS for k in experiment.evaluation.ks]
    if experiment.training.metric not in measured:
        raise ValueError(
            f"training.metric must be one of {', '.join(measured)}, "
            f"got {experiment.training.metric!r}"
        )


def check_initialization(experiment: Experiment) -> None:
    """Refuse to draw anew what a base model brings along."""
    for name in INITIALIZATIONS:
        value = getattr(experiment.training, name)
        if experiment.base is not None and value != "random":
            raise ValueError(
                f"training.{name} is for training from scratch, and base.model brings its "
                f"weights; leave it out, got {value!r}"
            )


def check_trackers(experiment: Experiment) -> None:
    """Refuse a tracker that accelerate would leave out without a word."""
    known = [str(name) for name in LoggerType.list() if name != "all"]
    installed = [str(name) for name in get_available_trackers()]
    for name in experiment.training.trackers:
        if name not in known:
            raise ValueError(f"training.trackers must be of {', '.join(known)}, got {name!r}")
        if name not in installed:
            raise ValueError(
                f"training.trackers names {name}, which is not installed; pip install {name}"
            )


def build_config(experiment: Experiment, vocab_size: int) -> BERT4RecConfig:
    """The model's configuration for a catalog, or that of the base model.

    Raises:
        ValueError: A setting is wrong, or cannot differ from the base model's.
    """
    if experiment.base is None:
        return build_section(BERT4RecConfig, experiment.model, "model", vocab_size=vocab_size)
    config = read_config(Path(experiment.base.model))
    for name in experiment.model:
        if name not in FREE_SETTINGS:
            raise ValueError(
                f"model.{name} cannot be set here, it is that of the base model "
                f"{experiment.base.model}; what may differ is {', '.join(FREE_SETTINGS)}"
            )
    settings = {name: getattr(config, name) for name in vars(BERT4RecConfig)["__annotations__"]}
    del settings["vocab_size"]
    settings |= experiment.model
    return build_section(BERT4RecConfig, settings, "model", vocab_size=config.vocab_size)


def build_adapter(experiment: Experiment) -> PeftConfig:
    """The adapter's configuration.

    Raises:
        ValueError: There is no base model, or a setting is wrong.
    """
    if experiment.base is None:
        raise ValueError("adapter goes on a trained model; name its folder by base.model")
    settings = dict(experiment.adapter)
    tuner = settings.pop("tuner", None)
    if tuner not in TUNERS:
        raise ValueError(f"adapter.tuner must be one of {', '.join(TUNERS)}, got {tuner!r}")
    return build_section(TUNERS[tuner], settings, "adapter")


def build_model(experiment: Experiment, vocab_size: int) -> nn.Module:
    """The model as its first step finds it; on the meta device, as it would be, without weights."""
    config = build_config(experiment, vocab_size)
    if experiment.base is None or torch.get_default_device().type == "meta":
        model = BERT4RecForMaskedItemModeling(config)
    else:
        model = load_weights(experiment.base.model, config)
    if experiment.training.gradient_checkpointing:
        # The later name; transformers before 5.23 has only the other.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if experiment.adapter:
        return get_peft_model(model, build_adapter(experiment))
    if experiment.training.row_sparse and config.objective in SAMPLED_OBJECTIVES:
        model.use_row_gradients()
    return model


def build_collator(
    experiment: Experiment, popularity: np.ndarray | None = None
) -> MaskedItemCollator:
    """What makes batches of masked views.

    Args:
        experiment: Its `data` and `model` sections say how.
        popularity: (vocab,) interactions of each item in training, for the sampled objectives.
    """
    data, config = experiment.data, build_config(experiment, SMALLEST_VOCABULARY)
    given = {
        "max_history_length": config.max_history_length,
        "is_causal": config.is_causal,
    }
    if config.objective in SAMPLED_OBJECTIVES:
        if popularity is None:
            popularity = np.zeros(SMALLEST_VOCABULARY)
        given["negatives"] = NegativeSampler(
            popularity, data.num_negatives, data.negative_distribution
        )
    names = (each.name for each in dataclasses.fields(MaskedItemCollator))
    settings = {name: getattr(data, name) for name in names if hasattr(data, name)}
    return build_section(MaskedItemCollator, settings, "data", **given)


def build_loader(
    experiment: Experiment, dataset: PreparedDataset, num_processes: int, first_step: int
) -> DataLoader:
    """Batches of all processes, from an optimizer step on to the last."""
    training = experiment.training
    collator = build_collator(experiment, count_popularity(dataset.train, dataset.vocab_size))
    batches_per_step = training.gradient_accumulation_steps * num_processes
    sampler = ViewBatchSampler(
        dataset.train.lengths.clip(max=collator.max_history_length),
        batch_size=training.batch_size,
        num_batches=training.max_steps * batches_per_step,
        seed=training.seed,
        first_batch=first_step * batches_per_step,
    )
    return DataLoader(
        TrainingViews(dataset.train),
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=experiment.data.num_workers,
        # The loader's own, or it would draw from the generator that dropout draws from.
        generator=torch.Generator(),
    )


def build_accelerator(experiment: Experiment, output: Path) -> Accelerator:
    """Accelerate as it was launched, with the trackers of the experiment."""
    check_flags()
    accelerator = Accelerator(
        gradient_accumulation_steps=experiment.training.gradient_accumulation_steps,
        log_with=experiment.training.trackers or None,
        project_dir=output / "logs",
        # The launcher's default, static shapes, would compile anew for each number of items.
        dynamo_plugin=TorchDynamoPlugin(dynamic=experiment.data.pad_to_multiple_of == 1),
    )
    check_launch(accelerator)
    share_cores(accelerator)
    return accelerator


def estimate_run(
    experiment: Experiment, dataset: PreparedDataset, accelerator: Accelerator
) -> MemoryEstimate:
    """Say what memory a step takes, by the first batch of the run and before there is a model.

    Raises:
        ValueError: There is not as much.
    """
    with torch.device("meta"):
        model = build_model(experiment, dataset.vocab_size)
    loader = build_loader(experiment, dataset, accelerator.num_processes, first_step=0)
    batch = loader.collate_fn(loader.dataset.__getitems__(next(iter(loader.batch_sampler))))
    estimate = estimate_memory(model, batch, accelerator, max_scores(accelerator.device))
    available = available_memory(accelerator)
    if accelerator.is_main_process:
        logger.info("memory of a step: %s of %.2f GB", estimate, available / 1e9)
    check_memory(estimate, available)
    return estimate


def run_experiment(
    experiment: Experiment,
    output: Path,
    accelerator: Accelerator,
    *,
    is_resumed: bool = False,
    profiled_steps: int = 0,
) -> dict[str, Any]:
    """Train, keep the best model, measure it and write its card.

    Takes the arguments of train_experiment, and raises what that does.

    Returns:
        What stands in `results.json`.
    """
    trained = train_experiment(
        experiment, output, accelerator, is_resumed=is_resumed, profiled_steps=profiled_steps
    )
    accelerator.wait_for_everyone()
    learned = output / experiment.folder_name
    dataset = load_prepared(Path(experiment.data.dataset))
    base = experiment.base.model if experiment.base else None
    measured = measure(learned, dataset, experiment.evaluation, accelerator, base)
    results = {"run": experiment.name, **trained, **measured}
    if accelerator.is_main_process:
        (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        write_card(results, learned / "README.md")
    accelerator.state.destroy_process_group()
    return results


def train_experiment(
    experiment: Experiment,
    output: Path,
    accelerator: Accelerator,
    *,
    is_resumed: bool = False,
    profiled_steps: int = 0,
    on_look: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> dict[str, Any]:
    """Train and keep the model that is best on validation; the test is not looked at.

    Args:
        experiment: What to run.
        output: The run's folder: `run.json`, `experiment.yaml`, `checkpoints/`, `logs/`, `model/`
            or `adapter/`, and a `profile/` come into it.
        accelerator: As `build_accelerator` makes it.
        is_resumed: Go on from the newest checkpoint in that folder.
        profiled_steps: How many steps to profile, near the first.
        on_look: Called with the step and the metrics of each look at validation.

    Returns:
        What depends on the training alone of `results.json`.

    Raises:
        FileNotFoundError: The dataset was not prepared.
        ValueError: The output folder exists and the run is not resumed, or is another run's; or
            a step does not fit into memory.
    """
    dataset = load_prepared(Path(experiment.data.dataset))
    identity = identify_run(experiment, dataset, accelerator)
    memory = estimate_run(experiment, dataset, accelerator)
    model = build_model(experiment, dataset.vocab_size)
    # Taken now: the checkout may have moved on when the training ends.
    origin = {"parameters": count_parameters(model), **provenance(accelerator)}
    open_output(output, identity, accelerator, is_resumed=is_resumed)
    accelerator.init_trackers(
        experiment.name,
        config=flatten({**identity, **origin}),
        init_kwargs=tracker_settings(output, is_resumed=is_resumed),
    )
    initialize(model, dataset, experiment.training)
    run = TrainingRun(model, experiment.training, accelerator, output / "checkpoints")
    if checkpoints := find_checkpoints(output / "checkpoints"):
        run.resume(checkpoints[-1])
    split = dataset.validation
    popularity = count_popularity(dataset.train, dataset.vocab_size)

    def validate(model: nn.Module) -> dict[str, float]:
        scorer = ModelScorer(model.eval())
        metrics = evaluate(scorer, split, split.targets, experiment.evaluation, popularity)
        on_look(run.state.step, metrics)
        return metrics

    def keep_best(model: nn.Module) -> None:
        if accelerator.is_main_process:
            save_model_folder(model, dataset.folder, output / experiment.folder_name)

    loader = build_loader(experiment, dataset, accelerator.num_processes, run.state.step)
    with profile_steps(accelerator, output / "profile", profiled_steps) as on_step:
        state = run.train(loader, validate, keep_best, on_step)
    peak = peak_memory(accelerator.device)
    for tracker in accelerator.trackers:  # not end_training, which parts the processes as well
        tracker.finish()
    return {
        **identity,
        "training": dataclasses.asdict(state),
        "memory": {"estimated_bytes": vars(memory), "process_peak_bytes": peak},
        **origin,
    }


def initialize(model: nn.Module, dataset: PreparedDataset, config: TrainingConfig) -> None:
    """Give the weights what the settings want them to begin with, where that is not as drawn."""
    if config.item_initialization == "co_occurrence":
        size = model.config.hidden_size
        set_item_vectors(
            model,
            co_occurrence_vectors(dataset.train, dataset.vocab_size, size, seed=config.seed),
        )
    if config.attention_initialization == "average":
        begin_with_average(model.base_model.layers)


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
        ValueError: The base model has another vocabulary than the dataset.
    """
    identity = {
        "dataset_fingerprint": dataset.fingerprint,
        "num_processes": accelerator.num_processes,
        "experiment": experiment.to_dict(),
    }
    if experiment.base is not None:
        folder = Path(experiment.base.model)
        check_vocabulary(folder, dataset)
        identity["base_weights"] = fingerprint_weights(folder)
    return identity
