"""A prepared folder whose histories lie in several Arrow files for each split."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from .histories import SPLIT_NAMES, Histories


def list_shards(folder: Path, split: str) -> list[Path]:
    """List the files of a split, in the order of their histories."""
    return sorted((folder / split).glob("data-*.arrow"))


def open_shards(folder: Path) -> dict[str, Sequence[Histories]]:
    """Look at the histories of a folder without reading them into memory."""
    return {
        split: [part for path in list_shards(folder, split) for part in open_shard(path)]
        for split in SPLIT_NAMES
    }


def open_shard(path: Path) -> list[Histories]:
    """Map a file, each batch of which is a few histories, into memory."""
    with pa.memory_map(str(path)) as file:
        batches = list(pa.ipc.open_stream(file))
    return [view_batch(batch) for batch in batches]


def view_batch(batch: pa.RecordBatch) -> Histories:
    """Look at a batch as histories, without a copy but of where each begins."""
    items = batch.column("items")
    offsets = items.offsets.to_numpy().astype(np.int64)
    values = items.values.to_numpy()[offsets[0] : offsets[-1]]
    has_targets = "target" in batch.schema.names
    targets = batch.column("target").to_numpy() if has_targets else None
    return Histories(values, offsets - offsets[0], targets)


def register_shards(folder: Path, fingerprint: str) -> None:
    """Name the files of each split where `datasets` looks for them, and remove unfinished ones.

    Args:
        folder: As `DatasetDict.save_to_disk` wrote it without a history.
        fingerprint: What `datasets` tells its caches apart by.
    """
    for split in SPLIT_NAMES:
        for unfinished in (folder / split).glob(".data-*"):
            unfinished.unlink()
        path = folder / split / "state.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        state["_data_files"] = [{"filename": each.name} for each in list_shards(folder, split)]
        state["_fingerprint"] = fingerprint
        path.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")
