"""Turn raw interactions into a prepared dataset: ids, vocabulary, split, statistics and card.

bert4rec prepare synthetic --output data/synthetic
bert4rec prepare ml1m ml-1m/ratings.dat --min-interactions 5 --output data/ml1m
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
from bert4rec_hf.data.names import MISSING
from bert4rec_hf.data.options import check_settings
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.sources import SOURCES
from bert4rec_hf.data.splits import SPLITS
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.training.interruption import stopping_on_signals
from bert4rec_hf.training.process_memory import peak_resident_bytes
from bert4rec_hf.training.room import memory_room

from .parser import command_parser

SYNTHETIC_SETTINGS = {field.name: field for field in fields(SyntheticConfig)}
del SYNTHETIC_SETTINGS["seed"]  # one seed for everything


SWITCH = {"action": "store_true"}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "what is kept": {
        "vocabulary": {"help": "folder of a dataset or model whose catalog and ids are kept"},
        "min-interactions": {"type": int, "help": "users and items with fewer are dropped"},
        "min-rating": {"type": float, "help": "drop interactions rated lower"},
        "duplicates": {"help": "of a user with the same item: keep_all, keep_first or keep_last"},
        "where": {"nargs": "+", "metavar": "COLUMN=VALUE", "help": "rows that are read, or !="},
        "drop-incomplete": SWITCH | {"help": "drop rows without user, item or time; counted"},
        "titles": {"help": "file of item titles, if it does not lie beside the raw file"},
        "title-column": {"metavar": "NAME", "help": "of titles, in their file or the raw one"},
    },
    "how it is split": {
        "split": {"help": "one of the splits below, leave_one_out if not given"},
        "validation-users": {"type": int, "help": "users who validate (leave_one_out, by_user)"},
        "test-users": {"type": int, "help": "users who test (by_user)"},
        "validation-time": {"help": "begin of validation (temporal): unix seconds or ISO date"},
        "test-time": {"help": "begin of the test (temporal)"},
        "test-last": {"metavar": "SPAN", "help": "or its length, up to the end: 12h, 1d, 2w"},
        "gap": {"metavar": "SPAN", "help": "before validation, not trained on (temporal)"},
        "seed": {"type": int, "help": "of all draws, synthetic interactions included"},
    },
    "columns of csv, jsonl, parquet and recbole": {
        **{
            f"{column}-column": {"metavar": "NAME", "help": f"{column} if not given"}
            for column in ("user", "item", "timestamp", "rating")
        },
        "explode": {"metavar": "NAME", "help": "a column of lists, each entry becomes a row"},
    },
    "how the file is written": {
        "separator": {"help": "between columns (csv, recbole, pairs); \\t is a tab"},
        "header": {"nargs": "+", "metavar": "NAME", "help": "columns of a csv without header"},
        "quote": {"help": "around fields (csv), '' where quotes are part of the text"},
        "encoding": {"help": "such as latin-1, UTF-8 if not given"},
        "missing": {"nargs": "*", "metavar": "TEXT", "help": f"nothing: {', '.join(MISSING)}"},
    },
    "times": {
        "order": {"help": "of a history: time, or file where there are no times"},
        "timestamp-format": {"help": "seconds, milliseconds, … or a pattern like %%d.%%m.%%Y"},
        "allow-zero-timestamps": SWITCH | {"help": "0 is a time, not a missing one"},
        "allow-negative-timestamps": SWITCH | {"help": "there are times before 1970"},
    },
    "synthetic interactions": {
        name.replace("_", "-"): {
            "type": type(field.default),
            "help": f"{field.default} if not given",
        }
        for name, field in SYNTHETIC_SETTINGS.items()
    },
}
"""Title of a group → option → how it is read."""


def build_parser() -> argparse.ArgumentParser:
    """Offer the settings of PreparationConfig and SyntheticConfig, which know their defaults."""
    parser = command_parser(__spec__.name, __doc__)
    parser.argument_default = argparse.SUPPRESS
    parser.epilog = f"sources: {', '.join(SOURCES)}\nsplits: {', '.join(SPLITS)}"
    parser.add_argument("source", help="format of the raw file, one of the sources below")
    parser.add_argument("path", type=Path, nargs="?", default=None, help="raw file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, must be new")
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for name, reading in options.items():
            group.add_argument(f"--{name}", **reading)
    return parser


def report(statistics: dict[str, Any], output: Path, seconds: float) -> None:
    """Print what came out, and at what cost."""
    before, after = statistics["before"], statistics["after"]
    if statistics["rows"] != before["interactions"]:
        print(f"{'rows':<14}{statistics['rows']:>12,}")
    for name in after:
        print(f"{name:<14}{after[name]:>12,} of {before[name]:,}")
    lines = {f"dropped by {reason}": n for reason, n in statistics["dropped"].items()}
    lines |= {f"not held out, {reason}": n for reason, n in statistics["left_out"].items()}
    lines["exact copies"] = statistics["repeated"]["exact copies"]
    for line, count in lines.items():
        if count:
            print(f"{line}: {count:,}")
    for note in statistics["notes"]:
        print(note)
    if statistics["titles"]:
        print(f"{'titles':<14}{statistics['titles']:>12,} of {after['items']:,}")
    for name, part in statistics["splits"].items():
        print(f"{name:<14}{part['histories']:>12,} histories{describe_repeats(statistics, name)}")
    peak = peak_resident_bytes() / 1e9
    print(f"fingerprint {statistics['fingerprint']}, {seconds:.1f} s, {peak:.2f} GB at the peak")
    print(f"written to {output}")


def describe_repeats(statistics: dict[str, Any], name: str) -> str:
    """What share of a held-out part has a target that its history holds already."""
    count = statistics["repeated"].get(f"{name} targets seen before", 0)
    if count == 0:
        return ""
    share = count / statistics["splits"][name]["histories"]
    return f"; {share:.1%} of the targets repeat an item of their history"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, prepare, report."""
    start = time.perf_counter()
    options = vars(build_parser().parse_args(arguments))
    source, path, output = (options.pop(name) for name in ("source", "path", "output"))
    synthetic = {name: options.pop(name) for name in SYNTHETIC_SETTINGS if name in options}
    if "separator" in options:
        options["separator"] = options["separator"].replace("\\t", "\t")
    seed = options.get("seed", 0)
    datasets.disable_progress_bars()
    try:
        config = PreparationConfig(synthetic=SyntheticConfig(seed=seed, **synthetic), **options)
        if source in SOURCES:
            check_settings(source, config, {*options, *(["synthetic"] if synthetic else [])})
        with stopping_on_signals(lambda: "nothing was written, the same command starts again"):
            statistics = prepare_dataset(source, path, output, config, memory_room)
    except (ValueError, OSError, StrictDataclassError) as error:
        sys.exit(f"error: {error}")
    except MemoryError as error:
        sys.exit(f"error: there is not enough memory for {path}: {error}")
    report(statistics, output, time.perf_counter() - start)


if __name__ == "__main__":
    main()
