"""Raw item ↔ id, as a `tokenizers` model that AutoTokenizer loads without code of ours."""

import hashlib
import json
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

PAD_TOKEN = "[PAD]"
MASK_TOKEN = "[MASK]"
SPECIAL_TOKENS = (PAD_TOKEN, MASK_TOKEN)
FIRST_ITEM_ID = len(SPECIAL_TOKENS)


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
    # No unknown token: every id that is not padding or mask is an item that can be recommended.
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(ids)),
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
    ids = vocabulary.get_vocab()
    return sorted((item for item in ids if ids[item] >= FIRST_ITEM_ID), key=ids.get)


def vocabulary_fingerprint(vocabulary: PreTrainedTokenizerFast | Sequence[str]) -> str:
    """Tell vocabularies apart: equal only where the same items have the same ids.

    >>> vocabulary_fingerprint(["alien", "dune"]) == vocabulary_fingerprint(["dune", "alien"])
    False
    """
    is_tokenizer = isinstance(vocabulary, PreTrainedTokenizerFast)
    items = catalog_items(vocabulary) if is_tokenizer else list(vocabulary)
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]
