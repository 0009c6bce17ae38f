"""Preparation beside a plain polars read, sort and group of the same file.

Both take turns, each in a process of its own. Times leave out the start of Python and its imports;
memory is the peak of the whole process, libraries included. On a machine that others use as well,
the processor time of both says more than the time on the clock.
"""

import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.training.process_memory import peak_resident_bytes
from bert4rec_hf.training.room import memory_room

FORMATS = {"csv": "csv", "jsonl.gz": "jsonl", "parquet": "parquet"}
"""Ending of the file → source."""

CONTESTANTS = {
    "floor": "bert4rec_hf.lab.benchmark.plain_reading",
    "prepare": "bert4rec_hf.lab.benchmark.preparation",
}
"""Name → the module that is run with the path of a file."""


def write_interactions(folder: Path, rows: int) -> None:
    """Write one file of each format: 20 interactions per user, items by a power law."""
    generator = np.random.default_rng(0)
    columns = {
        "user": generator.integers(max(rows // 20, 1), size=rows),
        "item": generator.zipf(1.2, size=rows) % 100_000,
        "timestamp": generator.integers(1_400_000_000, 1_600_000_000, size=rows),
        "rating": generator.integers(1, 6, size=rows),
    }
    frame = pl.DataFrame(columns)
    frame = frame.with_columns(user=pl.format("u{}", "user"), item=pl.format("i{}", "item"))
    frame.write_csv(folder / "file.csv")
    frame.write_parquet(folder / "file.parquet")
    with gzip.open(folder / "file.jsonl.gz", "wb", compresslevel=1) as file:
        for part in frame.iter_slices(500_000):
            file.write(part.write_ndjson().encode())


def run_preparation(path: Path) -> dict[str, float]:
    """Prepare a file in this process, and measure it."""
    source = FORMATS[path.name.partition(".")[2]]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        start, cpu_start = time.perf_counter(), time.process_time()
        output = Path(folder) / "prepared"
        prepare_dataset(source, path, output, PreparationConfig(), memory_room)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak_resident_bytes()}


def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Let the contestants take turns at each file."""
    measured = []
    for ending in FORMATS:
        for number in range(rounds):
            for name, module in CONTESTANTS.items():
                command = [sys.executable, "-m", module, str(folder / f"file.{ending}")]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                row = {"format": ending, "round": number, "contestant": name}
                measured.append(row | json.loads(done.stdout.splitlines()[-1]))
    return measured


def summarize(measured: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Compare the medians of each format."""
    summary = {}
    for ending in FORMATS:
        medians = {
            f"{name}_{what}": statistics.median(
                row[what]
                for row in measured
                if (row["format"], row["contestant"]) == (ending, name)
            )
            for name in CONTESTANTS
            for what in ("seconds", "cpu_seconds", "peak_bytes")
        }
        medians["time_ratio"] = medians["prepare_seconds"] / medians["floor_seconds"]
        medians["cpu_ratio"] = medians["prepare_cpu_seconds"] / medians["floor_cpu_seconds"]
        medians["memory_ratio"] = medians["prepare_peak_bytes"] / medians["floor_peak_bytes"]
        summary[ending] = medians
    return summary


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_preparation(Path(sys.argv[1]))))
