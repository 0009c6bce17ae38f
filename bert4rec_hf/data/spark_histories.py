"""What Spark's workers do with sorted interactions: split whole histories, and write a shard each.

The splits are those of one machine, applied to the users of a shard: who trains, validates or tests
depends on a user's own interactions and on points in time, which are worked out before.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pyarrow as pa

from .histories import SPLIT_NAMES, Histories, count_repeats
from .interactions import Interactions, PreparationConfig, count_copies, count_ties
from .splits import SPLITS, Split
from .writing import to_dataset

CHUNK_ROWS = 1 << 20
"""Interactions that a worker holds at once, or those of one user if there are more."""

FACTS = pa.schema({"facts": pa.string()})


@dataclass(frozen=True)
class ShardWriter:
    """Writes the histories of one partition in a worker."""

    folder: Path
    """With a folder for each split; the driver and all workers see it."""

    config: PreparationConfig
    num_shards: int

    def write(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Split and write the interactions of a partition, and tell what they are."""
        from pyspark import TaskContext

        context = TaskContext.get()
        facts = self.write_shard(batches, context.partitionId(), context.taskAttemptId())
        yield pa.record_batch([[json.dumps(facts)]], schema=FACTS)

    def write_shard(
        self, batches: Iterable[pa.RecordBatch], place: int, attempt: int = 0
    ) -> dict[str, Any]:
        """Write the files of a shard; they appear under their names when they are whole.

        Args:
            batches: Columns `user`, `id` and, unless they have no times, `timestamp`; ordered by
                user and time.
            place: Of the shard among all.
            attempt: Another one for each worker that tries to write it.

        Returns:
            What was counted.
        """
        facts: Counter[str] = Counter()
        lengths: Counter[int] = Counter()
        left_out: Counter[str] = Counter()
        with ShardFiles(self.folder, place, self.num_shards, attempt) as files:
            for table in whole_users(batches):
                interactions = lay_end_to_end(table)
                split = SPLITS[self.config.split](interactions, self.config)
                histories = {
                    name: part.copy_from(interactions, has_targets=name != "train")
                    for name, part in zip(SPLIT_NAMES, split[:3], strict=True)
                }
                files.append(interactions, split, histories)
                lengths.update(interactions.lengths.tolist())
                left_out.update(split.left_out)
                facts.update(count_facts(interactions, split, histories))
        return {"facts": facts, "lengths": list(lengths.items()), "left_out": left_out}


def count_facts(
    interactions: Interactions, split: Split, histories: dict[str, Histories]
) -> dict[str, int]:
    """Count what can be summed over shards."""
    has_times = interactions.timestamps is not None
    return {
        "used": split.count_used(),
        "tied": count_ties(interactions) if has_times else 0,
        "exact copies": count_copies(interactions),
        **count_repeats(histories),
    }


class ShardFiles:
    """The Arrow files of a shard, one for each split that it has histories of."""

    def __init__(self, folder: Path, place: int, num_shards: int, attempt: int):
        name = f"data-{place:05d}-of-{num_shards:05d}.arrow"
        self.paths = {split: folder / split / name for split in SPLIT_NAMES}
        self.attempt = attempt
        self.writers: dict[str, pa.RecordBatchStreamWriter] = {}

    def __enter__(self) -> "ShardFiles":
        return self

    def append(
        self, interactions: Interactions, split: Split, histories: dict[str, Histories]
    ) -> None:
        """Write the histories of some users."""
        for name, part in histories.items():
            if not len(part):
                continue
            users = interactions.users.gather(getattr(split, name).users)
            dataset = to_dataset(part, users)
            schema = dataset.features.arrow_schema
            if name not in self.writers:
                self.writers[name] = pa.ipc.new_stream(str(self._unfinished(name)), schema)
            self.writers[name].write_table(dataset.data.table.cast(schema))

    def __exit__(self, kind: type | None, *_: object) -> None:
        for name, writer in self.writers.items():
            writer.close()
            if kind is None:
                self._unfinished(name).rename(self.paths[name])
            else:
                self._unfinished(name).unlink()

    def _unfinished(self, name: str) -> Path:
        path = self.paths[name]
        return path.with_name(f".{path.name}-{self.attempt}")


def whole_users(batches: Iterable[pa.RecordBatch]) -> Iterator[pl.DataFrame]:
    """Join batches, and cut where a user ends; a table has CHUNK_ROWS rows or a user's at least."""
    held: list[pl.DataFrame] = []
    for batch in batches:
        if not batch.num_rows:
            continue
        held.append(pl.DataFrame(pl.from_arrow(batch)))
        last = held[-1]["user"][-1]
        if sum(table.height for table in held) < CHUNK_ROWS or held[0]["user"][0] == last:
            continue
        table = pl.concat(held)
        end = int((table["user"] != last).sum())
        yield table[:end]
        held = [table[end:]]
    if held:
        yield pl.concat(held)


def lay_end_to_end(table: pl.DataFrame) -> Interactions:
    """Take interactions that are ordered by user and time, for a split; items are known by id."""
    is_first = (table["user"] != table["user"].shift()).fill_null(True)
    starts = np.flatnonzero(is_first.to_numpy())
    return Interactions(
        users=table["user"].gather(starts),
        items=pl.Series(dtype=pl.String),
        ids=table["id"].to_numpy().astype(np.int32),
        offsets=np.append(starts, table.height),
        timestamps=table["timestamp"].to_numpy() if "timestamp" in table.columns else None,
        parts=None,
    )


def write_empty(folder: Path) -> None:
    """Write a dataset without a history, to which shards are added."""
    nothing = np.zeros(0, dtype=np.int32)
    parts = {}
    for name in SPLIT_NAMES:
        targets = None if name == "train" else nothing
        histories = Histories(nothing, np.zeros(1, dtype=np.int64), targets)
        parts[name] = to_dataset(histories, pl.Series([], dtype=pl.String))
    datasets.DatasetDict(parts).save_to_disk(folder)
