"""The preparation of parquet files on Spark, to the same folder as on one machine.

    parquet → rows, checked by workers → filters → sorted by user → shards, split by workers

`spark_rows` and `spark_histories` run the functions of one machine on Arrow batches, so that what
is missing, faulty or held out is stated once. Only what looks across rows is stated for Spark too,
in `spark_tables`, and tested to give the same fingerprint.
"""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import polars as pl
import pyspark
from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as it is known

from .interactions import Interactions, PreparationConfig, describe_interactions
from .preparation import explaining_dropped, measure_histories, used_settings
from .reading import (
    FILE_SHIFT,
    INCOMPLETE,
    NAMED,
    NO_TIMES,
    OTHER_FAULTS,
    BlockReader,
    check_any,
    describe_fault,
    describe_other_unit,
    name_line,
)
from .rows import ask_columns, parse_conditions, select_rows
from .shards import open_shards, register_shards
from .sources import find_columns, named_columns
from .spark_engine import Located
from .spark_histories import FACTS, ShardWriter, write_empty
from .spark_rows import FIRST_TIMES, ROWS, WHERE, RowReader
from .spark_tables import (
    ParquetTable,
    apply_filters,
    count_distinct,
    count_reasons,
    ddl,
    explaining_spark,
    find_row,
    list_items,
    open_parquet,
    read_names,
    sort_by_user,
    start_spark,
)
from .splits import SPLITS, EmptyPartError, describe_users, find_borders
from .times import UNITS, choose_unit, note_times
from .verification import shards_fingerprint
from .vocabulary import FIRST_ITEM_ID, vocabulary_fingerprint
from .writing import remove_unfinished, unfinished_folder, write_beside

ROWS_PER_SHARD = 4_000_000
"""Interactions of a shard, where the number of shards is not given."""


class Collected(NamedTuple):
    """All interactions of a source on Spark, and what became of the other rows."""

    frame: DataFrame
    """`user`, `item`, `line`, and `timestamp` in seconds and `rating` where they are read."""

    dropped: dict[str, int]
    notes: list[str]


