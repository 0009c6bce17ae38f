r"""Take new items and new interactions into a trained model, in a fraction of a training's time.

bert4rec update runs/shop/model --interactions orders.parquet --since 2026-09-15 \
    --output runs/shop/tuesday

Only what happened since the date is learned; histories before it are context, so the file must hold
them. New items join the vocabulary. What it was worth is measured on the newest interactions.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from transformers.utils.logging import disable_progress_bar

from bert4rec_hf.commands.interaction_options import (
    add_interaction_options,
    exit_on_bad_input,
    launch,
    read_interactions,
)
from bert4rec_hf.config import build_section
from bert4rec_hf.data.splits import read_seconds
from bert4rec_hf.experiment.update import UpdateConfig, update_model
from bert4rec_hf.experiment.updated_folder import describe

LEARNING = ("replay", "epochs", "learning_rate", "item_learning_rate_factor", "batch_size")


def read_vectors(path: Path) -> dict[str, np.ndarray]:
    """Read the columns `item` and `vector` of a parquet file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It lacks a column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of vectors {path}")
    frame = pl.read_parquet(path)
    if not {"item", "vector"} <= set(frame.columns):
        raise ValueError(
            f"{path.name} needs the columns 'item' and 'vector'; its columns are "
            f"{', '.join(map(repr, frame.columns))}"
        )
    items = frame["item"].cast(pl.String).to_list()
    return dict(zip(items, map(np.asarray, frame["vector"].to_list()), strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, update, report."""
    disable_progress_bar()  # of transformers: folders load in a moment
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, help="a model folder")
    add("--interactions", type=Path, required=True, help="parquet, csv or jsonl, whole histories")
    add("--since", required=True, help="what is learned: unix seconds or ISO date, UTC")
    add("--output", type=Path, required=True, help="the model folder to write, must be new")
    add("--vectors", type=Path, help="parquet of item and vector, to initialize new items by")
    add = parser.add_argument_group("how it is learned").add_argument
    fields = {field.name: field for field in dataclasses.fields(UpdateConfig)}
    for name in (*LEARNING, "held_out", "seed"):
        default = fields[name].default
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=type(default), default=default, help=f"{default} if not given")
    add_interaction_options(parser)
    options = parser.parse_args(arguments)
    with exit_on_bad_input(parser):
        settings = {name: getattr(options, name) for name in (*LEARNING, "held_out", "seed")}
        since = read_seconds(options.since, "--since")
        config = build_section(UpdateConfig, {"since": since, **settings}, "update")
        accelerator = launch()
        frame = read_interactions(options, options.interactions).collect(engine="streaming")
        vectors = read_vectors(options.vectors) if options.vectors else None
        results = update_model(options.model, options.output, frame, config, accelerator, vectors)
    print(describe(results))
    print(f"model folder: {options.output}")


if __name__ == "__main__":
    main()
