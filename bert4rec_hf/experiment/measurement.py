"""A trained folder and the baselines measured on a prepared dataset, under one protocol."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from peft import PeftModel
from torch import Tensor, nn

from bert4rec_hf.config import build_section, override, unknown_name
from bert4rec_hf.data.histories import Histories
from bert4rec_hf.data.prepared import PreparedDataset
from bert4rec_hf.data.vocabulary import ordered_items, vocabulary_fingerprint
from bert4rec_hf.evaluation.baselines import BASELINES
from bert4rec_hf.evaluation.collapse import Variety
from bert4rec_hf.evaluation.evaluator import (
    Evaluation,
    EvaluationConfig,
    Scorer,
    evaluate_in_detail,
    evaluate_with_variety,
)
from bert4rec_hf.evaluation.experts import describe_experts
from bert4rec_hf.evaluation.kept_ranks import KeptRanks
from bert4rec_hf.evaluation.model_scorer import ModelScorer, append_masks
from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.evaluation.ranking import HISTORIES_AT_ONCE
from bert4rec_hf.evaluation.significance import find_differences_of_shares
from bert4rec_hf.hub.adapter_base import fingerprint_weights
from bert4rec_hf.hub.dataset_repository import open_dataset
from bert4rec_hf.hub.model_folder import check_model_folder, find_base, load_model, read_vocabulary
from bert4rec_hf.hub.pull import fetch_folder
from bert4rec_hf.tuners import ILoraModel

logger = logging.getLogger(__name__)


def measure(
    folder: Path,
    dataset: PreparedDataset,
    config: EvaluationConfig,
    accelerator: Accelerator,
    base: str | Path | None = None,
    kept: KeptRanks | None = None,
) -> dict[str, Any]:
    """Evaluate a folder and the baselines on the held-out splits, under one protocol.

    Args:
        folder: Of a model or an adapter.
        dataset: With the vocabulary of the model.
        config: The protocol.
        accelerator: Tells device and processes.
        base: Model that training began with, measured beside the baselines; an adapter knows its.
        kept: Where ranks are kept, to go on after a kill.

    Returns:
        `test` and `validation` of the model, `baselines` on test, what the model has
        `beyond_item_knn` by a paired bootstrap, the `dataset`, the `share_of_best` where it is
        known what is possible, and the `experts` of an iLoRA adapter.
    """
    popularity = dataset.popularity

    def load(name: str | Path) -> nn.Module:
        return accelerator.prepare_model(
            load_model(fetch_folder(name)), device_placement=True, evaluation_mode=True
        ).eval()

    def on(split: str, contestant: Scorer, name: str = "model") -> Evaluation:
        rows, own = getattr(dataset, split), kept.of(f"{name}-{split}") if kept else None
        return evaluate_in_detail(contestant, rows, rows.targets, config, popularity, own)

    model = load(folder)
    scorer = ModelScorer(model)
    test = on("test", scorer)
    warn_of_collapse(test.variety, "test")
    baselines = {
        name: on("test", baseline(dataset.train, dataset.vocab_size), name)
        for name, baseline in BASELINES.items()
    }
    shares = (test.share, baselines["item_knn"].share)
    if base := base or find_base(folder):
        baselines = {"base_model": on("test", ModelScorer(load(base)), "base_model")} | baselines
    results = {
        "dataset": dataset.statistics,
        "test": test.to_dict(),
        "validation": on("validation", scorer).to_dict(),
        "baselines": {name: each.to_dict() for name, each in baselines.items()},
        "beyond_item_knn": find_differences_of_shares(*shares, config),
    }
    if isinstance(getattr(model, "base_model", None), ILoraModel):
        results["experts"] = describe_experts(read_gates(model, dataset.test), dataset.test.lengths)
    metrics = results["test"]["metrics"]
    # What is possible was worked out for this protocol.
    is_comparable = config.candidates == "full" and config.exclude_seen
    best = dataset.statistics.get("best_possible", {}) if is_comparable else {}
    results["share_of_best"] = {
        name: metrics[name] / value for name, value in best.items() if name in metrics
    }
    return results


def validate_model(
    model: nn.Module, split: Histories, config: EvaluationConfig, popularity: np.ndarray
) -> dict[str, float]:
    """Measure a model as often as training wants to know, and warn where it has collapsed.

    Args:
        model: Put into evaluation mode.
        split: With its targets.
        config: The protocol.
        popularity: (vocab,) interactions of each item in training.
    """
    scorer = ModelScorer(model.eval())
    metrics, variety = evaluate_with_variety(scorer, split, split.targets, config, popularity)
    warn_of_collapse(variety, "validation")
    return metrics


def warn_of_collapse(variety: Variety, split: str) -> None:
    """Say so where a model recommends a handful of items, whatever the history."""
    if variety.is_collapsed and PartialState().is_main_process:
        logger.warning(
            "recommendations have collapsed on %s: %s; if it stays so, set model.objective to "
            "full_softmax, or data.negative_distribution to popularity, or raise "
            "data.num_negatives",
            *(split, variety),
        )


def evaluate_folder(
    folder: Path,
    dataset_folder: Path,
    arguments: Sequence[str],
    accelerator: Accelerator,
    progress: Path | None = None,
) -> dict[str, Any]:
    """Measure a model folder as a run does at its end.

    Args:
        folder: The model folder.
        dataset_folder: The prepared dataset, made with the same vocabulary.
        arguments: `--evaluation.setting value` pairs.
        accelerator: Tells device and processes.
        progress: Folder where ranks are kept until all are there, to go on after a kill.

    Raises:
        ValueError: The vocabularies differ, a setting is wrong, or the folder holds the ranks of
            another evaluation.
    """
    config = read_protocol(arguments)
    dataset = open_dataset(dataset_folder)
    name, folder = folder.name, fetch_folder(folder)
    check_vocabulary(folder, dataset)
    kept = None
    if progress is not None:
        identity = {"dataset": dataset.fingerprint, "weights": fingerprint_weights(folder)}
        kept = KeptRanks(progress, identity | dataclasses.asdict(config))
    results = {
        "run": name,
        "parameters": count_parameters(load_model(folder)),
        **provenance(accelerator),
        **measure(folder, dataset, config, accelerator, kept=kept),
    }
    if kept is not None:
        kept.remove()
    return results


def read_protocol(arguments: Sequence[str]) -> EvaluationConfig:
    """Take the protocol from a command line.

    Args:
        arguments: `--evaluation.setting value` pairs.

    Raises:
        ValueError: A setting is wrong.
    """
    sections = {"evaluation": {"ks": [5, 10, 20]}}
    override(sections, arguments)
    for name in sections.keys() - {"evaluation"}:
        raise ValueError(f"{unknown_name(name, 'an evaluation', ['evaluation'])}")
    return build_section(EvaluationConfig, sections["evaluation"], "evaluation")


def check_vocabulary(folder: Path, dataset: PreparedDataset) -> None:
    """Refuse a model for which the ids of a dataset are other items.

    Raises:
        ValueError: The vocabularies differ.
    """
    check_model_folder(folder)
    theirs = vocabulary_fingerprint(ordered_items(read_vocabulary(folder)))
    if theirs != dataset.vocabulary_fingerprint:
        raise ValueError(
            f"{folder} was trained with another vocabulary than that of {dataset.folder} "
            f"(fingerprints {theirs} and {dataset.vocabulary_fingerprint}); use a dataset that was "
            "prepared from the same interactions"
        )


@torch.no_grad()
def read_gates(model: PeftModel, histories: Histories) -> Tensor:
    """Read how an iLoRA adapter mixes its experts for each history.

    Args:
        model: Its adapter active.
        histories: Whose next item is asked for.

    Returns:
        (histories, experts) on the CPU.
    """
    gates = []
    for start in range(0, len(histories), HISTORIES_AT_ONCE):
        rows = range(start, min(start + HISTORIES_AT_ONCE, len(histories)))
        inputs = append_masks([histories[row] for row in rows], model.config, model.device)
        keep = inputs["cu_seq_lens_q"][1:] - 1
        if model.config.is_causal:  # it answers at the newest item, where there is one
            keep = keep - inputs["cu_seq_lens_q"].diff().gt(1).int()
        gates.append(model.base_model.gate_weights(keep=keep, **inputs).cpu())
    return torch.cat(gates)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of the item table and of the rest, tied ones counted once; and the trainable."""
    total = sum(weight.numel() for weight in model.parameters())
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    head = model.get_output_embeddings().weight
    table = model.get_input_embeddings().weight
    embedding = table.numel() + (0 if head is table else head.numel())
    return {
        "total": total,
        "item_embeddings": embedding,
        "encoder": total - embedding,
        "trainable": trainable,
    }
