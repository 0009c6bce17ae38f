"""Raw item ↔ id, as a `tokenizers` model that AutoTokenizer loads without code of ours; titles."""

import ast
import csv
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl
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


def read_titles(path: Path, items: Iterable[str]) -> dict[str, str]:
    """Read the titles of the given items from a file whose name says its format.

    Args:
        path: Plain or gzipped; `.json` or `.jsonl`, or an ending of TITLE_TABLES.
        items: Raw items; those without a title are left out of the result.
    """
    name = path.name.removesuffix(".gz")
    tables = [table for ending, table in TITLE_TABLES.items() if name.endswith(ending)]
    if tables:
        rows = titles_from_table(path, *tables[0])
    elif name.endswith((".json", ".jsonl")):
        rows = titles_from_json_lines(path)
    else:
        endings = ", ".join([*TITLE_TABLES, ".json", ".jsonl"])
        raise ValueError(f"titles are read from files that end with {endings}, got {path.name}")
    titles = {item: " ".join(title.split()) for item, title in rows if title}
    return {item: titles[item] for item in items if titles.get(item)}


def titles_from_table(
    path: Path, separator: str, header: list[str] | None
) -> Iterator[tuple[str, str]]:
    """Read pairs of item and title from separated columns.

    Args:
        path: UTF-8, or ISO-8859-1 as in the older MovieLens files.
        separator: A comma goes together with quotes.
        header: Names of the columns where the file has none.
    """
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("iso-8859-1")
    lines = text.replace("\r\n", "\n").split("\n")
    rows = csv.reader(lines) if separator == "," else (line.split(separator) for line in lines)
    header = header or [name.split(":")[0] for name in next(rows)]
    item = next((place for place, name in enumerate(header) if name in ITEM_COLUMNS), None)
    title = next((place for place, name in enumerate(header) if name in TITLE_COLUMNS), None)
    if item is None or title is None:
        raise ValueError(
            f"{path.name} needs one of the columns {', '.join(ITEM_COLUMNS)} and one of "
            f"{', '.join(TITLE_COLUMNS)}; its columns are {', '.join(map(repr, header))}"
        )
    return ((row[item], row[title]) for row in rows if len(row) > max(item, title))


def titles_from_json_lines(path: Path) -> Iterable[tuple[str, str]]:
    """Read pairs of item and title from Amazon's metadata, which in 2014 is Python literals."""
    open_text = gzip.open if path.suffix == ".gz" else Path.open
    with open_text(path, "rt", encoding="utf-8") as file:
        if file.readline().startswith("{'"):
            file.seek(0)
            records = map(ast.literal_eval, file)
            return [(record["asin"], record.get("title")) for record in records]
    columns = dict.fromkeys(["parent_asin", "asin", "title"], pl.String)
    lines = pl.scan_ndjson(path.resolve().as_uri(), schema=columns)
    item = pl.coalesce("parent_asin", "asin")
    return lines.select(item, "title").collect(engine="streaming").iter_rows()


ITEM_COLUMNS = ("item", "item_id", "movieId")
TITLE_COLUMNS = ("title", "movie_title")
TITLE_TABLES = {
    "movies.dat": ("::", ["item", "title"]),
    "u.item": ("|", ["item", "title"]),
    ".item": ("\t", None),
    ".csv": (",", None),
}
"""Ending of the file name → separator, and the header where the file has none."""
