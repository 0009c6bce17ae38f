"""Item neighbors mixed into a model that was trained without them, and weighed on validation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bert4rec_hf.data.prepared import PreparedDataset, load_prepared
from bert4rec_hf.evaluation.baselines import count_popularity
from bert4rec_hf.evaluation.evaluator import EvaluationConfig, evaluate
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.ranking import CatalogScores
from bert4rec_hf.hub.model_folder import find_base, load_weights, save_model_folder
from bert4rec_hf.modeling import BERT4RecForMaskedItemModeling
from bert4rec_hf.training.neighbors import count_neighbors

from .measurement import check_vocabulary, read_protocol

WEIGHTS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
"""Of the neighbors' probabilities beside the network's, of which the best is kept."""

NUM_HISTORIES = 5_000
"""Of the validation split that tell, at most."""

RIDGE = 1e-3
"""Of the regression that predicts how much the network's exponentials add up to."""


def add_neighbors(
    model: BERT4RecForMaskedItemModeling,
    dataset: PreparedDataset,
    num_neighbors: int,
    config: EvaluationConfig,
    metric: str = "ndcg@10",
) -> dict[str, float]:
    """Mix neighbors into a trained model, in place, as far as that helps on validation.

    They are counted in the training part, anew where the model has some already. The gate is to
    give them a fixed weight beside the network, whose exponentials add up to another sum for each
    history; a linear function of its state predicts the logarithm of that sum.

    Args:
        model: Trained on the dataset.
        dataset: Whose training part is counted, and whose validation chooses.
        num_neighbors: Of each item.
        config: The protocol of the choice.
        metric: What is chosen by; higher is better.

    Returns:
        The metric by the weight of the neighbors; 0, the network alone, has no neighbors left where
        nothing was better.
    """
    rows = _spread(len(dataset.validation))
    histories = [dataset.validation[row] for row in rows]
    targets = dataset.validation.targets[rows]
    popularity = count_popularity(dataset.train, dataset.vocab_size)

    def measure() -> float:
        return evaluate(ModelScorer(model), histories, targets, config, popularity)[metric]

    model.eval().remove_neighbors()
    found = {"0": measure()}
    line = predict_log_sums(model, histories)
    fill_table(model, dataset, num_neighbors)
    for weight in WEIGHTS:
        set_gate(model.neighbors.gate, *line, weight)
        found[str(weight)] = measure()
    keep_weight(model, line, found)
    return found


def repeat_choice(
    model: BERT4RecForMaskedItemModeling,
    dataset: PreparedDataset,
    num_neighbors: int,
    found: dict[str, float],
) -> dict[str, float]:
    """Mix neighbors into a model by the choice that was made for another of the same experiment.

    Args:
        model: Trained on all of the dataset, in which nothing is held out.
        dataset: Whose training part is counted.
        num_neighbors: Of each item.
        found: What add_neighbors gave for the other model.

    Returns:
        The same.
    """
    model.eval().remove_neighbors()
    rows = _spread(len(dataset.train))
    line = predict_log_sums(model, [dataset.train[row] for row in rows])
    fill_table(model, dataset, num_neighbors)
    keep_weight(model, line, found)
    return found


def fill_table(
    model: BERT4RecForMaskedItemModeling, dataset: PreparedDataset, num_neighbors: int
) -> None:
    """Count the neighbors in the training part."""
    model.add_neighbors(num_neighbors)
    table = count_neighbors(
        dataset.train,
        dataset.vocab_size,
        num_neighbors,
        max_distance=model.config.neighbor_distance,
    )
    model.neighbors.set_table(*table)


def keep_weight(
    model: BERT4RecForMaskedItemModeling, line: tuple[Tensor, Tensor], found: dict[str, float]
) -> None:
    """Give neighbors the weight that was best, or leave them out where that was none."""
    best = max(found, key=found.get)
    if best == "0":
        model.remove_neighbors()
    else:
        set_gate(model.neighbors.gate, *line, float(best))


@torch.no_grad()
def set_gate(gate: torch.nn.Linear, slope: Tensor, offset: Tensor, weight: float) -> None:
    """Let neighbors have such a weight where the network's exponentials add up as predicted."""
    gate.weight.copy_(slope)
    gate.bias.copy_(offset + np.log(weight / (1 - weight)))


@torch.no_grad()
def predict_log_sums(
    model: BERT4RecForMaskedItemModeling, histories: Sequence[np.ndarray], batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Fit how the logarithm of the network's sum of exponentials depends on its state.

    Args:
        model: Without neighbors.
        histories: Ids, oldest first.
        batch_size: Histories read at once.

    Returns:
        (1, hidden) slope and (1,) offset of the regression.
    """
    scorer = ModelScorer(model)
    states, sums = [], []
    for start in range(0, len(histories), batch_size):
        encoded = scorer.encode(histories[start : start + batch_size])
        parts = [scores.logsumexp(dim=1) for _, scores in CatalogScores(scorer, encoded)]
        states.append(encoded.double())
        sums.append(torch.stack(parts, dim=1).logsumexp(dim=1).double())
    states, sums = torch.cat(states), torch.cat(sums)
    mean, level = states.mean(dim=0), sums.mean()
    centered = states - mean
    products = centered.T @ centered
    products += RIDGE * products.trace() / len(products) * torch.eye(len(products)).to(products)
    slope = torch.linalg.solve(products, centered.T @ (sums - level))
    return slope.unsqueeze(0), (level - slope @ mean).unsqueeze(0)


def _spread(num_rows: int) -> np.ndarray:
    """(rows,) that lie evenly in a split, all of them where they are few."""
    return np.unique(np.linspace(0, num_rows - 1, min(num_rows, NUM_HISTORIES)).astype(int))


def write_with_neighbors(
    folder: Path,
    dataset_folder: Path,
    output: Path,
    num_neighbors: int,
    arguments: Sequence[str] = (),
) -> dict[str, float]:
    """Write a model folder again, with neighbors where they help.

    Args:
        folder: Of a model; not of an adapter.
        dataset_folder: The prepared dataset it was trained on.
        output: A new folder.
        num_neighbors: Of each item.
        arguments: `--evaluation.setting value` pairs.

    Returns:
        As add_neighbors does.

    Raises:
        ValueError: The output exists, the number is below 1, the folder is that of an adapter, the
            vocabularies differ, or a setting is wrong.
    """
    if output.exists():
        raise ValueError(f"{output} exists; choose another --output or remove it")
    if num_neighbors < 1:
        raise ValueError(f"num_neighbors must be at least 1, got {num_neighbors}")
    config = read_protocol(arguments)
    dataset = load_prepared(dataset_folder)
    check_vocabulary(folder, dataset)
    if find_base(folder) is not None:
        raise ValueError(
            f"{folder} is an adapter, and neighbors belong to the model; add them to the base "
            "model, then train the adapter on it"
        )
    model = load_weights(folder)
    found = add_neighbors(model, dataset, num_neighbors, config)
    save_model_folder(model, dataset.folder, output)
    return found
