"""Measure what preparing a file costs, compared with a plain read, sort and group by polars.

bert4rec benchmark_prepare --rows 3000000 --output preparation.json

A csv, a jsonl.gz and a parquet file are generated in a temporary folder. Both contestants read each
file in turn, every time in a new process.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .parser import command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, report."""
    parser = command_parser(__spec__.name, __doc__)
    parser.add_argument(
        "--rows", type=int, default=3_000_000, help="interactions per file (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of each contestant (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="write all measurements to a new JSON file")
    options = parser.parse_args(arguments)

    from accelerate import Accelerator

    from bert4rec_hf.evaluation.provenance import provenance
    from bert4rec_hf.lab.benchmark.preparation import measure, summarize, write_interactions

    if options.output and options.output.exists():
        parser.exit(2, f"error: {options.output} exists; choose another --output or remove it\n")
    with tempfile.TemporaryDirectory() as folder:
        write_interactions(Path(folder), options.rows)
        measured = measure(Path(folder), options.rounds)
    results = {"rows": options.rows, "summary": summarize(measured), "measured": measured}
    results |= provenance(Accelerator())
    for ending, row in results["summary"].items():
        print(
            f"{ending:<10}{row['prepare_seconds']:>8.1f} s, {row['time_ratio']:.2f} of the floor, "
            f"{row['cpu_ratio']:.2f} in processor time; "
            f"{row['prepare_peak_bytes'] / 1e9:.2f} GB, {row['memory_ratio']:.2f} of the floor"
        )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
