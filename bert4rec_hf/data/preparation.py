"""From a raw source to a prepared dataset folder, written once and then read by everyone else.

    source → RawInteractions → interactions → filters → histories → split → folder

The folder holds a `datasets.DatasetDict` with int32 ids, the vocabulary as `tokenizer.json`, the
titles where the source has them, everything that was measured, and a dataset card.
"""

import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pyarrow as pa

from .filters import apply_filters
from .histories import SPLIT_NAMES, Histories, count_repeats
from .interactions import (
    Interactions,
    PreparationConfig,
    build_histories,
    count_copies,
    count_distinct,
    measure_interactions,
)
from .names import near_misses
from .options import check_settings
from .reading import RawInteractions, collect_interactions
from .several import Files
from .sources import SOURCES, open_source
from .splits import SPLITS, split_interactions
from .titles import MissingColumnsError, read_titles
from .verification import dataset_fingerprint
from .vocabulary import (
    FIRST_ITEM_ID,
    catalog_items,
    load_vocabulary,
    vocabulary_fingerprint,
)
from .writing import check_output, remove_unfinished, to_dataset, write_folder

READ_ERRORS = (
    OSError,
    EOFError,
    UnicodeError,
    zlib.error,
    lzma.LZMAError,
    pa.ArrowException,
    pl.exceptions.PolarsError,
)
"""What libraries raise at a damaged file."""