def prepare(
    files: Located,
    output: Path,
    config: PreparationConfig,
    num_shards: int = 0,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Turn parquet files into a prepared folder; see `spark_engine.prepare_on_spark`.

    Args:
        files: What to read.
        output: The folder to write.
        config: What to keep, and how to split.
        num_shards: Files for each split; 0 for as many as ROWS_PER_SHARD asks for.
        origin: As of prepare_dataset.
    """
    remove_unfinished(output)
    with explaining_spark(files.name):
        table = open_parquet(start_spark(), *files)
        collected = collect_interactions(table, config)
        before = count_distinct(collected.frame)
        frame, dropped = apply_filters(collected.frame, config, before["interactions"])
        statistics = {
            "source": "parquet",
            "file": Path(files.name).name,
            **({"hub": origin} if origin else {}),
            "settings": used_settings("parquet", config),
            "rows": before["interactions"] + sum(collected.dropped.values()),
            "before": before,
        }
        dropped = collected.dropped | dropped
        items = list_items(frame)
        with unfinished_folder(output) as folder:
            with explaining_dropped(dropped, collected.notes):
                facts = write_shards(folder, frame, items, config, num_shards)
            statistics |= describe_folder(folder, facts, items, dropped, collected.notes)
            register_shards(folder, statistics["fingerprint"])
            write_beside(folder, items, {}, statistics)
    return statistics


class Facts(NamedTuple):
    """What workers counted, added up."""

    counts: Counter
    lengths: dict[int, int]
    """Interactions of a user → users."""

    left_out: dict[str, int]
    """Reason → users who are not held out."""

    has_times: bool


def write_shards(
    folder: Path, frame: DataFrame, items: list[str], config: PreparationConfig, num_shards: int
) -> Facts:
    """Let the workers split all histories, and write them.

    Raises:
        EmptyPartError: A part of the split is left without a history.
    """
    config, time_range = fix_borders(frame, config)
    num_shards = num_shards or math.ceil(frame.count() / ROWS_PER_SHARD)
    write_empty(folder)
    ordered = sort_by_user(frame, items, FIRST_ITEM_ID, num_shards)
    told = ordered.mapInArrow(ShardWriter(folder, config, num_shards).write, ddl(FACTS)).collect()
    facts = sum_facts([row.facts for row in told], has_times=time_range is not None)
    for name, shards in open_shards(folder).items():
        if config.split != "none" and not shards:
            users = sum(facts.lengths.values()), max(facts.lengths)
            found = describe_users(*users, time_range, facts.left_out)
            raise EmptyPartError(config.split, name, found)
    return facts


def describe_folder(
    folder: Path, facts: Facts, items: list[str], dropped: dict[str, int], notes: list[str]
) -> dict[str, Any]:
    """Measure what was written, as prepare_dataset does."""
    histories = open_shards(folder)
    counts, vocabulary = facts.counts, vocabulary_fingerprint(items)
    num_tied = counts["tied"] if facts.has_times else None
    measured = describe_interactions(facts.lengths, len(items), num_tied)
    unused = measured["after"]["interactions"] - counts["used"]
    modules = (datasets, np, pl, pyspark)
    return {
        **measured,
        "dropped": dropped | {"being in no part of the split": unused},
        "left_out": facts.left_out,
        **measure_histories(histories, len(items)),
        "repeated": {name: counts[name] for name in REPEATED},
        "notes": notes,
        "titles": 0,
        "vocabulary_fingerprint": vocabulary,
        "fingerprint": shards_fingerprint(vocabulary, histories),
        "versions": {module.__name__: module.__version__ for module in modules},
    }


REPEATED = ("exact copies", "validation targets seen before", "test targets seen before")


def collect_interactions(table: ParquetTable, config: PreparationConfig) -> Collected:
    """Check every row, and drop or refuse those that cannot be used.

    Raises:
        ValueError: There is no row, or one cannot be used.
    """
    columns = find_columns(table, config, named_columns(config))
    select_rows(table, columns, config.where, Counter())  # refuses conditions on no column
    conditions = parse_conditions(config.where)
    raw = table.select(columns | ask_columns(conditions))
    formats = find_formats(raw, RowReader(config, conditions, table.numbers, None))
    reader = RowReader(config, conditions, table.numbers, formats)
    rows = raw.mapInArrow(reader.read, ddl(ROWS)).persist(StorageLevel.DISK_ONLY)
    reasons = count_reasons(rows)
    num_unwanted, _ = reasons.pop(WHERE, (0, 0))
    if conditions and not reasons:
        wanted = " and ".join(map(str, conditions))
        raise ValueError(f"no row of {table.path.name} has {wanted}")
    check_any(len(reasons), table.path.name, {})
    dropped = {"where": num_unwanted} if conditions else {}
    dropped |= drop_incomplete(table, columns, config, reasons, reader.time_kind)
    check_any(len(reasons), table.path.name, dropped)
    good, notes = rows.where(F.col("reason") == ""), []
    used = {name: F.col(name) for name in ("line", "rating") if name == "line" or name in columns}
    for column in NAMED:
        used[column], its_notes = read_names(rows.where(F.col("reason") != WHERE), column)
        notes += its_notes
    if "timestamp" in columns:
        used["timestamp"], note = scale_times(good, config, bool(formats), table.files)
        notes.append(note)
    else:
        notes.append(NO_TIMES)
    frame = good.select(*(column.alias(name) for name, column in used.items()))
    return Collected(frame, dropped, notes)


def find_formats(raw: DataFrame, reader: RowReader) -> tuple[str, ...] | None:
    """Find out how times are written, once for all workers.

    Raises:
        ValueError: Users or items are of a type that names nobody.
    """
    blocks = BlockReader(reader.config)
    empty = pl.DataFrame(pl.from_arrow(raw.limit(0).toArrow()))
    columns = [name for name in (*NAMED, "rating", "timestamp") if name in empty.columns]
    line = pl.Series("line", [], dtype=pl.Int64)
    blocks.read(empty.select(columns).insert_column(0, line))
    is_unknown = blocks.times.formats is None and "timestamp" in columns
    if is_unknown and empty["timestamp"].dtype == pl.String:
        firsts = raw.mapInArrow(reader.first_times, ddl(FIRST_TIMES))
        first = firsts.orderBy("line").first()
        blocks.times.read(pl.Series([first.timestamp if first else None], dtype=pl.String))
    return blocks.times.formats


def drop_incomplete(
    table: ParquetTable,
    columns: dict[str, str],
    config: PreparationConfig,
    reasons: dict[str, tuple[int, int]],
    time_kind: str,
) -> dict[str, int]:
    """Count incomplete rows if the config drops them, and refuse all others that cannot be used.

    Args:
        table: Where they are.
        columns: Those that are read.
        config: Whether incomplete rows are dropped.
        reasons: As of count_reasons, with the good rows.
        time_kind: What a timestamp must be.
    """
    dropped = {}
    if config.drop_incomplete:
        found = {reason: reasons.pop(reason, (0, 0))[0] for reason in INCOMPLETE}
        dropped = {
            reason.replace("has no", "missing"): count for reason, count in found.items() if count
        }
    num_rows = sum(count for count, _ in reasons.values())
    faults = {reason: each for reason, each in reasons.items() if reason}
    if faults:
        first, (_, line) = min(faults.items(), key=lambda pair: pair[1][1])
        usual = [*INCOMPLETE, f"has a timestamp that is not {time_kind}", *OTHER_FAULTS]
        order = [*usual, *sorted(faults.keys() - set(usual), key=lambda reason: faults[reason][1])]
        counts = {reason: faults[reason][0] for reason in order if reason in faults}
        number, place = line >> FILE_SHIFT, line & ((1 << FILE_SHIFT) - 1)
        row = find_row(table, columns, number, place - 1)
        raise ValueError(
            f"{name_line(line, table.files)} {describe_fault(first, row, counts, num_rows)}"
        )
    return dropped


def scale_times(
    good: DataFrame, config: PreparationConfig, reads_dates: bool, files: list[str]
) -> tuple[Any, str]:
    """Bring times to seconds, and tell what they were taken for.

    Raises:
        ValueError: Some are in one unit and some in another.
    """
    unit, expected = "dates", None
    if config.timestamp_format in UNITS:
        unit = config.timestamp_format
    elif not reads_dates:
        sizes = dict(good.groupBy("size").count().collect())
        unit, expected = choose_unit([sizes.get(size, 0) for size in range(-1, 5)], "seconds")
    if expected is not None:
        other = good.where(~F.col("size").isin(expected)).orderBy("line").first()
        if other:
            place = name_line(other.line, files)
            raise ValueError(describe_other_unit(place, other.timestamp, unit))
    seconds = F.col("timestamp") / F.lit(float(UNITS.get(unit, 1)))
    first, last, are_days = good.agg(F.min(seconds), F.max(seconds), F.min("is_day")).first()
    return seconds, note_times(unit, first, last, are_days=are_days)


def fix_borders(
    frame: DataFrame, config: PreparationConfig
) -> tuple[PreparationConfig, tuple[float, float] | None]:
    """Work out the points in time that a split needs, as no shard knows all times.

    Returns:
        The config for the shards, and the first and last time.

    Raises:
        ValueError: There are no such points.
    """
    if "timestamp" not in frame.columns:
        time_range = None
    else:
        time_range = tuple(frame.agg(F.min("timestamp"), F.max("timestamp")).first())
    if config.split != "temporal":
        return config, time_range
    # Two interactions stand for all, so that the split itself says what is wrong with it.
    ends = Interactions(
        users=pl.Series(["all"]),
        items=pl.Series(["all"]),
        ids=np.zeros(2, dtype=np.int32),
        offsets=np.array([0, 2]),
        timestamps=None if time_range is None else np.array(time_range),
        parts=None,
    )
    SPLITS["temporal"](ends, config)
    borders = map(repr, map(float, find_borders(ends, config)))
    validation_time, test_time = borders
    fixed = {"test_last": "", "validation_time": validation_time, "test_time": test_time}
    return replace(config, **fixed), time_range


def sum_facts(texts: list[str], *, has_times: bool) -> Facts:
    """Add up what the workers counted."""
    counts, lengths, left_out = Counter(), Counter(), Counter()
    for text in texts:
        told = json.loads(text)
        counts.update(told["facts"])
        lengths.update(dict(told["lengths"]))
        left_out.update(told["left_out"])
    return Facts(counts, dict(lengths), dict(left_out), has_times)
