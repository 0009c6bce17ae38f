"""A prepared dataset in use: its histories, its vocabulary, and what was measured of it."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from .histories import Histories
from .pieces import Pieces, count_ids
from .verification import check_columns, check_prepared, open_parts, read_statistics
from .vocabulary import FIRST_ITEM_ID, load_vocabulary

COPIED_BYTES = 2**28
"""Ids of a part in many pieces are put together in memory up to this size, to be read faster."""


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared folder in use."""

    folder: Path
    train: Histories
    validation: Histories
    test: Histories
    statistics: dict[str, Any]
    """What was measured when it was written, and from what and how."""

    @property
    def num_items(self) -> int:
        """Items of the catalog, also those that only occur in held-out data."""
        return self.statistics["after"]["items"]

    @property
    def vocab_size(self) -> int:
        """Items plus padding and mask."""
        return self.num_items + FIRST_ITEM_ID

    @property
    def fingerprint(self) -> str:
        """Equal only for the same items, ids, histories and targets."""
        return self.statistics["fingerprint"]

    @property
    def vocabulary_fingerprint(self) -> str:
        """What a model must agree with; see `vocabulary_fingerprint` of its tokenizer."""
        return self.statistics["vocabulary_fingerprint"]

    @cached_property
    def popularity(self) -> np.ndarray:
        """(vocab,) interactions of each item in the training part."""
        return count_ids(self.train.values, self.vocab_size)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The vocabulary."""
        return load_vocabulary(self.folder)

    @cached_property
    def titles(self) -> dict[str, str]:
        """Raw item → title; empty if the source has no titles."""
        path = self.folder / "titles.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def load_prepared(folder: str | Path, *, verify: bool = False) -> PreparedDataset:
    """Open a folder that `prepare_dataset` wrote; vocabulary and titles are read when needed.

    Args:
        folder: The folder.
        verify: Check its whole content, not only what takes a moment.

    Raises:
        FileNotFoundError: It is no prepared dataset.
        ValueError: Its content is not what was prepared.
    """
    folder = Path(folder)
    statistics = read_statistics(folder)
    parts = {}
    for name, part in open_parts(folder).items():
        check_columns(part, folder / name)
        parts[name] = from_dataset(part)
    check_prepared(folder, parts, statistics, wholly=verify)
    return PreparedDataset(folder=folder, statistics=statistics, **parts)


def from_dataset(dataset: datasets.Dataset) -> Histories:
    """Read the columns of a saved part; ids stay in its files, if they are many."""
    table = dataset.with_format("arrow")[:]
    targets = table["target"].to_numpy() if "target" in table.column_names else None
    sets = read_lists(table["targets"]) if "targets" in table.column_names else None
    return replace(read_lists(table["items"]), targets=targets, target_sets=sets)


def read_lists(column: pa.ChunkedArray) -> Histories:
    """Look at lists of ids as histories."""
    offsets, arrays = np.zeros(len(column) + 1, dtype=np.int64), []
    first, start = 0, 0
    for chunk in column.chunks:
        own = chunk.offsets.to_numpy()
        arrays.append(chunk.values.to_numpy()[own[0] : own[-1]])
        offsets[first + 1 : first + len(own)] = own[1:] - own[0] + start
        first, start = first + len(chunk), start + len(arrays[-1])
    values = Pieces(arrays)
    if len(values.arrays) == 1:
        return Histories(values.arrays[0], offsets)
    is_copied = values.nbytes <= COPIED_BYTES
    return Histories(np.asarray(values) if is_copied else values, offsets)