def prepare_dataset(
    source: str,
    path: Path | Files | None,
    output: Path,
    config: PreparationConfig,
    memory_room: Callable[[], int] | None = None,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Turn a raw source into a prepared folder, and tell what was measured on the way.

    Args:
        source: A name of the table SOURCES.
        path: The raw file, or a folder of them; None where the source is generated.
        output: The folder to write; it appears only when everything is in it.
        config: What to keep, and how to split.
        memory_room: As of collect_interactions.
        origin: Where the files were downloaded from, for the statistics.

    Returns:
        The content of `statistics.json`.
    """
    check_request(source, path, output, config)
    remove_unfinished(output)
    with refusing_unreadable(path):
        raw = open_source(source, path, config)
        name = path.name if path else source
        collected = collect_interactions(raw, config, name, memory_room)
    before = count_distinct(collected.frame)
    catalog = read_catalog(config.vocabulary) if config.vocabulary else None
    notes = collected.notes + compare_names(collected.frame["item"], catalog)
    frame, dropped = apply_filters(collected.frame, config, catalog)
    dropped = collected.dropped | dropped
    interactions = build_histories(frame, catalog)
    items = interactions.items.to_list()
    with explaining_dropped(dropped, notes):
        split, histories = split_interactions(interactions, config)
    used = split.count_used(config.targets)
    titles, title_notes = find_titles(raw, collected.titles, items, config)
    statistics = {
        "source": source,
        "file": path.name if path else None,
        **({"hub": origin} if origin else {}),
        "settings": used_settings(source, config),
        "rows": before["interactions"] + sum(collected.dropped.values()),
        "before": before,
        **measure_interactions(interactions),
        "dropped": dropped | {"being in no part of the split": frame.height - used},
        "left_out": split.left_out,
        **measure_histories({name: [histories[name]] for name in SPLIT_NAMES}, len(items)),
        "repeated": count_repeated(interactions, histories),
        "notes": notes + title_notes,
        "titles": len(titles),
        "vocabulary_fingerprint": (vocabulary := vocabulary_fingerprint(items)),
        "fingerprint": dataset_fingerprint(vocabulary, histories),
        "versions": {module.__name__: module.__version__ for module in (datasets, np, pl)},
    }
    tests_last_items = config.split in ("leave_one_out", "by_user")  # of all users, or of some
    if raw.best_possible and tests_last_items and not any(dropped.values()):
        # It was worked out for the last items of whole histories, in the mean over all users.
        statistics["best_possible"] = raw.best_possible
    users = {name: interactions.users.gather(getattr(split, name).users) for name in SPLIT_NAMES}
    parts = {name: to_dataset(histories[name], users[name]) for name in SPLIT_NAMES}
    write_folder(output, parts, items, titles, statistics)
    return statistics


def check_request(
    source: str, path: Path | Files | None, output: Path, config: PreparationConfig
) -> None:
    """Refuse what can be seen to fail before anything is read."""
    for name, table, kind in ((source, SOURCES, "source"), (config.split, SPLITS, "split")):
        if name not in table:
            close = get_close_matches(name, table, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"there is no {kind} {name!r}; {hint}known: {', '.join(table)}")
    check_output(output)
    if path is None and source != "synthetic":
        raise ValueError(f"the source {source} needs the path of its file")
    if path is not None and source == "synthetic":
        raise ValueError(f"the source synthetic reads no file, got {path}")
    check_settings(source, config)
    if config.titles and not Path(config.titles).is_file():
        raise FileNotFoundError(f"there is no file of titles {config.titles}")


@contextmanager
def refusing_unreadable(path: Path | Files | None) -> Iterator[None]:
    """Say of a broken file that it is broken, whoever notices."""
    try:
        yield
    except FileNotFoundError:
        raise
    except READ_ERRORS as error:
        raise ValueError(
            f"{path} cannot be read to its end: {error}; is it complete, and of this source?"
        ) from error


def read_catalog(folder: str) -> pl.Series:
    """List the items of a prepared dataset or a model in the order of their ids.

    Raises:
        FileNotFoundError: The folder has no vocabulary.
    """
    if not (Path(folder) / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"vocabulary {folder} has no tokenizer.json; name a prepared dataset or a model folder"
        )
    return pl.Series(catalog_items(load_vocabulary(folder)))


def compare_names(items: pl.Series, catalog: pl.Series | None) -> list[str]:
    """Warn of items that a given catalog would have, were they written as they are there."""
    if catalog is None:
        return []
    unknown = items.unique().cast(pl.String)
    unknown = unknown.filter(~unknown.is_in(catalog.implode()))
    found = near_misses(unknown, catalog)
    if found.is_empty():
        return []
    name, item = found.sort("name").row(0)
    return [
        f"warning: {found.height:,} items are not in the vocabulary, but for zeros at the "
        f"beginning, .0 or blanks would be, such as {name!r} and its {item!r}"
    ]


@contextmanager
def explaining_dropped(dropped: dict[str, int], notes: list[str]) -> Iterator[None]:
    """Say of a split that fails what was dropped before."""
    try:
        yield
    except ValueError as error:
        counts = [f"{count:,} by {reason}" for reason, count in dropped.items() if count]
        told = [f"interactions dropped before: {', '.join(counts) or 'none'}", *notes]
        raise ValueError("; ".join([str(error), *told])) from error


def find_titles(
    raw: RawInteractions, of_rows: pl.DataFrame, items: list[str], config: PreparationConfig
) -> tuple[dict[str, str], list[str]]:
    """Read the titles from the file that the config names, or that lies beside the source.

    Args:
        raw: Knows where titles may be.
        of_rows: `item` and `title`, as the rows of the source told them.
        items: Those that are asked for.
        config: Names a file or a column.

    Returns:
        Item → title, and what a user should know.
    """
    beside = [path for path in raw.titles if path.is_file()]
    path = Path(config.titles) if config.titles else beside[0] if beside else None
    if path is None:
        if config.title_column and not of_rows.height:
            raise ValueError(
                f"title_column={config.title_column}: there is no file of titles; name it by titles"
            )
        known = dict(of_rows.iter_rows())
        titles = {item: " ".join(known[item].split()) for item in items if known.get(item)}
        return {item: title for item, title in titles.items() if title}, []
    columns = {"item_column": config.item_column, "title_column": config.title_column}
    with refusing_unreadable(path):
        try:
            titles = read_titles(path, items, **columns)
        except MissingColumnsError as error:
            if config.titles or config.title_column:
                raise
            return {}, [f"warning: no titles: {error}"]
    if config.titles and not titles:
        raise ValueError(
            f"{path.name} has a title for none of the {len(items):,} items, such as "
            f"{items[0]!r}; does it belong to the source?"
        )
    return titles, [] if titles else [f"warning: {path.name} has a title for none of the items"]


def used_settings(source: str, config: PreparationConfig) -> dict[str, Any]:
    """Tell the settings, without the folders of this machine and what belongs to other sources."""
    folders = {name: Path(getattr(config, name)).name for name in ("titles", "vocabulary")}
    settings = asdict(config) | folders
    if source != "synthetic":
        del settings["synthetic"]
    return settings


def measure_histories(
    histories: Mapping[str, Sequence[Histories]], num_items: int
) -> dict[str, Any]:
    """Count what the shards of each part hold, and the items that training never sees."""
    is_trained = np.zeros(FIRST_ITEM_ID + num_items, dtype=bool)
    for shard in histories["train"]:
        is_trained[shard.values] = True
    parts = {
        name: {
            "histories": sum(len(shard) for shard in shards),
            "interactions": sum(len(shard.values) for shard in shards),
        }
        for name, shards in histories.items()
    }
    for name in ("validation", "test"):
        unseen = (int((~is_trained[shard.targets]).sum()) for shard in histories[name])
        parts[name]["targets not in train"] = sum(unseen)
        sets = [shard.target_sets for shard in histories[name] if shard.target_sets is not None]
        if sets:
            parts[name]["targets in sets"] = sum(len(each.values) for each in sets)
    return {"splits": parts, "items_not_in_train": num_items - int(is_trained.sum())}


def count_repeated(interactions: Interactions, histories: dict[str, Histories]) -> dict[str, int]:
    """Count exact copies, and the targets that their own history holds already."""
    return {"exact copies": count_copies(interactions), **count_repeats(histories)}
