"""A prepared folder is written under another name, and appears when everything is in it."""

import glob
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
from filelock import FileLock, Timeout

from .dataset_card import render_card
from .histories import Histories
from .vocabulary import build_vocabulary

UNFINISHED, LOCK = ".unfinished-", ".lock"
"""Beginning of the names of folders that are being written, and the file that tells so in each."""


def to_dataset(histories: Histories, users: pl.Series) -> datasets.Dataset:
    """Lay out the columns that are saved: whose history, its items, and the targets if any."""
    columns = {
        "user": users.to_arrow().cast(pa.string()),
        "items": pa.ListArray.from_arrays(histories.offsets.astype(np.int32), histories.values),
    }
    if histories.targets is not None:
        columns["target"] = histories.targets
    if (sets := histories.target_sets) is not None:
        columns["targets"] = pa.ListArray.from_arrays(sets.offsets.astype(np.int32), sets.values)
    return datasets.Dataset(datasets.table.InMemoryTable(pa.table(columns)))


def check_output(output: Path) -> None:
    """Refuse to write where something is already."""
    if output.exists():
        raise FileExistsError(f"{output} already exists; remove it, or name another output folder")


def remove_unfinished(output: Path) -> None:
    """Remove what preparations of the same output left that were killed; others hold a lock."""
    for workplace in output.parent.glob(f"{UNFINISHED}{glob.escape(output.name)}-*"):
        with suppress(Timeout), FileLock(workplace / LOCK, timeout=0):
            shutil.rmtree(workplace)


def write_folder(
    output: Path,
    parts: dict[str, datasets.Dataset],
    items: list[str],
    titles: dict[str, str],
    statistics: dict[str, Any],
) -> None:
    """Write a prepared dataset."""
    with unfinished_folder(output) as folder:
        datasets.DatasetDict(parts).save_to_disk(folder)
        write_beside(folder, items, titles, statistics)


@contextmanager
def unfinished_folder(output: Path) -> Iterator[Path]:
    """Let a folder be made under another name beside the output, and rename it when it is whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{UNFINISHED}{output.name}-"
    with (
        tempfile.TemporaryDirectory(dir=output.parent, prefix=prefix) as workplace,
        FileLock(Path(workplace) / LOCK),
    ):
        folder = Path(workplace) / output.name
        yield folder
        folder.rename(output)


def write_beside(
    folder: Path, items: list[str], titles: dict[str, str], statistics: dict[str, Any]
) -> None:
    """Write what a prepared dataset holds besides its histories."""
    build_vocabulary(items).save_pretrained(folder)
    if titles:
        _write_json(folder / "titles.json", titles)
    _write_json(folder / "statistics.json", statistics)
    (folder / "README.md").write_text(render_card(statistics), encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
