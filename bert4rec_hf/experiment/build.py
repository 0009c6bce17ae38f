"""What an experiment is made of: model, adapter, batches, accelerator."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin
from peft import PeftConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader

from bert4rec_hf.config import DataConfig, TrainingConfig, build_section
from bert4rec_hf.data.negatives import NegativeSampler
from bert4rec_hf.data.prepared import PreparedDataset
from bert4rec_hf.data.sampling import TrainingViews, ViewBatchSampler
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.hub.config_file import read_config
from bert4rec_hf.hub.model_folder import load_weights
from bert4rec_hf.hub.pull import fetch_folder
from bert4rec_hf.modeling import (
    SAMPLED_OBJECTIVES,
    BERT4RecConfig,
    BERT4RecForMaskedItemModeling,
)
from bert4rec_hf.training.initialization import (
    begin_with_average,
    co_occurrence_vectors,
    set_item_vectors,
)
from bert4rec_hf.training.interruption import ignore_signals
from bert4rec_hf.training.launch import check_flags, check_launch, share_cores
from bert4rec_hf.training.neighbors import count_neighbors
from bert4rec_hf.tuners import TUNERS

from .spec import Experiment

FREE_SETTINGS = ("objective", "gbce_calibration", "hidden_dropout", "attention_dropout")
"""Of a model that is trained further; all others follow from the weights it has."""


SMALLEST_VOCABULARY = 3


def build_config(experiment: Experiment, vocab_size: int) -> BERT4RecConfig:
    """The model's configuration for a catalog, or that of the base model.

    Raises:
        ValueError: A setting is wrong, or cannot differ from the base model's.
    """
    if experiment.base is None:
        return build_section(BERT4RecConfig, experiment.model, "model", vocab_size=vocab_size)
    config = read_config(fetch_folder(experiment.base.model))
    for name in experiment.model:
        if name not in FREE_SETTINGS:
            raise ValueError(
                f"model.{name} cannot be set here: it comes from the base model "
                f"{experiment.base.model}; only these may differ: {', '.join(FREE_SETTINGS)}"
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
        raise ValueError("an adapter needs a trained model; set base.model to its folder")
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
        model = load_weights(fetch_folder(experiment.base.model), config)
        model.name_or_path = experiment.base.model  # which an adapter then names as its base
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

    Raises:
        ValueError: A setting is wrong, or the model cannot learn from such views.
    """
    data, config = experiment.data, build_config(experiment, SMALLEST_VOCABULARY)
    check_prefix_views(data, config)
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


def check_prefix_views(data: DataConfig, config: BERT4RecConfig) -> None:
    """Refuse views of several prefixes where an item has another position in each.

    Raises:
        ValueError: Learned positions are counted from the newest item.
    """
    has_prefix_views = data.prefix_view_ratio > 0 and not config.is_causal
    counts_from_newest = config.position_type == "learned" and config.position_origin == "newest"
    if has_prefix_views and counts_from_newest:
        raise ValueError(
            f"data.prefix_view_ratio is {data.prefix_view_ratio}, and such views read a history as "
            "several of its prefixes at once, each with a newest item of its own, while the model "
            "counts positions from the newest item; set model.position_origin to oldest, "
            "model.position_type to rotary, or data.prefix_view_ratio to 0"
        )


def build_loader(
    experiment: Experiment, dataset: PreparedDataset, num_processes: int, first_step: int
) -> DataLoader:
    """Batches of all processes, from an optimizer step on to the last."""
    training = experiment.training
    collator = build_collator(experiment, dataset.popularity)
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
        worker_init_fn=ignore_signals,
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


def initialize(model: nn.Module, dataset: PreparedDataset, config: TrainingConfig) -> None:
    """Give the weights what the settings want them to begin with, where that is not as drawn."""
    if config.item_initialization == "co_occurrence":
        size = model.config.hidden_size
        set_item_vectors(
            model,
            co_occurrence_vectors(dataset.train, dataset.vocab_size, size, seed=config.seed),
        )
    neighbors = getattr(model, "neighbors", None)
    if neighbors is not None and not neighbors.similarities.any():  # a base model brings its own
        count, distance = model.config.num_neighbors, model.config.neighbor_distance
        neighbors.set_table(
            *count_neighbors(dataset.train, dataset.vocab_size, count, max_distance=distance)
        )
    if config.attention_initialization == "average":
        begin_with_average(model.base_model.layers)
