"""A trained model takes in what is new: new items, and new interactions with any."""

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from huggingface_hub.dataclasses import strict
from scipy import sparse
from torch import nn
from torch.utils.data import DataLoader

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.data.negatives import NegativeSampler
from bert4rec_hf.data.recent import RecentInteractions, TargetCollator, TargetViews, read_recent
from bert4rec_hf.data.sampling import ViewBatchSampler
from bert4rec_hf.data.vocabulary import ordered_items
from bert4rec_hf.evaluation.baselines import count_popularity
from bert4rec_hf.evaluation.evaluator import EvaluationConfig
from bert4rec_hf.evaluation.metrics import compute_metrics
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.shared_ranking import rank_histories
from bert4rec_hf.hub.model_folder import find_base, load_weights, read_vocabulary
from bert4rec_hf.modeling import NUM_SPECIAL_IDS, SAMPLED_OBJECTIVES
from bert4rec_hf.training.loop import TrainingRun
from bert4rec_hf.training.neighbors import count_neighbors
from bert4rec_hf.training.new_items import add_items, shares_by_co_occurrence, shares_by_vectors

from .updated_folder import save_updated

MAX_HELD_OUT = 0.1
"""Share of the targets that is held out at most, where there are few."""

NUM_NEGATIVES = 4_096


