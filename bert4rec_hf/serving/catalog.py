"""Raw item ↔ id, read from a model folder in a moment however large the catalog is."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerBase

from bert4rec_hf.data.vocabulary import FIRST_ITEM_ID
from bert4rec_hf.hub.model_folder import read_vocabulary


class Catalog:
    """The items that a model knows, by id and by name.

    Args:
        ids: Raw item → id, of all ids, padding and mask included.
    """

    def __init__(self, ids: dict[str, int]):
        self.ids = ids
        self.names: list[str] = sorted(ids, key=ids.get)
        """Raw item of each id; those of padding and mask come first."""

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Catalog":
        """Read the vocabulary of a folder, or of a hub; it must be that of the model."""
        return cls(read_vocabulary(name))

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> "Catalog":
        """Take the vocabulary of a tokenizer."""
        return cls(tokenizer.get_vocab())

    def __len__(self) -> int:
        """Number of ids, padding and mask included."""
        return len(self.names)

    @property
    def items(self) -> list[str]:
        """All raw items, in the order of their ids."""
        return self.names[FIRST_ITEM_ID:]

    @cached_property
    def _enum(self) -> pl.Enum:
        return pl.Enum(self.items)

    def find_places(self, items: pl.Series) -> pl.Series:
        """Place of each item in the catalog, counted from 0; null where it is not in it.

        Args:
            items: (items,) texts.
        """
        return items.cast(self._enum, strict=False).to_physical()

    def count(self, interactions: pl.LazyFrame) -> np.ndarray:
        """(vocab,) interactions with each item; those with other items do not count.

        Args:
            interactions: With a column `item` of texts.
        """
        counted = interactions.group_by("item").len().collect(engine="streaming")
        places = self.find_places(counted["item"])
        popularity = np.zeros(len(self), dtype=np.int64)
        is_known = places.is_not_null()
        known = places.filter(is_known).to_numpy().astype(np.int64)
        popularity[known + FIRST_ITEM_ID] = counted["len"].filter(is_known).to_numpy()
        return popularity

    def find(self, items: Iterable[str]) -> np.ndarray:
        """(known,) ids of those items that are in the catalog."""
        ids = (self.ids.get(item, 0) for item in items)
        return np.array([number for number in ids if number >= FIRST_ITEM_ID], dtype=np.int64)

    def encode(self, history: Sequence[str], unknown: str = "error") -> np.ndarray:
        """Read one history; padding and mask are no items.

        Args:
            history: Raw items.
            unknown: `error` refuses an item that is not in the catalog, `skip` leaves it out.

        Returns:
            (known,) int32 ids.

        Raises:
            TypeError: It is no list, or an item is not a string.
            KeyError: An item is not in the catalog and unknown is `error`.
        """
        if not isinstance(history, list | tuple):
            raise TypeError(f"a history must be a list of raw items, got {history!r}")
        for item in history:
            if not isinstance(item, str):
                raise TypeError(f"a raw item must be a string, got {item!r}; write {str(item)!r}")
        ids = [self.ids.get(item, 0) for item in history]
        missing = [i for i, number in zip(history, ids, strict=True) if number < FIRST_ITEM_ID]
        if missing and unknown == "error":
            raise KeyError(
                f"{len(missing)} of {len(history)} items are not in the catalog, the first is "
                f"{missing[0]!r}; was the model trained on the same dataset? unknown='skip' reads "
                "the history without them"
            )
        return np.array([number for number in ids if number >= FIRST_ITEM_ID], dtype=np.int32)
