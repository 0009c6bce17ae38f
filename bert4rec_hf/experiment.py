"""Where the parts meet: from one experiment file to a trained, measured model folder."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from bert4rec_hf.config import (
    CardConfig,
    DataConfig,
    TrainingConfig,
    build_section,
    override,
    read_yaml,
    unknown_name,
)
from bert4rec_hf.data.collators import MaskedItemCollator, TrainingViews, ViewBatchSampler
from bert4rec_hf.data.prepared import PreparedDataset, load_prepared
from bert4rec_hf.data.vocabulary import vocabulary_fingerprint
from bert4rec_hf.evaluation.baselines import BASELINES
from bert4rec_hf.evaluation.evaluator import (
    EvaluationConfig,
    Scorer,
    evaluate,
    evaluate_in_detail,
)
from bert4rec_hf.evaluation.metrics import METRICS
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.hub.card import write_card
from bert4rec_hf.hub.export import save_model_folder
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.checkpoint import find_checkpoints
from bert4rec_hf.training.loop import TrainingRun

SMALLEST_VOCABULARY = 3


@dataclass(kw_only=True)
class Experiment:
    """One file of `configs/`, checked."""

    name: str
    """`<dataset>-<experiment>`, from the path of the file."""

    data: DataConfig
    model: dict[str, Any]
    """Settings of BERT4RecConfig; its `vocab_size` follows from the dataset."""

    training: TrainingConfig
    evaluation: EvaluationConfig
    card: CardConfig

    def to_dict(self) -> dict[str, Any]:
        """The sections as plain settings, as the file has them."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "name"}


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
    for name in sections:
        if name not in (known := [*kinds, "model"]):
            raise ValueError(f"{path}: {unknown_name(name, 'an experiment', known)}")
    try:
        experiment = Experiment(
            name=f"{path.resolve().parent.name}-{path.stem}",
            model=sections.get("model", {}),
            **{key: build_section(kind, sections.get(key, {}), key) for key, kind in kinds.items()},
        )
        # Built once with the smallest vocabulary, so that a mistake shows before any work is done.
        build_config(experiment, SMALLEST_VOCABULARY)
        build_collator(experiment)
        check_metric(experiment)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return experiment


def check_metric(experiment: Experiment) -> None:
    """Refuse to choose the best model by something that is not measured."""
    measured = [f"{name}@{k}" for name in METRICS for k in experiment.evaluation.ks]
    if experiment.training.metric not in measured:
        raise ValueError(
            f"training.metric must be one of {', '.join(measured)}, "
            f"got {experiment.training.metric!r}"
        )


def build_config(experiment: Experiment, vocab_size: int) -> BERT4RecConfig:
    """The model's configuration for a catalog."""
    return build_section(BERT4RecConfig, experiment.model, "model", vocab_size=vocab_size)


def build_model(experiment: Experiment, vocab_size: int) -> BERT4RecForMaskedItemModeling:
    """A model with fresh weights."""
    return BERT4RecForMaskedItemModeling(build_config(experiment, vocab_size))


def build_collator(experiment: Experiment) -> MaskedItemCollator:
    """What makes batches of masked views."""
    data = experiment.data
    ratios = {
        "mask_ratio": data.mask_ratio,
        "last_item_ratio": data.last_item_ratio,
        "random_window_ratio": data.random_window_ratio,
    }
    length = build_config(experiment, SMALLEST_VOCABULARY).max_history_length
    return build_section(MaskedItemCollator, ratios, "data", max_history_length=length)


def build_loader(
    experiment: Experiment, dataset: PreparedDataset, num_processes: int, first_step: int
) -> DataLoader:
    """Batches of all processes, from an optimizer step on to the last."""
    training = experiment.training
    collator = build_collator(experiment)
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
    accelerator = Accelerator(
        gradient_accumulation_steps=experiment.training.gradient_accumulation_steps,
        log_with=experiment.training.trackers,
        project_dir=output / "logs",
    )
    share_cores(accelerator)
    return accelerator