@strict
@dataclass(kw_only=True)
class UpdateConfig:
    """How much of the new is learned, and how much of the old is seen again."""

    since: float | int
    """Seconds; interactions from here on are learned."""

    replay: float | int = 0.1
    """Old targets that are learned again, as a share of the new ones."""

    epochs: int = 3
    learning_rate: float | int = 5e-4
    item_learning_rate_factor: float | int = 5.0
    batch_size: int = 64
    held_out: int = 1_000
    """Of the newest targets, those that are not learned but measured, before and after."""

    seed: int = 0

    def validate_counts(self) -> None:
        for name in ("epochs", "batch_size", "held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def validate_replay(self) -> None:
        if self.replay < 0:
            raise ValueError(f"replay must be 0 or more, got {self.replay}")

    def validate_learning_rate(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


def update_model(
    folder: Path,
    output: Path,
    interactions: pl.DataFrame,
    config: UpdateConfig,
    accelerator: Accelerator,
    vectors: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Write a model folder that knows the new items and has learned the new interactions.

    Args:
        folder: The model to go on from; it is left as it is.
        output: The folder to write; it must be new.
        interactions: `user`, `item`, `timestamp` and `row`: whole histories.
        config: What is new, and how it is learned.
        accelerator: Tells the device.
        vectors: Of items by name, such as embeddings of their texts, all of one size: what new
            items are initialized by in place of co-occurrence.

    Returns:
        What stands in `update.json`: counts, time, and the metrics before and after.

    Raises:
        ValueError: The output exists, the folder is an adapter, or nothing is recent.
    """
    if output.exists():
        raise ValueError(f"{output} exists; name another --output, or remove it")
    if find_base(folder) is not None:
        raise ValueError(
            f"{folder} is an adapter; update its base model, then train the adapter again"
        )
    started = time.perf_counter()
    catalog = ordered_items(read_vocabulary(folder))
    recent = read_recent(interactions, catalog, config.since)
    model = load_weights(folder)
    num_known = model.config.vocab_size
    items = catalog + recent.new_items
    num_made = 0
    if recent.new_items:
        shares = find_shares(recent, items, num_known, vectors)
        num_made = int((shares.sum(axis=1) > 0).sum())
        add_items(model, shares)
    learned, held_out = hold_out_newest(recent, config)
    measured = TargetViews(recent.histories, held_out, len(recent.histories.values))
    model.to(accelerator.device)
    before = measure(model, measured, num_known)
    learn(model, recent, learned, config, accelerator)
    results = {
        "model": folder.name,
        "config": dataclasses.asdict(config),
        "known_items": len(catalog),
        "new_items": len(recent.new_items),
        "new_items_from_known": num_made,
        "learned_targets": len(learned),
        "before": before,
        "after": measure(model, measured, num_known),
        "seconds": time.perf_counter() - started,
    }
    save_updated(model, folder, items, output, results)
    return results


def find_shares(
    recent: RecentInteractions,
    items: list[str],
    num_known: int,
    vectors: dict[str, np.ndarray] | None,
) -> sparse.csr_array:
    """What of the known items goes into each new one, by vectors if given, else co-occurrence.

    Raises:
        ValueError: The vectors are not of one size.
    """
    vocab_size = len(items) + NUM_SPECIAL_IDS
    if vectors is None:
        return shares_by_co_occurrence(recent.histories, vocab_size, num_known)
    sizes = {len(vector) for vector in vectors.values()}
    if len(sizes) != 1:
        raise ValueError(f"vectors must all be of one size, got {sorted(sizes)}")
    table = torch.zeros(vocab_size, sizes.pop())
    for place, item in enumerate(items, start=NUM_SPECIAL_IDS):
        if item in vectors:
            table[place] = torch.as_tensor(np.asarray(vectors[item], dtype=np.float32))
    return shares_by_vectors(table, num_known)


def hold_out_newest(
    recent: RecentInteractions, config: UpdateConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Part the recent targets into those that are learned, and the newest, which are measured.

    Only what comes last in its history can be held out, so that no context holds it.
    """
    is_last = np.isin(recent.targets, recent.histories.offsets[1:] - 1)
    last = recent.targets[is_last]
    count = min(config.held_out, len(last), max(1, int(MAX_HELD_OUT * len(recent.targets))))
    newest = last[np.argsort(-recent.times[last], kind="stable")[:count]]
    return recent.targets[~np.isin(recent.targets, newest)], np.sort(newest)


def measure(model: nn.Module, views: TargetViews, num_known: int) -> dict[str, Any]:
    """HR@10 and NDCG@10 among the whole catalog, seen items left out, for all and for new items."""
    histories, targets = views.split()
    config = EvaluationConfig(ks=[10])
    ranks = rank_histories(ModelScorer(model.eval()), histories, targets, config).ranks
    groups = {"all": np.ones(len(targets), dtype=bool), "new": targets >= num_known}
    return {
        name: {"targets": int(chosen.sum())}
        | (compute_metrics(ranks[torch.from_numpy(chosen)], [10]) if chosen.any() else {})
        for name, chosen in groups.items()
    }


def learn(
    model: nn.Module,
    recent: RecentInteractions,
    learned: np.ndarray,
    config: UpdateConfig,
    accelerator: Accelerator,
) -> None:
    """Train on the targets, and on a share of older ones that is drawn once."""
    if len(learned) == 0:
        return
    old = np.random.default_rng(config.seed).permutation(recent.others)
    targets = np.append(learned, old[: round(config.replay * len(learned))])
    settings, vocab_size = model.config, model.config.vocab_size
    views = TargetViews(recent.histories, targets, settings.max_history_length)
    popularity = count_popularity(recent.histories, vocab_size)
    negatives = None
    if settings.objective in SAMPLED_OBJECTIVES:
        negatives = NegativeSampler(popularity, NUM_NEGATIVES, "uniform")
        model.use_row_gradients()
    if model.neighbors is not None:
        table = count_neighbors(
            recent.histories,
            vocab_size,
            settings.num_neighbors,
            max_distance=settings.neighbor_distance,
        )
        model.neighbors.set_table(*table)
    batch_size = min(config.batch_size, len(views))
    steps = max(1, config.epochs * len(views) // (batch_size * accelerator.num_processes))
    training = TrainingConfig(
        learning_rate=config.learning_rate,
        item_learning_rate_factor=config.item_learning_rate_factor,
        batch_size=batch_size,
        max_steps=steps,
        evaluation_steps=steps,
        checkpoint_steps=steps,
        seed=config.seed,
    )
    loader = DataLoader(
        views,
        batch_sampler=ViewBatchSampler(
            views.lengths,
            batch_size=batch_size,
            num_batches=steps * accelerator.num_processes,
            seed=config.seed,
        ),
        collate_fn=TargetCollator(settings.max_history_length, settings.is_causal, negatives),
        generator=torch.Generator(),  # or it would draw from the one that dropout draws from
    )
    with tempfile.TemporaryDirectory() as checkpoints:
        run = TrainingRun(model, training, accelerator, Path(checkpoints))
        run.train(loader, None, lambda model: None)
    model.use_row_gradients(False)
