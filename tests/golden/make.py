"""Make the golden folder of a release: what its commands write, small, and the scores beside it.

python -m tests.golden.make tests/golden/0.1.0

It holds a prepared dataset, a run that was stopped halfway with its model, an adapter on that model
and `expected.json`. Made once per release and never changed: later releases must load it.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.experiment.build import build_accelerator
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.experiment.run import run_experiment
from bert4rec_hf.serving.recommender import Recommender

HISTORIES = (1, 3, 9)
"""Lengths of the histories that are scored; the items are the first of the catalog."""

EXPERIMENT = {
    "data": {"dataset": "dataset", "mask_ratio": 0.4},
    "model": {
        "hidden_size": 12,
        "intermediate_size": 20,
        "max_history_length": 9,
        "hidden_dropout": 0,
        "attention_dropout": 0,
    },
    "training": {
        "learning_rate": 0.01,
        "batch_size": 16,
        "max_steps": 8,
        "evaluation_steps": 4,
        "checkpoint_steps": 4,
        "trackers": [],
    },
    "evaluation": {"ks": [10], "num_bootstrap_samples": 50},
    "card": {"dataset_name": "generated", "dataset_license": "none"},
}
ADAPTER = {"tuner": "ilora", "r": 4, "num_experts": 2, "lora_dropout": 0.0}


def train(path: Path, output: Path, *, is_resumed: bool = False) -> dict[str, Any]:
    """Run an experiment file, as the command does."""
    experiment = load_experiment(path)
    torch.manual_seed(experiment.training.seed)
    accelerator = build_accelerator(experiment, output)
    return run_experiment(experiment, output, accelerator, is_resumed=is_resumed)


def score(folder: Path) -> list[dict[str, float]]:
    """Score of every item for each of a few histories."""
    recommender = Recommender.from_pretrained(folder)
    items = recommender.catalog
    return [
        {
            each.item: each.score
            for each in recommender.recommend(items[:length], k=len(items), exclude_seen=False)
        }
        for length in HISTORIES
    ]


def measure(results: dict[str, Any]) -> dict[str, Any]:
    """What a run that was resumed must come to."""
    training = results["training"]
    return {
        "metrics": results["test"]["metrics"],
        "step": training["step"],
        "best_metric": training["best_metric"],
    }


def make(folder: Path) -> None:
    """Write a golden folder; the working directory is changed to it, so that it names no other."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    synthetic = SyntheticConfig(num_users=40, num_items=30, mean_length=7.0, max_length=12)
    prepare_dataset("synthetic", None, Path("dataset"), PreparationConfig(synthetic=synthetic))
    Path("experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))
    resumed = measure(train(Path("experiment.yaml"), Path("run")))
    shutil.rmtree(max(Path("run/checkpoints").glob("step-*"), key=lambda path: path.name))
    sections = EXPERIMENT | {"model": {}, "base": {"model": "run/model"}, "adapter": ADAPTER}
    Path("adapter.yaml").write_text(yaml.safe_dump(sections, sort_keys=False))
    train(Path("adapter.yaml"), Path("adapted"))
    Path("adapted/adapter").rename("adapter")
    shutil.rmtree("adapted")
    # A card tells times, and the code of the model is that of the package.
    for path in [*Path().rglob("*.py"), *Path().rglob("README.md"), Path("run/results.json")]:
        path.unlink(missing_ok=True)
    shutil.rmtree("run/logs", ignore_errors=True)
    expected = {
        "model": score(Path("run/model")),
        "adapter": score(Path("adapter")),
        "resumed": resumed,
    }
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="to write; must be new")
    make(parser.parse_args().folder)
