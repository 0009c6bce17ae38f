"""Turn raw interactions into a prepared dataset: ids, vocabulary, split, statistics and card.

python scripts/prepare_data.py synthetic --output data/synthetic
python scripts/prepare_data.py ml1m ml-1m/ratings.dat --min-interactions 5 --output data/ml1m
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub.errors import StrictDataclassError

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.sources import SOURCES
from bert4rec_hf.data.splits import SPLITS
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.training.process_memory import peak_resident_bytes

SYNTHETIC_SETTINGS = {field.name: field for field in fields(SyntheticConfig)}
del SYNTHETIC_SETTINGS["seed"]  # one seed for everything


def build_parser() -> argparse.ArgumentParser:
    """Offer the settings of PreparationConfig and SyntheticConfig, which know their defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        epilog=f"sources: {', '.join(SOURCES)}\nsplits: {', '.join(SPLITS)}",
    )
    parser.add_argument("source", help="format of the raw file, one of the sources below")
    parser.add_argument("path", type=Path, nargs="?", default=None, help="raw file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, must be new")
    add = parser.add_argument_group("what is kept").add_argument
    add("--vocabulary", help="folder of a dataset or model whose catalog and ids are kept")
    add("--min-interactions", type=int, help="drop users and items with fewer, until none is left")
    add("--min-rating", type=float, help="drop interactions rated lower")
    add("--duplicates", help="of a user with the same item: keep_all, keep_first or keep_last")
    add("--titles", help="file of item titles, if it does not lie beside the raw file")
    add = parser.add_argument_group("how it is split").add_argument
    add("--split", help="one of the splits below, leave_one_out if not given")
    add("--validation-users", type=int, help="users drawn to validate (leave_one_out, by_user)")
    add("--test-users", type=int, help="users drawn to test (by_user)")
    add("--validation-time", help="begin of validation (temporal): unix seconds or ISO date, UTC")
    add("--test-time", help="begin of the test (temporal)")
    add("--seed", type=int, help="of all draws, synthetic interactions included")
    add = parser.add_argument_group("columns of the sources csv, jsonl and parquet").add_argument
    for column in ("user", "item", "timestamp", "rating"):
        add(f"--{column}-column", metavar="NAME", help=f"{column} if not given")
    add = parser.add_argument_group("synthetic interactions").add_argument
    for name, field in SYNTHETIC_SETTINGS.items():
        kind = type(field.default)
        add(f"--{name.replace('_', '-')}", type=kind, help=f"{field.default} if not given")
    return parser


def report(statistics: dict[str, Any], output: Path, seconds: float) -> None:
    """Print what came out, and at what cost."""
    before, after = statistics["before"], statistics["after"]
    for name in after:
        print(f"{name:<14}{after[name]:>12,} of {before[name]:,}")
    for reason, count in statistics["dropped"].items():
        if count:
            print(f"dropped by {reason}: {count:,} interactions")
    for reason, count in statistics["left_out"].items():
        if count:
            print(f"not held out, {reason}: {count:,} users")
    for name, part in statistics["splits"].items():
        print(f"{name:<14}{part['histories']:>12,} histories")
    peak = peak_resident_bytes() / 1e9
    print(f"fingerprint {statistics['fingerprint']}, {seconds:.1f} s, {peak:.2f} GB at the peak")
    print(f"written to {output}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, prepare, report."""
    start = time.perf_counter()
    options = vars(build_parser().parse_args(arguments))
    source, path, output = (options.pop(name) for name in ("source", "path", "output"))
    synthetic = {name: options.pop(name) for name in SYNTHETIC_SETTINGS if name in options}
    datasets.disable_progress_bars()
    try:
        synthetic = SyntheticConfig(seed=options.get("seed", 0), **synthetic)
        config = PreparationConfig(synthetic=synthetic, **options)
        statistics = prepare_dataset(source, path, output, config)
    except (ValueError, OSError, StrictDataclassError) as error:
        sys.exit(f"error: {error}")
    report(statistics, output, time.perf_counter() - start)


if __name__ == "__main__":
    main()
