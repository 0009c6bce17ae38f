r"""What an update is worth beside a full retraining, on real interactions in the order of time.

python -m bert4rec_hf.lab.studies.updating orders.parquet --experiment beauty.yaml \
    --since 1399939200 --until 1404172800 --workplace runs/updating --output updating.json

One model is trained on everything before --since and then updated with what lies between, another
one, of the same experiment and as many epochs, on everything before --until. Both are measured on
all that happened from then on with items that they know. Each training is kept in the workplace, so
that --only before and --only until can be run at the same time.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.recent import TargetViews, read_recent
from bert4rec_hf.data.vocabulary import ordered_items
from bert4rec_hf.evaluation.evaluator import EvaluationConfig
from bert4rec_hf.evaluation.metrics import compute_metrics
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.provenance import provenance
from bert4rec_hf.evaluation.shared_ranking import rank_histories
from bert4rec_hf.experiment.build import build_accelerator
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.experiment.run import train_experiment
from bert4rec_hf.experiment.update import UpdateConfig, update_model
from bert4rec_hf.hub.model_folder import load_weights, read_vocabulary


def train_before(frame: pl.DataFrame, end: float, experiment: Path, output: Path) -> dict[str, Any]:
    """Train on everything before a time, for epochs in proportion to the data; or read it.

    Args:
        frame: All interactions.
        end: Seconds.
        experiment: With the steps for all interactions.
        output: Folder of the data and of the run; a finished one is not trained again.

    Returns:
        Steps, and seconds by the clock and of the processor.
    """
    done = output / "trained.json"
    if done.exists():
        return json.loads(done.read_text())
    output.mkdir(parents=True)
    part = frame.filter(pl.col("timestamp") < end)
    part.write_parquet(output / "orders.parquet")
    config = PreparationConfig(split="none")
    prepare_dataset("parquet", output / "orders.parquet", output / "data", config)
    steps = load_experiment(experiment).training.max_steps * part.height // frame.height
    settings = {
        "data.dataset": output / "data",
        "training.max_steps": steps,
        "training.evaluation_steps": steps,
        "training.checkpoint_steps": steps,
    }
    loaded = load_experiment(experiment, [f"--{key}={value}" for key, value in settings.items()])
    torch.manual_seed(loaded.training.seed)
    accelerator = build_accelerator(loaded, output / "run")
    clock, used = time.perf_counter(), time.process_time()
    train_experiment(loaded, output / "run", accelerator)
    trained = {
        "interactions": part.height,
        "steps": steps,
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - used,
    }
    done.write_text(json.dumps(trained) + "\n")
    return trained


def measure(folder: Path, frame: pl.DataFrame, until: float, new: set[str]) -> dict[str, Any]:
    """HR@10 and NDCG@10 of what happened from a time on, among all items that the model knows."""
    catalog = ordered_items(read_vocabulary(folder))
    known = frame.filter(pl.col("item").is_in(catalog))
    recent = read_recent(known, catalog, until)
    views = TargetViews(recent.histories, recent.targets, len(recent.histories.values))
    histories, targets = views.split()
    scorer = ModelScorer(load_weights(folder).eval())
    ranks = rank_histories(scorer, histories, targets, EvaluationConfig(ks=[10])).ranks
    is_new = np.array([catalog[target - 2] in new for target in targets])
    return {
        name: {"targets": int(chosen.sum())}
        | (compute_metrics(ranks[torch.from_numpy(chosen)], [10]) if chosen.any() else {})
        for name, chosen in {"all": np.ones(len(targets), dtype=bool), "new": is_new}.items()
    }


def compare(options: argparse.Namespace, frame: pl.DataFrame) -> dict[str, Any]:
    """Update the earlier model, and set it beside the later one."""
    workplace = options.workplace
    trained = {
        name: train_before(frame, end, options.experiment, workplace / name)
        for name, end in (("before", options.since), ("until", options.until))
    }
    models = {name: workplace / name / "run" / "model" for name in trained}
    config = UpdateConfig(since=options.since, epochs=options.epochs, held_out=1)
    config = dataclasses.replace(config, learning_rate=options.learning_rate)
    used = time.process_time()
    until = frame.filter(pl.col("timestamp") < options.until)
    updated = workplace / f"updated-{options.epochs}-{options.learning_rate}"
    update = update_model(models["before"], updated, until, config, Accelerator(cpu=True))
    used = time.process_time() - used
    known = set(ordered_items(read_vocabulary(models["before"])))
    new = set(until["item"].unique().to_list()) - known
    measured = {
        "updated": measure(updated, frame, options.until, new),
        "retrained": measure(models["until"], frame, options.until, new),
    }
    old = frame.filter(~pl.col("item").is_in(list(new)))
    return {
        "trained": trained,
        "update": {key: update[key] for key in ("config", "new_items", "learned_targets")}
        | {"seconds": update["seconds"], "cpu_seconds": used},
        "measured": measured | {"not_updated": measure(models["before"], old, options.until, new)},
        "hit_rate_share": {
            group: measured["updated"][group]["hit_rate@10"]
            / measured["retrained"][group]["hit_rate@10"]
            for group in ("all", "new")
            if measured["retrained"][group].get("hit_rate@10")
        },
        "cpu_share": used / trained["until"]["cpu_seconds"],
    }


def main() -> None:
    """Parse, train, compare, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("interactions", type=Path, help="parquet of user, item and timestamp in seconds")
    add("--experiment", type=Path, required=True)
    add("--since", type=float, required=True)
    add("--until", type=float, required=True)
    add("--workplace", type=Path, required=True)
    add("--only", choices=("before", "until"), help="just train this one")
    add("--epochs", type=int, default=3, help="of the update")
    add("--learning-rate", type=float, default=5e-4, help="of the update")
    add("--output", type=Path, help="a JSON file for what was measured")
    options = parser.parse_args()
    frame = pl.read_parquet(options.interactions).sort("timestamp", maintain_order=True)
    frame = frame.with_columns(pl.col("timestamp").cast(pl.Float64)).with_row_index("row")
    if options.only:
        end = options.since if options.only == "before" else options.until
        results = train_before(frame, end, options.experiment, options.workplace / options.only)
    else:
        results = compare(options, frame) | provenance(Accelerator(cpu=True))
    text = json.dumps(results, indent=2) + "\n"
    print(text)  # noqa: T201
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
