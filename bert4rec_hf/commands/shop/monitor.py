"""A model in use beside its test and the baselines."""

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl
from accelerate import PartialState

from bert4rec_hf.commands.shop.interactions import (
    read_interactions,
)
from bert4rec_hf.data.splits import read_seconds
from bert4rec_hf.serving.interactions import SCHEMA
from bert4rec_hf.serving.monitor import monitor
from bert4rec_hf.serving.recommender import Recommender


def read_files(options: argparse.Namespace) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read the new interactions and the earlier ones."""
    new = read_interactions(options, options.interactions).collect(engine="streaming")
    past = pl.DataFrame(schema=SCHEMA)
    if options.history:
        past = read_interactions(options, options.history).collect(engine="streaming")
    if options.since:
        moment = read_seconds(options.since, "--since")
        past = pl.concat([past, new.filter(pl.col("timestamp") < moment)])
        new = new.filter(pl.col("timestamp") >= moment)
        if new.is_empty():
            raise ValueError(
                f"{options.interactions.name} has no interaction since {options.since}"
            )
    if options.timestamp_column:
        past = past.filter(pl.col("timestamp") < new["timestamp"].min())
    return new, past


def read_test(model: str) -> dict[str, float]:
    """Read the metrics of the test from the run that the model lies in, if it does."""
    path = Path(model).resolve().parent / "results.json"
    if not (Path(model).is_dir() and path.is_file()):
        return {}
    return json.loads(path.read_text(encoding="utf-8")).get("test", {}).get("metrics", {})


def render(results: dict[str, Any], k: int) -> str:
    """Summarize the results in a few lines, the verdict last."""
    lines = [
        f"{results['interactions']:,} interactions of {results['users']:,} users, "
        f"{results['unknown_items_ratio']:.1%} with unknown items, "
        f"{results['cold_users_ratio']:.1%} of the users without a history",
        f"{'':<12}{f'HR@{k}':>8}{f'NDCG@{k}':>9}{'coverage':>10}",
    ]
    for name in ("model", "test", "popularity", "item_knn"):
        found = results.get(name)
        if found:
            values = (found.get(f"{metric}@{k}") for metric in ("hit_rate", "ndcg", "coverage"))
            hit_rate, ndcg, shown = ("–" if each is None else f"{each:.4f}" for each in values)
            label = "the test" if name == "test" else name.replace("_", "-")
            lines.append(f"{label:<12}{hit_rate:>8}{ndcg:>9}{shown:>10}")
    return "\n".join([*lines, results["verdict"]])


def measure(options: argparse.Namespace) -> str:
    """Measure as the command line says, write the results where asked to, and describe them."""
    PartialState(cpu=True)  # one process, beside a model that may be serving on the GPU
    new, past = read_files(options)
    recommender = Recommender.from_pretrained(options.model)
    results = monitor(recommender, new, past, read_test(options.model), k=options.k)
    if options.output:
        unfinished = options.output.with_name(f".{options.output.name}-unfinished")
        unfinished.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(options.output)
    return render(results, options.k)
