"""A prepared folder is checked against what it says of itself, before a number is computed from it.

Quickly at every start: files, types, ranges of ids, counts, and the fingerprint of the content
where hashing it takes no more than a moment. Wholly on request: also of large datasets, with the
vocabulary and the users.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from .histories import SPLIT_NAMES, Histories
from .pieces import blocks
from .strict_json import read_json
from .vocabulary import FIRST_ITEM_ID, ordered_items, read_ids, vocabulary_fingerprint

ARROW_NAME = re.compile(r"[\w.-]{1,200}\.arrow")
STATISTICS_BYTES = 10_000_000
QUICK_BYTES = 200_000_000
"""Of ids: so many are hashed in less than a second, and more only on request."""

QUICK_VOCABULARY_BYTES = 20_000_000
"""Of `tokenizer.json`, likewise; half a million items."""


def dataset_fingerprint(vocabulary: str, histories: dict[str, Histories]) -> str:
    """Hash the catalog and all ids, the same on every machine.

    Args:
        vocabulary: The `vocabulary_fingerprint` of the catalog.
        histories: By the name of their split.
    """
    return shards_fingerprint(vocabulary, {name: [part] for name, part in histories.items()})


def shards_fingerprint(vocabulary: str, parts: Mapping[str, Sequence[Histories]]) -> str:
    """Hash what dataset_fingerprint does, of histories that lie in several files.

    However they are divided, the same histories have the same fingerprint.

    Args:
        vocabulary: The `vocabulary_fingerprint` of the catalog.
        parts: The shards of each split in their order, read one after the other three times.
    """
    digest = hashlib.sha256(vocabulary.encode())
    for name, shards in parts.items():
        counts = [(len(shard), len(shard.values)) for shard in shards]
        histories, interactions = map(sum, zip(*counts, strict=True)) if counts else (0, 0)
        digest.update(f"{name} {histories} {interactions}".encode())
        for numbers in _hashed(shards):
            digest.update(numbers.tobytes())
    return digest.hexdigest()[:16]


def _hashed(shards: Sequence[Histories]) -> Iterator[np.ndarray]:
    """Yield what is hashed of a split, a few numbers after the other."""
    start = 0
    yield np.zeros(1, "<i8")
    for shard in shards:
        yield (shard.offsets[1:] + start).astype("<i8")
        start += len(shard.values)
    for shard in shards:
        yield from (block.astype("<i4") for block in blocks(shard.values))
    for shard in shards:
        if shard.targets is not None:
            yield shard.targets.astype("<i4")
    for sets in (shard.target_sets for shard in shards):
        if sets is not None:
            yield sets.lengths.astype("<i8")
            yield from (block.astype("<i4") for block in blocks(sets.values))


def read_statistics(folder: Path) -> dict[str, Any]:
    """Read what was measured when the folder was written.

    Raises:
        FileNotFoundError: The folder is no prepared dataset.
        ValueError: The file is broken, or lacks what every dataset has.
    """
    path = folder / "statistics.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not a prepared dataset: it has no statistics.json; "
            "scripts/prepare_data.py makes one"
        )
    statistics = read_json(path, STATISTICS_BYTES)
    after = statistics.get("after")
    items = after.get("items") if isinstance(after, dict) else None
    prints = [statistics.get(name) for name in ("fingerprint", "vocabulary_fingerprint")]
    if type(items) is not int or items < 1 or not all(isinstance(each, str) for each in prints):
        raise ValueError(
            f"{path} lacks after.items, fingerprint or vocabulary_fingerprint; prepare the dataset "
            "again"
        )
    return statistics


def open_parts(folder: Path) -> dict[str, datasets.Dataset]:
    """Open the Arrow files of a prepared folder, all of which must lie in it.

    Returns:
        A dataset per split, each file memory-mapped.

    Raises:
        ValueError: A file is missing, broken or elsewhere.
    """
    for name in SPLIT_NAMES:
        state = folder / name / "state.json"
        files = read_json(state).get("_data_files") if state.is_file() else None
        for each in files if isinstance(files, list) else [None]:
            file = each.get("filename") if isinstance(each, dict) else None
            if not isinstance(file, str) or not ARROW_NAME.fullmatch(file):
                raise ValueError(f"{state} names no Arrow files beside it, got {file!r}")
            if not (folder / name / file).is_file():
                raise ValueError(f"{state} names {file}, which is missing in {folder / name}")
    try:
        return {name: open_part(folder / name) for name in SPLIT_NAMES}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise ValueError(f"{folder} cannot be opened as a dataset: {error}") from error


def open_part(folder: Path) -> datasets.Dataset:
    """Open one split; of an empty one `datasets` writes no file, and cannot load it."""
    if not (folder / "dataset_info.json").is_file():
        raise ValueError(f"{folder / 'dataset_info.json'} is missing")
    if read_json(folder / "state.json")["_data_files"]:
        return datasets.load_from_disk(str(folder))
    features = datasets.DatasetInfo.from_directory(str(folder)).features
    return datasets.Dataset.from_dict({column: [] for column in features}, features=features)


def check_columns(part: datasets.Dataset, files: Path) -> None:
    """Refuse columns of other types, or whose parts do not fit together.

    Args:
        part: A split.
        files: Its folder.

    Raises:
        ValueError: They are so.
    """
    needed = {"items": pa.list_(pa.int32())}
    if files.name != "train":
        needed["target"] = pa.int32()
    if "targets" in part.data.column_names:
        needed["targets"] = pa.list_(pa.int32())
    for column, kind in needed.items():
        if column not in part.data.column_names:
            raise ValueError(f"{files} has no column {column}; prepare the dataset again")
        values = part.data.column(column)
        if values.type != kind:
            raise ValueError(f"{column} of {files} must be {kind}, got {values.type}")
        try:
            values.validate(full=True)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{column} of {files} is damaged: {error}") from error
        if values.null_count:
            raise ValueError(f"{column} of {files} has {values.null_count} empty rows")


def check_prepared(
    folder: Path, parts: dict[str, Histories], statistics: dict[str, Any], *, wholly: bool
) -> None:
    """Compare histories with what the folder says of them.

    Args:
        folder: The prepared dataset.
        parts: Its histories by split.
        statistics: Its `statistics.json`.
        wholly: Hash also what takes long, and check the vocabulary.

    Raises:
        ValueError: They differ; it names the file, and the row where there is one.
    """
    vocab_size = statistics["after"]["items"] + FIRST_ITEM_ID
    for name, part in parts.items():
        check_ids_of(part, folder / name, vocab_size)
        check_counts(part, folder / name, statistics)
    if wholly or (folder / "tokenizer.json").stat().st_size <= QUICK_VOCABULARY_BYTES:
        check_vocabulary(folder, statistics)
    if wholly or sum(part.values.nbytes for part in parts.values()) <= QUICK_BYTES:
        found = dataset_fingerprint(statistics["vocabulary_fingerprint"], parts)
        if found != statistics["fingerprint"]:
            raise ValueError(
                f"the histories in {folder} have changed since they were prepared: their "
                f"fingerprint is {found}, statistics.json says {statistics['fingerprint']}; a "
                "file was changed or damaged, prepare the dataset again"
            )


def check_vocabulary(folder: Path, statistics: dict[str, Any]) -> None:
    """Refuse a vocabulary of other items than the ids stand for.

    Raises:
        ValueError: It is so.
    """
    path = folder / "tokenizer.json"
    items = ordered_items(read_ids(path))
    if len(items) != statistics["after"]["items"]:
        raise ValueError(
            f"{path} has {len(items):,} items and statistics.json says "
            f"{statistics['after']['items']:,}; prepare the dataset again"
        )
    found, said = vocabulary_fingerprint(items), statistics["vocabulary_fingerprint"]
    if found != said:
        raise ValueError(
            f"{path} is not the vocabulary that the dataset was prepared with (fingerprints "
            f"{found} and {said}); prepare the dataset again"
        )


def check_ids_of(part: Histories, files: Path, vocab_size: int) -> None:
    """Refuse ids that are no items of the catalog.

    Raises:
        ValueError: There is one; it names the row.
    """
    _check_lists(part, files, "an item", vocab_size)
    if part.targets is not None and (row := _first_wrong(part.targets, vocab_size)) is not None:
        raise ValueError(_wrong_id(files, row, "the target", part.targets[row], vocab_size))
    sets = part.target_sets
    if sets is not None and len(sets):
        if not sets.lengths.all():
            row = int(sets.lengths.argmin())
            raise ValueError(f"{files}, row {row:,}: there is no target; prepare the dataset again")
        _check_lists(sets, files, "a target", vocab_size)


def _check_lists(lists: Histories, files: Path, what: str, vocab_size: int) -> None:
    """Refuse ids of lists that are no items."""
    start = 0
    for block in blocks(lists.values):
        if (place := _first_wrong(block, vocab_size)) is not None:
            row = int(np.searchsorted(lists.offsets, start + place, side="right")) - 1
            raise ValueError(_wrong_id(files, row, what, block[place], vocab_size))
        start += len(block)


def _first_wrong(ids: np.ndarray, vocab_size: int) -> int | None:
    """Place of the first id that is no item; None if all are."""
    if not len(ids) or (ids.min() >= FIRST_ITEM_ID and ids.max() < vocab_size):
        return None
    return int(np.argmax((ids < FIRST_ITEM_ID) | (ids >= vocab_size)))


def _wrong_id(files: Path, row: int, what: str, number: int, vocab_size: int) -> str:
    special = {0: " (padding)", 1: " (the mask)"}.get(int(number), "")
    arrow = sorted(files.glob("*.arrow"))
    where = arrow[0] if len(arrow) == 1 else files  # rows are counted through all files of a split
    return (
        f"{where}, row {row:,}: {what} has the id {number}{special}; those of this catalog go from "
        f"{FIRST_ITEM_ID} to {vocab_size - 1:,}, prepare the dataset again"
    )


def check_counts(part: Histories, files: Path, statistics: dict[str, Any]) -> None:
    """Refuse a part that has lost or gained histories since it was measured.

    Raises:
        ValueError: It has.
    """
    splits = statistics.get("splits")
    said = splits.get(files.name) if isinstance(splits, dict) else None
    found = {"histories": len(part), "interactions": len(part.values)}
    for name, count in found.items():
        if not isinstance(said, dict) or said.get(name) != count:
            raise ValueError(
                f"{files} has {count:,} {name}, which contradicts statistics.json; prepare the "
                "dataset again"
            )