def share_cores(accelerator: Accelerator) -> None:
    """Give each process on CPU its share of the cores, where the launcher left it a single one.

    `accelerate launch` does so unless `OMP_NUM_THREADS` or `--num_cpu_threads_per_process` says
    otherwise.
    """
    if accelerator.device.type == "cpu" and os.environ.get("OMP_NUM_THREADS") == "1":
        # Those this process may run on; taskset and containers can leave fewer than there are.
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
        torch.set_num_threads(max(1, cores // accelerator.num_processes))


def run_experiment(
    experiment: Experiment, output: Path, accelerator: Accelerator, *, is_resumed: bool = False
) -> dict[str, Any]:
    """Train, keep the best model, measure it and write its card.

    Args:
        experiment: What to run.
        output: The run's folder: `experiment.yaml`, `checkpoints/`, `logs/`, `model/` and
            `results.json` come into it.
        accelerator: As `build_accelerator` makes it.
        is_resumed: Go on from the newest checkpoint in that folder.

    Returns:
        What stands in `results.json`.

    Raises:
        ValueError: The output folder exists and the run is not resumed, or the dataset is missing.
    """
    dataset = load_prepared(Path(experiment.data.dataset))
    model = build_model(experiment, dataset.vocab_size)
    open_output(output, experiment, accelerator, is_resumed=is_resumed)
    run = TrainingRun(model, experiment.training, accelerator, output / "checkpoints")
    if checkpoints := find_checkpoints(output / "checkpoints"):
        run.resume(checkpoints[-1])
    split, popularity = dataset.validation, count_interactions(dataset)

    def validate(model: nn.Module) -> dict[str, float]:
        model.eval()
        scorer = ModelScorer(model)
        return evaluate(scorer, split, split.targets, experiment.evaluation, popularity)

    def keep_best(model: nn.Module) -> None:
        if accelerator.is_main_process:
            save_model_folder(model, dataset.folder, output / "model")

    loader = build_loader(experiment, dataset, accelerator.num_processes, run.state.step)
    state = run.train(loader, validate, keep_best)
    accelerator.wait_for_everyone()
    best = BERT4RecForMaskedItemModeling.from_pretrained(output / "model")
    results = {
        "run": experiment.name,
        "experiment": experiment.to_dict(),
        "parameters": count_parameters(best),
        "training": dataclasses.asdict(state),
        **measure(best, dataset, experiment.evaluation, accelerator),
    }
    if accelerator.is_main_process:
        (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        write_card(results, output / "model" / "README.md")
    accelerator.end_training()
    return results


def open_output(
    output: Path, experiment: Experiment, accelerator: Accelerator, *, is_resumed: bool
) -> None:
    """Make the run's folder, or find it as the same experiment left it; start the trackers.

    Raises:
        ValueError: The folder exists and the run is not resumed, or the other way round, or it
            holds another experiment.
    """
    path, settings = output / "experiment.yaml", experiment.to_dict()
    if output.exists() and not is_resumed:
        raise ValueError(
            f"{output} exists; choose another --output, remove it, or go on with it by --resume"
        )
    if is_resumed and not path.exists():
        raise ValueError(f"{output} holds no run to resume: {path.name} is missing")
    if is_resumed and (before := read_yaml(path)) != settings:
        changed = [name for name in settings if before.get(name) != settings[name]]
        raise ValueError(
            f"{output} was begun with other settings in {', '.join(changed)}; resume with those "
            f"of {path}, or choose another --output"
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    accelerator.wait_for_everyone()
    flat = {
        f"{name}.{key}": str(value) for name in settings for key, value in settings[name].items()
    }
    accelerator.init_trackers(experiment.name, config=flat)


def evaluate_folder(
    folder: Path, dataset_folder: Path, arguments: Sequence[str], accelerator: Accelerator
) -> dict[str, Any]:
    """Measure a model folder as a run does at its end.

    Args:
        folder: The model folder.
        dataset_folder: The prepared dataset, made with the same vocabulary.
        arguments: `--evaluation.setting value` pairs.
        accelerator: Tells device and processes.

    Raises:
        ValueError: The vocabularies differ, or a setting is wrong.
    """
    sections = {"evaluation": {"ks": [5, 10, 20]}}
    override(sections, arguments)
    for name in sections.keys() - {"evaluation"}:
        raise ValueError(f"{unknown_name(name, 'an evaluation', ['evaluation'])}")
    config = build_section(EvaluationConfig, sections["evaluation"], "evaluation")
    dataset = load_prepared(dataset_folder)
    theirs = vocabulary_fingerprint(AutoTokenizer.from_pretrained(folder))
    if theirs != dataset.vocabulary_fingerprint:
        raise ValueError(
            f"{folder} was trained with another vocabulary than that of {dataset_folder} "
            f"(fingerprints {theirs} and {dataset.vocabulary_fingerprint}); evaluate "
            "it on the dataset it was trained on"
        )
    model = BERT4RecForMaskedItemModeling.from_pretrained(folder)
    results = {"run": folder.name, "parameters": count_parameters(model)}
    return results | measure(model, dataset, config, accelerator)


def count_interactions(dataset: PreparedDataset) -> np.ndarray:
    """Popularity: (vocab,) interactions of each item in the training split, and nowhere else."""
    return np.bincount(dataset.train.values, minlength=dataset.vocab_size)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of the item table and of the rest, tied ones counted once."""
    total = sum(weight.numel() for weight in model.parameters())
    head = model.get_output_embeddings().weight
    table = model.get_input_embeddings().weight
    embedding = table.numel() + (0 if head is table else head.numel())
    return {"total": total, "item_embeddings": embedding, "encoder": total - embedding}


def measure(
    model: nn.Module,
    dataset: PreparedDataset,
    config: EvaluationConfig,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Evaluate a model and the baselines on the held-out splits, under one protocol.

    Returns:
        `test` and `validation` of the model, `baselines` on test, the share of the `best_possible`
        where the dataset knows it, and what the numbers depend on.
    """
    popularity = count_interactions(dataset)
    scorer = ModelScorer(accelerator.prepare_model(model, evaluation_mode=True).eval())

    def on(split: str, contestant: Scorer) -> dict[str, Any]:
        rows = getattr(dataset, split)
        return evaluate_in_detail(contestant, rows, rows.targets, config, popularity).to_dict()

    results = {
        "dataset": dataset.statistics,
        "test": on("test", scorer),
        "validation": on("validation", scorer),
        "baselines": {
            name: on("test", baseline(dataset.train, dataset.vocab_size))
            for name, baseline in BASELINES.items()
        },
        **provenance(accelerator.device, accelerator.num_processes),
    }
    best = dataset.statistics.get("best_possible", {})
    results["share_of_best"] = {
        name: results["test"]["metrics"][name] / value
        for name, value in best.items()
        if name in results["test"]["metrics"]
    }
    return results
