"""What `bert4rec update` reads."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bert4rec_hf.commands.shop.interactions import (
    launch,
    read_interactions,
)
from bert4rec_hf.config import build_section
from bert4rec_hf.data.splits import read_seconds
from bert4rec_hf.experiment.update import UpdateConfig, update_model
from bert4rec_hf.experiment.updated_folder import describe


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


def update(options: argparse.Namespace, settings: dict[str, Any]) -> str:
    """Update as the command line says, and describe what was measured.

    Args:
        options: Of the command line.
        settings: Of UpdateConfig.
    """
    since = read_seconds(options.since, "--since")
    config = build_section(UpdateConfig, {"since": since, **settings}, "update")
    accelerator = launch()
    frame = read_interactions(options, options.interactions).collect(engine="streaming")
    vectors = read_vectors(options.vectors) if options.vectors else None
    return describe(
        update_model(options.model, options.output, frame, config, accelerator, vectors)
    )
