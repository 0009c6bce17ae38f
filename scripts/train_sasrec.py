"""Train RecTools' SASRec with full cross-entropy on a prepared dataset, to compare with.

python scripts/train_sasrec.py data/electronics-gid --output sasrec.json

with an interpreter that has RecTools (pip install "rectools[torch]") beside this package. The
protocol is this package's: the whole catalog is ranked, items of the history left out. The epoch is
chosen by NDCG@10 on validation; training ends when --patience looks at it were no better.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.data.prepared import PreparedDataset, load_prepared
from bert4rec_hf.evaluation.metrics import compute_metrics
from bert4rec_hf.evaluation.provenance import provenance

K = 20
"""Places that are looked at; a target beyond counts as not found."""


@dataclass(frozen=True)
class Settings:
    """What RecTools is told; the rest is as it is there by default."""

    n_factors: int
    n_blocks: int
    n_heads: int
    dropout_rate: float
    session_max_len: int
    lr: float
    batch_size: int
    loss: str = "softmax"


def to_rectools(histories: Histories) -> Dataset:
    """The same interactions as RecTools wants them; places stand for times."""
    users = np.repeat(np.arange(len(histories)), histories.lengths)
    places = np.arange(len(histories.values)) - np.repeat(histories.offsets[:-1], histories.lengths)
    frame = pd.DataFrame(
        {
            Columns.User: users,
            Columns.Item: histories.values,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(places, unit="D"),
        }
    )
    return Dataset.construct(frame)


def measure(model: SASRecModel, split: Histories) -> dict[str, float]:
    """Metrics of the held-out items of a split."""
    found = model.recommend(
        users=np.arange(len(split)), dataset=to_rectools(split), k=K, filter_viewed=True
    )
    targets = split.targets[found[Columns.User].to_numpy()]
    hits = found[found[Columns.Item].to_numpy() == targets]
    ranks = torch.full((len(split),), K + 1)
    ranks[hits[Columns.User].to_numpy()] = torch.from_numpy(hits[Columns.Rank].to_numpy())
    return compute_metrics(ranks, ks=[10, K])


def train(
    dataset: PreparedDataset, settings: Settings, *, seed: int, every: int, patience: int
) -> dict[str, Any]:
    """Train until validation has not risen for some looks; test is that of the best one."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (RecTools draws from it)
    model = SASRecModel(**asdict(settings), epochs=1, deterministic=False)
    interactions = to_rectools(dataset.train)
    looks: list[dict[str, float]] = []
    best: dict[str, Any] = {}
    while not looks or looks[-1]["epoch"] - best["epoch"] < patience * every:
        model.fit_partial(interactions, min_epochs=every, max_epochs=every)
        epoch = every * (len(looks) + 1)
        looks.append({"epoch": epoch, **measure(model, dataset.validation)})
        print(f"epoch {epoch}: NDCG@10 {looks[-1]['ndcg@10']:.4f}", flush=True)
        if not best or looks[-1]["ndcg@10"] > best["ndcg@10"]:
            best, test = looks[-1], measure(model, dataset.test)
    return {"best_epoch": best["epoch"], "validation": looks, "test": test}


def main() -> None:
    """Parse, train, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="a prepared dataset folder")
    parser.add_argument("--output", type=Path, required=True, help="a new JSON file")
    parser.add_argument("--n-factors", type=int, default=128)
    parser.add_argument("--n-blocks", type=int, default=2)
    parser.add_argument("--n-heads", type=int, default=2)
    parser.add_argument("--dropout-rate", type=float, default=0.5)
    parser.add_argument("--session-max-len", type=int, default=50)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--every", type=int, default=5, help="epochs between looks at validation")
    parser.add_argument("--patience", type=int, default=4, help="looks without a better one")
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"{arguments.output} exists; choose another --output or remove it")
    dataset = load_prepared(arguments.dataset)
    names = Settings.__dataclass_fields__.keys() & vars(arguments).keys()
    settings = Settings(**{name: getattr(arguments, name) for name in names})
    plan = {"every": arguments.every, "patience": arguments.patience}
    results = {
        "kind": "peer",
        "model": "SASRec of RecTools",
        "settings": asdict(settings) | plan,
        "dataset_fingerprint": dataset.fingerprint,
        "protocol": {"split": "leave_one_out", "candidates": "full", "exclude_seen": True},
        "runs": [
            {"seed": seed, **train(dataset, settings, seed=seed, **plan)}
            for seed in arguments.seeds
        ],
        **provenance(Accelerator(cpu=True)),
    }
    arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
