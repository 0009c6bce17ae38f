"""What preparation is compared with: polars reads, sorts and groups a file, and nothing else.

Nothing but polars is imported, so that the memory of the process is that of the work.
"""

import json
import sys
import time
from pathlib import Path

import polars as pl

from bert4rec_hf.training.process_memory import peak_resident_bytes

SCANS = {"csv": pl.scan_csv, "jsonl.gz": pl.scan_ndjson, "parquet": pl.scan_parquet}


def read_plainly(path: Path) -> int:
    """Read, sort by time and group by user, and count the users; nothing is checked or written."""
    rows = SCANS[path.name.partition(".")[2]](path).select("user", "item", "timestamp")
    histories = rows.sort("timestamp").group_by("user", maintain_order=True).agg("item")
    return histories.collect().height


def run_floor(path: Path) -> dict[str, float]:
    """Read a file in this process, and measure it."""
    start, cpu_start = time.perf_counter(), time.process_time()
    read_plainly(path)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak_resident_bytes()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_floor(Path(sys.argv[1]))))
