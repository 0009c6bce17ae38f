"""A prepared dataset in use: its histories, its vocabulary, and what was measured of it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerFast

from .histories import Histories
from .verification import check_columns, check_prepared, open_parts, read_statistics
from .vocabulary import FIRST_ITEM_ID, load_vocabulary


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
        return np.bincount(self.train.values, minlength=self.vocab_size)

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
    """Read the columns of a saved part, without a copy where its file is in one piece."""
    table = dataset.with_format("arrow")[:]
    items = table["items"].combine_chunks()
    targets = table["target"].to_numpy() if "target" in table.column_names else None
    return Histories(items.values.to_numpy(), items.offsets.to_numpy().astype(np.int64), targets)
