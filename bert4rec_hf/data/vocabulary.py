"""Raw item ↔ id, as a `tokenizers` model that AutoTokenizer loads without code of ours."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from .strict_json import read_json

PAD_TOKEN = "[PAD]"
MASK_TOKEN = "[MASK]"
SPECIAL_TOKENS = (PAD_TOKEN, MASK_TOKEN)
FIRST_ITEM_ID = len(SPECIAL_TOKENS)
VOCABULARY_BYTES = 4_000_000_000
"""A larger `tokenizer.json` is not read; an item takes some 30 bytes of it."""


def build_vocabulary(items: Sequence[str]) -> PreTrainedTokenizerFast:
    """Number the items in the given order, after padding and mask; any string is an item.

    The result saves to `tokenizer.json`, which `AutoTokenizer` loads without code of ours. It
    splits nothing: a text is one item, and a history is a list of words.

    >>> vocabulary = build_vocabulary(["alien", "dune (1984)"])
    >>> vocabulary(["dune (1984)", "alien"], is_split_into_words=True).input_ids
    [3, 2]
    >>> vocabulary.convert_tokens_to_ids(["alien", "[MASK]"])
    [2, 1]

    Args:
        items: Raw items, each once; the order fixes the ids.

    Raises:
        ValueError: There is no item, or one is empty, occurs twice or is the name of a special
            token.
    """
    check_items(items)
    ids = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *items])}
    # No unknown token: every id that is not padding or mask is an item that can be recommended. If
    # none is named, tokenizers takes an item "<unk>" for it.
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(ids, unk_token="")),
        pad_token=PAD_TOKEN,
        mask_token=MASK_TOKEN,
        split_special_tokens=True,  # an item may contain "[MASK]"
        padding_side="left",
        truncation_side="left",  # what is cut off is the oldest
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def check_items(items: Sequence[str]) -> None:
    """Refuse a catalog in which an item has no name of its own."""
    if len(items) == 0:
        raise ValueError("a vocabulary needs at least one item, got none")
    seen = set(SPECIAL_TOKENS)
    for place, item in enumerate(items):
        if not item:
            raise ValueError(f"item {place} of {len(items)} has an empty name; drop or name it")
        if item in SPECIAL_TOKENS:
            raise ValueError(f"{item!r} is the name of a special token; rename the item")
        if item in seen:
            raise ValueError(f"item {item!r} occurs twice; each item needs exactly one id")
        seen.add(item)


def catalog_items(vocabulary: PreTrainedTokenizerFast) -> list[str]:
    """List the raw items in the order of their ids, which begin at FIRST_ITEM_ID."""
    return ordered_items(vocabulary.get_vocab())


def ordered_items(ids: dict[str, int]) -> list[str]:
    """List the raw items in the order of their ids, without padding and mask."""
    return sorted((item for item in ids if ids[item] >= FIRST_ITEM_ID), key=ids.get)


def vocabulary_fingerprint(vocabulary: PreTrainedTokenizerFast | Sequence[str]) -> str:
    """Tell vocabularies apart: equal only where the same items have the same ids.

    >>> vocabulary_fingerprint(["alien", "dune"]) == vocabulary_fingerprint(["dune", "alien"])
    False
    """
    is_tokenizer = isinstance(vocabulary, PreTrainedTokenizerFast)
    items = catalog_items(vocabulary) if is_tokenizer else list(vocabulary)
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]


def load_vocabulary(folder: str | Path) -> PreTrainedTokenizerFast:
    """Load the vocabulary of a dataset or model folder, whose ids must be those that we give.

    A file with two items of one id, or with a hole in its ids, would be loaded silently as another
    vocabulary.

    Raises:
        FileNotFoundError: The folder has no `tokenizer.json`.
        ValueError: It is broken, or its ids are not padding, mask and then each item once.
    """
    path = Path(folder) / "tokenizer.json"
    ids = read_ids(path)
    try:
        vocabulary = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more special
        raise ValueError(f"{path} is not a tokenizer that can be loaded: {error}") from error
    if vocabulary.get_vocab() != ids:
        raise ValueError(
            f"{path} has {len(ids):,} ids, but {len(vocabulary):,} when loaded; a token "
            "was added to it or to tokenizer_config.json, take the files that were saved together"
        )
    special = (vocabulary.pad_token_id, vocabulary.mask_token_id)
    if special != (0, 1):
        raise ValueError(
            f"{path.with_name('tokenizer_config.json')} must name {PAD_TOKEN} as padding and "
            f"{MASK_TOKEN} as mask, the ids 0 and 1; got {special[0]} and {special[1]}"
        )
    return vocabulary


def read_ids(path: Path) -> dict[str, int]:
    """Read token → id from a `tokenizer.json`, as they stand there.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is broken, or its ids are not padding, mask and then each item once.
    """
    content = read_json(path, VOCABULARY_BYTES)
    model = content.get("model")
    ids = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(ids, dict) or model.get("type") != "WordLevel":
        raise ValueError(f"{path} is not a vocabulary of items; its model is not of type WordLevel")
    check_ids(ids, path)
    added = content.get("added_tokens") or []
    for token in added if isinstance(added, list) else [added]:
        if not isinstance(token, dict) or ids.get(token.get("content")) != token.get("id"):
            raise ValueError(
                f"{path} adds the token {token!r}, which is not in its vocabulary; add items by "
                "preparing the dataset again"
            )
    return ids


def check_ids(ids: dict[str, Any], path: Path) -> None:
    """Refuse ids that are not padding, mask and then each item once.

    Raises:
        ValueError: They are not; `path` is named.
    """
    owners: dict[int, str] = {}
    for token, number in ids.items():
        if type(number) is not int or not 0 <= number < len(ids):
            raise ValueError(
                f"{path}: {token!r} has the id {number!r}; the ids of {len(ids):,} tokens go from "
                f"0 to {len(ids) - 1:,}"
            )
        if number in owners:
            raise ValueError(f"{path}: {owners[number]!r} and {token!r} both have the id {number}")
        owners[number] = token
    for number, token in enumerate(SPECIAL_TOKENS):
        if owners.get(number) != token:
            raise ValueError(f"{path}: id {number} must be {token}, got {owners.get(number)!r}")
