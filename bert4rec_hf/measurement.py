"""A model and the baselines measured on a prepared dataset, under one protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import AutoTokenizer

from bert4rec_hf.config import build_section, override, unknown_name
from bert4rec_hf.data.prepared import PreparedDataset, load_prepared
from bert4rec_hf.data.vocabulary import vocabulary_fingerprint
from bert4rec_hf.evaluation.baselines import BASELINES, count_popularity
from bert4rec_hf.evaluation.evaluator import EvaluationConfig, Scorer, evaluate_in_detail
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.modeling import BERT4RecForMaskedItemModeling


def measure(
    model: nn.Module,
    dataset: PreparedDataset,
    config: EvaluationConfig,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Evaluate a model and the baselines on the held-out splits, under one protocol.

    Returns:
        `test` and `validation` of the model, `baselines` on test, the `dataset`, and the
        `share_of_best` where it is known what is possible.
    """
    popularity = count_popularity(dataset.train, dataset.vocab_size)
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
    }
    metrics = results["test"]["metrics"]
    # What is possible was worked out for this protocol.
    is_comparable = config.candidates == "full" and config.exclude_seen
    best = dataset.statistics.get("best_possible", {}) if is_comparable else {}
    results["share_of_best"] = {
        name: metrics[name] / value for name, value in best.items() if name in metrics
    }
    return results


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
    return {
        "run": folder.name,
        "parameters": count_parameters(model),
        **provenance(accelerator),
        **measure(model, dataset, config, accelerator),
    }


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of the item table and of the rest, tied ones counted once."""
    total = sum(weight.numel() for weight in model.parameters())
    head = model.get_output_embeddings().weight
    table = model.get_input_embeddings().weight
    embedding = table.numel() + (0 if head is table else head.numel())
    return {"total": total, "item_embeddings": embedding, "encoder": total - embedding}
