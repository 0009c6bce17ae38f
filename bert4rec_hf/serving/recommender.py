"""A trained folder in use: raw items in, ranked raw items with scores and titles out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.ranking import CatalogScores, item_sets, top_items
from bert4rec_hf.hub.model_folder import load_model
from bert4rec_hf.modeling import NUM_SPECIAL_IDS, BERT4RecForMaskedItemModeling

UNKNOWN_ITEMS = ("error", "skip")


class Recommendation(NamedTuple):
    """One recommended item."""

    item: str
    score: float
    title: str | None = None


class Recommender:
    """A model and its vocabulary, for histories of raw items.

    Args:
        model: Trained.
        tokenizer: The vocabulary it was trained with.
        titles: Title of each raw item that has one.

    Raises:
        ValueError: Model and vocabulary have different sizes.
    """

    def __init__(
        self,
        model: BERT4RecForMaskedItemModeling | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        titles: dict[str, str] | None = None,
    ):
        if len(tokenizer) != model.config.vocab_size:
            raise ValueError(
                f"the vocabulary has {len(tokenizer)} ids and the model {model.config.vocab_size}; "
                "use the tokenizer.json that was saved with the model"
            )
        self.scorer = ModelScorer(model.eval())
        self.ids: dict[str, int] = tokenizer.get_vocab()
        self.items = {number: item for item, number in self.ids.items()}
        self.titles = titles or {}

    @property
    def catalog(self) -> list[str]:
        """All raw items, in the order of their ids."""
        return [self.items[number] for number in range(NUM_SPECIAL_IDS, len(self.items))]

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Recommender":
        """Load a model or adapter folder, or one of a hub by its name."""
        titles = cached_file(name, "titles.json", _raise_exceptions_for_missing_entries=False)
        return cls(
            load_model(name),
            AutoTokenizer.from_pretrained(name),
            json.loads(Path(titles).read_text(encoding="utf-8")) if titles else None,
        )

    def recommend(
        self,
        histories: Sequence[str] | Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        unknown: str = "error",
    ) -> list[Recommendation] | list[list[Recommendation]]:
        """Recommend the next item of one history, or of each of several.

        Args:
            histories: Raw items, oldest first; or several such histories.
            k: How many items, best first; fewer where the catalog runs out.
            exclude_seen: Leave out the items of the history, however old.
            unknown: `error` refuses a history with an item that is not in the catalog, `skip`
                reads it without that item.

        Returns:
            The recommendations, or a list of them per history.

        Raises:
            KeyError: An item is not in the catalog and unknown is `error`.
            ValueError: A history has no item of the catalog, or an option is out of range.
            TypeError: An item is not a string.
        """
        if unknown not in UNKNOWN_ITEMS:
            raise ValueError(f"unknown must be one of {', '.join(UNKNOWN_ITEMS)}, got {unknown!r}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if isinstance(histories, str) or len(histories) == 0:
            raise ValueError(f"histories must be a list of raw items, got {histories!r}")
        if any(isinstance(each, list | tuple) for each in histories):
            encoded = [self._encode(each, unknown) for each in histories]
            return self._recommend(encoded, k, exclude_seen)
        return self._recommend([self._encode(histories, unknown)], k, exclude_seen)[0]

    def _encode(self, history: Sequence[str], unknown: str) -> np.ndarray:
        """Ids of raw items; padding and mask are no items."""
        if isinstance(history, str):
            raise TypeError(f"a history must be a list of raw items, got {history!r}")
        for item in history:
            if not isinstance(item, str):
                raise TypeError(f"a raw item must be a string, got {item!r}; write {str(item)!r}")
        ids = [self.ids.get(item, 0) for item in history]
        missing = [i for i, number in zip(history, ids, strict=True) if number < NUM_SPECIAL_IDS]
        if missing and unknown == "error":
            raise KeyError(
                f"{len(missing)} of {len(history)} items are not in the catalog, the first is "
                f"{missing[0]!r}; was the model trained on the same dataset? unknown='skip' reads "
                "the history without them"
            )
        if len(missing) == len(history):
            raise ValueError(
                f"none of the {len(history)} items of the history is in the catalog; "
                "at least one is needed"
            )
        return np.array([n for n in ids if n >= NUM_SPECIAL_IDS], dtype=np.int32)

    @torch.inference_mode()
    def _recommend(
        self, histories: list[np.ndarray], k: int, exclude_seen: bool
    ) -> list[list[Recommendation]]:
        chunks = CatalogScores(self.scorer, self.scorer.encode(histories))
        ids, scores = top_items(chunks, k, item_sets(histories) if exclude_seen else None)
        return [
            [
                Recommendation(self.items[number], score, self.titles.get(self.items[number]))
                for number, score in zip(row_ids, row_scores, strict=True)
                if number >= NUM_SPECIAL_IDS
            ]
            for row_ids, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
