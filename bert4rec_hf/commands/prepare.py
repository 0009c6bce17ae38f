"""Turn raw interactions into a prepared dataset: ids, vocabulary, split, statistics and card.

bert4rec prepare synthetic --output data/synthetic
bert4rec prepare ml1m ml-1m/ratings.dat --min-interactions 5 --output data/ml1m
bert4rec prepare hub yandex/yambda --config flat/50m/listens --output data/yambda
bert4rec prepare parquet s3a://shop/orders/ --engine spark --output data/shop
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
from bert4rec_hf.data.options import SPLITS_OF, check_settings
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.several import Files
from bert4rec_hf.data.sources import SOURCES
from bert4rec_hf.data.spark_engine import prepare_on_spark
from bert4rec_hf.data.splits import SPLITS
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.data.writing import check_output
from bert4rec_hf.hub.raw_dataset import RawDataset, fetch_dataset
from bert4rec_hf.training.interruption import stopping_on_signals
from bert4rec_hf.training.process_memory import peak_resident_bytes
from bert4rec_hf.training.room import memory_room

from .parser import command_parser

SYNTHETIC_SETTINGS = {field.name: field for field in fields(SyntheticConfig)}
del SYNTHETIC_SETTINGS["seed"]  # one seed for everything


HUB = "hub"
"""The source that is downloaded."""

HUB_OPTIONS = ("config", "revision")
ENGINE_OPTIONS = ("engine", "shards")
SPLIT_TIMES = {"validation_time", "test_time", "test_last"}
SWITCH = {"action": "store_true"}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "datasets of a hub": {
        "config": {"help": "one of the dataset's configurations, or a file, folder or pattern"},
        "revision": {"help": "branch, tag or commit (default: main)"},
    },
    "engine": {
        "engine": {
            "choices": ["polars", "spark"],
            "help": "polars on this machine (default), or spark for parquet of any size",
        },
        "shards": {"type": int, "help": "files for each split (spark; default: by size)"},
    },
    "filters": {
        "vocabulary": {"help": "keep the catalog and ids of this dataset or model folder"},
        "min-interactions": {"type": int, "help": "drop users and items with fewer interactions"},
        "min-rating": {"type": float, "help": "drop interactions rated lower"},
        "duplicates": {"help": "repeats of an item by one user: keep_all, keep_first or keep_last"},
        "where": {
            "nargs": "+",
            "metavar": "COLUMN=VALUE",
            "help": "read only rows with this value; or !=",
        },
        "drop-incomplete": SWITCH | {"help": "drop and count rows without user, item or time"},
        "titles": {"help": "file of item titles, if not beside the raw file"},
        "title-column": {
            "metavar": "NAME",
            "help": "column of the titles, in their file or the raw file",
        },
    },
    "split": {
        "split": {"help": "one of the splits below (default: leave_one_out)"},
        "validation-users": {
            "type": int,
            "help": "number of users for validation (leave_one_out, by_user)",
        },
        "test-users": {"type": int, "help": "number of users for the test (by_user)"},
        "validation-time": {"help": "start of validation (temporal): unix seconds or ISO date"},
        "test-time": {"help": "start of the test (temporal)"},
        "test-last": {
            "metavar": "SPAN",
            "help": "instead of --test-time: length of the test at the end, such as 12h, 1d or 2w",
        },
        "gap": {
            "metavar": "SPAN",
            "help": "span before validation to leave out of training (temporal)",
        },
        "targets": {"help": "next, or all to keep a user's items of each part as a set (temporal)"},
        "seed": {"type": int, "help": "seed of all random draws, including synthetic interactions"},
    },
    "columns of csv, jsonl, parquet and recbole": {
        **{
            f"{column}-column": {"metavar": "NAME", "help": f"default: {column}"}
            for column in ("user", "item", "timestamp", "rating")
        },
        "explode": {"metavar": "NAME", "help": "column of lists; each entry becomes a row"},
    },
    "file format": {
        "separator": {"help": "between columns (csv, recbole, pairs); \\t is a tab"},
        "header": {"nargs": "+", "metavar": "NAME", "help": "columns of a csv without header"},
        "quote": {"help": "around fields (csv); '' if quotes are part of the text"},
        "encoding": {"help": "such as latin-1 (default: UTF-8)"},
        "missing": {
            "nargs": "*",
            "metavar": "TEXT",
            "help": f"texts that mean a missing value (default: {', '.join(MISSING)})",
        },
    },
    "times": {
        "order": {"help": "sort histories by time, or keep the order of the file: time or file"},
        "timestamp-format": {"help": "seconds, milliseconds, … or a pattern like %%d.%%m.%%Y"},
        "allow-zero-timestamps": SWITCH | {"help": "accept 0 as a time, not as a missing value"},
        "allow-negative-timestamps": SWITCH | {"help": "accept times before 1970"},
    },
    "synthetic interactions": {
        name.replace("_", "-"): {
            "type": type(field.default),
            "help": f"default: {field.default}",
        }
        for name, field in SYNTHETIC_SETTINGS.items()
    },
}
"""Title of a group → option → how it is read."""


def build_parser() -> argparse.ArgumentParser:
    """Offer the settings of PreparationConfig and SyntheticConfig, which know their defaults."""
    parser = command_parser(__spec__.name, __doc__)
    parser.argument_default = argparse.SUPPRESS
    parser.epilog = f"sources: {', '.join([*SOURCES, HUB])}\nsplits: {', '.join(SPLITS)}"
    parser.add_argument("source", help="format of the raw file: one of the sources below")
    parser.add_argument(
        "path",
        type=read_path,
        nargs="?",
        default=None,
        help="raw file, a folder of them (csv, jsonl, parquet), owner/dataset (hub), or an "
        "address such as s3a://shop/orders (engine spark)",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write; must not exist"
    )
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for name, reading in options.items():
            group.add_argument(f"--{name}", **reading)
    return parser


def read_path(text: str) -> Path | str:
    """Tell a path of this machine from an address like `s3a://shop/orders`."""
    return text if "://" in text else Path(text)


def download(path: Path | None, options: dict[str, Any]) -> tuple[RawDataset, dict[str, Any]]:
    """Download a dataset of a hub.

    Args:
        path: Its name.
        options: Settings of the preparation and HUB_OPTIONS, which are taken out.

    Returns:
        What was downloaded, and the settings with those that are known for it.
    """
    if path is None:
        raise ValueError("the source hub needs the name of a dataset, as owner/dataset")
    asked = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    dataset = fetch_dataset(path.as_posix(), **asked)
    settings = dict(dataset.settings)
    if "split" in options:
        unused = {"split", *SPLITS_OF}
    else:
        unused = SPLIT_TIMES if SPLIT_TIMES & options.keys() else set()
    return dataset, {k: v for k, v in settings.items() if k not in unused} | options


def check_here(path: Path | Files | str | None, engine: dict[str, Any]) -> None:
    """Refuse what only Spark does."""
    if isinstance(path, str):
        raise ValueError(f"{path} is read by --engine spark; name a file or folder of this machine")
    if "shards" in engine:
        raise ValueError(f"shards={engine['shards']} applies to --engine spark only")


def report(statistics: dict[str, Any], output: Path, seconds: float) -> None:
    """Print a summary of the dataset, time and memory."""
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
    for note in [*describe_origin(statistics), *statistics["notes"]]:
        print(note)
    if statistics["titles"]:
        print(f"{'titles':<14}{statistics['titles']:>12,} of {after['items']:,}")
    for name, part in statistics["splits"].items():
        print(f"{name:<14}{part['histories']:>12,} histories{describe_repeats(statistics, name)}")
    peak = peak_resident_bytes() / 1e9
    print(f"fingerprint {statistics['fingerprint']}, {seconds:.1f} s, {peak:.2f} GB at the peak")
    print(f"written to {output}")


def describe_origin(statistics: dict[str, Any]) -> list[str]:
    """Name the dataset of a hub that was read, and say what a user should know of it."""
    origin = statistics.get("hub")
    if origin is None:
        return []
    count = len(origin["files"])
    read = f"read from {origin['repository']} at {origin['revision']}, {count:,} files"
    return [read, *([origin["note"]] if origin["note"] else [])]


def describe_repeats(statistics: dict[str, Any], name: str) -> str:
    """Describe the share of held-out targets that repeat an item of their history."""
    count = statistics["repeated"].get(f"{name} targets seen before", 0)
    if count == 0:
        return ""
    share = count / statistics["splits"][name]["histories"]
    return f"; {share:.1%} of the targets repeat an item of their history"


def prepare(
    source: str, path: Path | str | None, output: Path, options: dict[str, Any]
) -> dict[str, Any]:
    """Prepare with the options of the command line.

    Raises:
        ValueError: They do not fit together, or the source cannot be read.
    """
    origin, synthetic = None, {}
    engine = {name: options.pop(name) for name in ENGINE_OPTIONS if name in options}
    for name in options.keys() & SYNTHETIC_SETTINGS.keys():
        synthetic[name] = options.pop(name)
    if source == HUB:
        check_output(output)
        dataset, options = download(path, options)
        source, path, origin = dataset.source, dataset.path, dataset.origin
    for name in HUB_OPTIONS:
        if name in options:
            raise ValueError(f"the source {source} does not use {name}; it applies to {HUB}")
    if "separator" in options:
        options["separator"] = options["separator"].replace("\\t", "\t")
    seed = options.get("seed", 0)
    config = PreparationConfig(synthetic=SyntheticConfig(seed=seed, **synthetic), **options)
    if source in SOURCES:
        check_settings(source, config, {*options, *(["synthetic"] if synthetic else [])})
    with stopping_on_signals(lambda: "nothing was written; the same command starts again"):
        if engine.get("engine") == "spark":
            shards = engine.get("shards", 0)
            return prepare_on_spark(source, path, output, config, shards, origin=origin)
        check_here(path, engine)
        return prepare_dataset(source, path, output, config, memory_room, origin)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, prepare, report."""
    start = time.perf_counter()
    options = vars(build_parser().parse_args(arguments))
    source, path, output = (options.pop(name) for name in ("source", "path", "output"))
    asked = f", config {options['config']}" if "config" in options else ""
    place = f"{path}{asked}: " if source == HUB else ""
    datasets.disable_progress_bars()
    try:
        statistics = prepare(source, path, output, options)
    except (ValueError, OSError, StrictDataclassError) as error:
        sys.exit(f"error: {place}{error}")
    except MemoryError as error:
        sys.exit(f"error: there is not enough memory for {path}: {error}")
    report(statistics, output, time.perf_counter() - start)


if __name__ == "__main__":
    main()
