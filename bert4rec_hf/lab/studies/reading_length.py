"""What reading more of a history is worth, and what it costs."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.evaluation.evaluator import Evaluation, evaluate_in_detail
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.evaluation.ranking import HISTORIES_AT_ONCE
from bert4rec_hf.experiment.measurement import check_vocabulary, read_protocol
from bert4rec_hf.hub.dataset_repository import open_dataset
from bert4rec_hf.hub.model_folder import load_model

ROUNDS = 3
"""Times that the histories are read at each length, the lengths taking turns."""


def compare_lengths(
    folder: Path,
    dataset_folder: Path,
    lengths: Sequence[int],
    arguments: Sequence[str],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Measure one model on the test, reading so many of the newest items of each history.

    Args:
        folder: Of a model or an adapter.
        dataset_folder: The prepared dataset, of the vocabulary that the model has.
        lengths: Positions to read, the mask counted; more than in training need rotary ones.
        arguments: `--evaluation.setting value` pairs.
        accelerator: Tells device and processes.

    Returns:
        `lengths`: by length, as text, the metrics and the histories that are read per second, the
        median over rounds; the run, protocol, dataset, and where the numbers come from.

    Raises:
        ValueError: The vocabularies differ, or a length is below 2 or beyond the learned positions.
    """
    config, dataset = read_protocol(arguments), open_dataset(dataset_folder)
    check_vocabulary(folder, dataset)
    model = load_model(folder)
    check_lengths(lengths, model.config)
    model = accelerator.prepare_model(model, device_placement=True, evaluation_mode=True).eval()
    popularity = dataset.popularity
    trained_length = model.config.max_history_length

    def measure(length: int) -> tuple[float, Evaluation]:
        model.config.max_history_length = length
        scorer = ModelScorer(model)
        pace = time_reading(scorer, dataset.test)
        return pace, evaluate_in_detail(
            scorer, dataset.test, dataset.test.targets, config, popularity
        )

    turns = [length for _ in range(ROUNDS) for length in lengths]
    measured = [measure(length) for length in tqdm(turns, unit="length")]
    return {
        "kind": "lengths",
        "run": folder.resolve().parent.name,
        "trained_length": trained_length,
        "dataset": dataset.statistics,
        "protocol": measured[-1][1].protocol,
        "lengths": {
            str(length): {
                "histories_per_second": statistics.median(
                    pace for pace, _ in measured[place :: len(lengths)]
                ),
                "metrics": measured[place][1].metrics,
            }
            for place, length in enumerate(lengths)
        },
        **provenance(accelerator),
    }


def check_lengths(lengths: Sequence[int], config: Any) -> None:
    """Refuse lengths that a model cannot read.

    Raises:
        ValueError: One is below 2, stands twice, or is beyond the learned positions.
    """
    if min(lengths) < 2 or len(set(lengths)) < len(lengths):
        raise ValueError(
            f"--lengths must be different numbers from 2, an item and the mask, got {lengths}"
        )
    if config.position_type == "learned" and max(lengths) > config.max_history_length:
        raise ValueError(
            f"--lengths must not exceed the {config.max_history_length} positions that the model "
            f"has learned, got {max(lengths)}; a model with position_type: rotary can read more"
        )


@torch.no_grad()
def time_reading(scorer: ModelScorer, histories: Histories) -> float:
    """Histories per second, without the scoring of the catalog."""
    started = time.perf_counter()
    for start in range(0, len(histories), HISTORIES_AT_ONCE):
        rows = range(start, min(start + HISTORIES_AT_ONCE, len(histories)))
        encoded = scorer.encode([histories[row] for row in rows])
    encoded.sum().item()  # waits for a GPU
    return len(histories) / (time.perf_counter() - started)
