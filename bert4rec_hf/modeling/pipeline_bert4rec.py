"""Histories of raw items in, recommended items out: a pipeline that travels with the model."""

import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline

from .configuration_bert4rec import NUM_SPECIAL_IDS
from .repository import find_beside

TASK = "next-item-recommendation"
UNKNOWN_ITEMS = ("error", "skip")


class NextItemRecommendationPipeline(Pipeline):
    """Recommend the next item of a history of raw items, oldest first.

    >>> recommend = pipeline("next-item-recommendation", "user/shop", trust_remote_code=True)
    ... # doctest: +SKIP
    >>> recommend(["alien", "heat"], top_k=2)  # doctest: +SKIP
    [{'item': 'fargo', 'score': 3.1, 'title': 'Fargo (1996)'}, {'item': 'dune', 'score': 2.7}]
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.ids: dict[str, int] = self.tokenizer.get_vocab()
        self.items = {number: item for item, number in self.ids.items()}
        revision = getattr(self.model.config, "_commit_hash", None)
        path = find_beside(self.model.name_or_path, "titles.json", revision)
        self.titles = json.loads(path.read_text(encoding="utf-8")) if path else {}

    def __call__(self, inputs: Any, **options: Any) -> list[Any]:
        """Recommend for one history or several.

        Args:
            inputs: Raw items, oldest first; or a list of such histories; or `{"items": [...]}`.
            options: `top_k`, how many items (10); `candidates`, raw items that alone may be
                recommended; `exclude`, raw items that may not; `exclude_seen`, whether those of the
                history may not (True); `unknown`, whether an item that is not in the catalog is an
                `error` or is left out of the history (`skip`); `batch_size`.

        Returns:
            A list of dicts with `item`, `score` and, where there is one, `title`, best first; or a
            list of such lists.

        Raises:
            KeyError: An item of a history is not in the catalog.
            ValueError: A history has no item of the catalog, or an option is out of range.
        """
        if isinstance(inputs, list | tuple):
            if not inputs:
                raise ValueError("a history needs at least one item, got []")
            if isinstance(inputs[0], str):
                inputs = {"items": list(inputs)}
            else:
                inputs = [each if isinstance(each, dict) else {"items": each} for each in inputs]
        elif isinstance(inputs, str):
            raise TypeError(f"a history is a list of raw items, got {inputs!r}")
        return super().__call__(inputs, **options)

    def _sanitize_parameters(
        self, unknown: str = "error", **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = ("top_k", "candidates", "exclude", "exclude_seen")
        for name in options:
            if name not in known:
                raise TypeError(
                    f"{name} is not an option; the options are {', '.join(known)} and unknown"
                )
        if options.get("top_k", 1) < 1:
            raise ValueError(f"top_k must be at least 1, got {options['top_k']}")
        if unknown not in UNKNOWN_ITEMS:
            raise ValueError(f"unknown must be one of {', '.join(UNKNOWN_ITEMS)}, got {unknown!r}")
        return {"unknown": unknown}, {}, options

    def preprocess(self, inputs: dict[str, Any], unknown: str) -> dict[str, Any]:
        history = list(inputs["items"])
        ids = [self.ids.get(item, 0) for item in history]
        missing = [i for i, number in zip(history, ids, strict=True) if number < NUM_SPECIAL_IDS]
        if missing and unknown == "error":
            raise KeyError(
                f"{len(missing)} of {len(history)} items are not in the catalog, the first is "
                f"{missing[0]!r}; unknown='skip' reads the history without them"
            )
        seen = [number for number in ids if number >= NUM_SPECIAL_IDS]
        if not seen:
            raise ValueError(
                f"none of the {len(history)} items of the history is in the catalog; at least one "
                "is needed"
            )
        newest = seen[1 - self.model.config.max_history_length :]
        input_ids = torch.tensor([[*newest, self.model.config.mask_token_id]])
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "seen": seen,
        }

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # A causal model names the next item at the newest one, others at the mask behind it.
        last = 2 if self.model.config.is_causal else 1
        logits = self.model(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=last
        ).logits
        return {"scores": logits[:, 0].float(), "seen": inputs["seen"]}

    def postprocess(
        self,
        outputs: dict[str, Any],
        top_k: int = 10,
        candidates: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        exclude_seen: bool = True,
    ) -> list[dict[str, Any]]:
        scores: Tensor = outputs["scores"].flatten()
        (seen,) = outputs["seen"] if isinstance(outputs["seen"][0], list) else (outputs["seen"],)
        allowed = torch.zeros(len(scores), dtype=torch.bool)
        if candidates is None:
            allowed[NUM_SPECIAL_IDS:] = True
        else:
            allowed[self._find(candidates)] = True
        allowed[self._find(exclude)] = False
        if exclude_seen:
            allowed[seen] = False
        scores = scores.masked_fill(~allowed, -torch.inf)
        best = scores.topk(min(top_k, int(allowed.sum())))
        return [
            {"item": item, "score": score} | self._title(item)
            for item, score in zip(
                [self.items[number] for number in best.indices.tolist()],
                best.values.tolist(),
                strict=True,
            )
        ]

    def _find(self, items: Iterable[str]) -> list[int]:
        """Ids of those items that are in the catalog."""
        ids = (self.ids.get(item, 0) for item in items)
        return [number for number in ids if number >= NUM_SPECIAL_IDS]

    def _title(self, item: str) -> dict[str, str]:
        return {"title": self.titles[item]} if item in self.titles else {}
