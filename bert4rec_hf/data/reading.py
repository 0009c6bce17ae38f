"""Raw rows, checked and counted, become interactions in the order of time.

Every row is an interaction, or it is dropped for a reason that is counted, or the file is refused
by the first line that cannot be used. What is kept in memory is numbers.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from .histories import SPLIT_NAMES
from .interactions import PreparationConfig
from .names import Names, find_unusable, float_names, read_names
from .times import UNITS, TimeReader, are_calendar_days, note_times, recognize_unit

INCOMPLETE = ("has no user", "has no item", "has no timestamp", "has no rating")
"""Faults for which `drop_incomplete` drops a row."""

BYTES_PER_ROW = 50
BYTES_PER_USER = 200
BYTES_PER_ITEM = 1_000
SPARE_BYTES = 150_000_000
"""What preparation takes beyond what is held while it reads; measured, and rounded up."""

OTHER_FAULTS = (
    "has a rating that is not a number",
    "has a negative timestamp",
    "has the timestamp 0",
)

NO_TIMES = "times: none; the order of the file is taken as the order of time"
NAMED = ("user", "item")

FILE_SHIFT = 40
"""A line is told by its number plus the number of its file, shifted by so many bits."""


@dataclass(kw_only=True)
class RawInteractions:
    """What a reader hands over: where everything is, before it is read."""

    read: Callable[[], Iterator[pl.DataFrame]]
    """Blocks of rows with the columns `line`, `user`, `item` and, where the source has them,
    `timestamp`, `rating`, `split`, `title`."""

    unit: str = "seconds"
    """Of timestamps that are too small to tell it by their size."""

    is_ordered: bool = False
    """Whether the order of the file is that of time, by the rule of the format."""

    has_line_per_user: bool = False
    """Whether each line is the whole history of a user."""

    titles: Sequence[Path] = ()
    """Where this format usually has the titles of its items; none of them may exist."""

    files: Sequence[str] = ()
    """Names of the files, for messages."""

    notes: list[str] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)
    """Reason → rows that the reader dropped, complete when all is read."""

    best_possible: dict[str, float] = field(default_factory=dict)
    """Metrics that no model can beat, known where the interactions are generated."""

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, **facts: object) -> "RawInteractions":
        """Take rows that are in memory; `line` is the place in the frame, from 1."""
        numbered = frame.with_row_index("line", 1).cast({"line": pl.Int64})
        return cls(read=lambda: iter([numbered]), **facts)


class Collected(NamedTuple):
    """All interactions of a source, and what became of the other rows."""

    frame: pl.DataFrame
    """`user` and `item` as categories, `timestamp` in seconds, and `rating` and `split` where
    given; rows with equal timestamps, or without, keep the order of the file."""

    dropped: dict[str, int]
    """Reason → rows."""

    notes: list[str]
    """What a user should know."""

    titles: pl.DataFrame
    """`item` and `title`, each item once; empty where the file has none."""


def collect_interactions(
    raw: RawInteractions,
    config: PreparationConfig,
    name: str = "the source",
    memory_room: Callable[[], int] | None = None,
) -> Collected:
    """Read a source block by block, check every row, and order all by time.

    Args:
        raw: Where the rows are.
        config: What is taken for missing, and which times are allowed.
        name: What messages call the source.
        memory_room: Tells the bytes that may still be taken; not looked after when None.

    Raises:
        ValueError: There is no row, one cannot be used, or they do not fit into memory.
    """
    reader = BlockReader(config)
    blocks: list[pl.DataFrame] = []
    check_memory(blocks, name, memory_room)
    for block in raw.read():
        blocks.append(reader.read(block))
        check_memory(blocks, name, memory_room)
    check_any(sum(block.height for block in blocks), name, raw.dropped)
    frame = pl.concat(blocks)
    check_order(frame, raw, config, name)
    names = {c: read_names(frame[c], c, config.missing) for c in ("user", "item")}
    frame, dropped = check_rows(frame, names, raw, config, reader.times.kind)
    dropped = {**raw.dropped, **dropped}
    check_any(frame.height, name, dropped)
    if raw.has_line_per_user:
        check_lines_of_users(frame, raw)
    notes = raw.notes + names["user"].notes + names["item"].notes
    if "timestamp" in frame.columns:
        frame, note = scale_times(frame, raw, config, reader.times)
        notes.append(note)
        frame = frame.drop("line").sort("timestamp", maintain_order=True)
    else:
        notes.append(NO_TIMES)
    frame = frame.with_columns(rename(frame[c], names[c]) for c in ("user", "item"))
    return Collected(
        frame.drop("line", strict=False), dropped, notes, reader.collect_titles(names["item"])
    )


class BlockReader:
    """Turns the texts of each block into numbers, and notes the faults of its rows.

    Args:
        config: What is taken for missing.
    """

    def __init__(self, config: PreparationConfig):
        self.times = TimeReader(config.timestamp_format)
        # A number is never missing because of how it is written.
        self.missing = [word.lower() for word in ["", *config.missing] if not _is_number(word)]
        self.dictionaries = {c: pl.Categorical(pl.Categories.random()) for c in ("user", "item")}
        self.titles: list[pl.DataFrame] = []

    def read(self, block: pl.DataFrame) -> pl.DataFrame:
        """Read a block: `fault` is 0, or 1 + a place in INCOMPLETE, or one after them."""
        texts = {c: as_text(block[c], c) for c in NAMED}
        # In one step, so that polars does both columns at once.
        names = pl.DataFrame(texts).select(
            pl.col(c).fill_null("").cast(dictionary) for c, dictionary in self.dictionaries.items()
        )
        columns = {"line": block["line"], "user": names["user"], "item": names["item"]}
        fault = pl.Series([0], dtype=pl.UInt8).new_from_index(0, block.height)
        if "timestamp" in block.columns:
            texts = block["timestamp"]
            if texts.dtype == pl.String:
                texts = self.drop_missing(texts, are_numbers=not self.times.reads_dates)
            columns["timestamp"] = self.times.read(texts)
            fault = _mark(fault, columns["timestamp"], texts, 3)
        if "rating" in block.columns:
            texts = block["rating"]
            if texts.dtype == pl.String:
                texts = self.drop_missing(texts, are_numbers=True)
            ratings = texts.cast(pl.Float64, strict=False).fill_nan(None)
            columns["rating"] = ratings.set(ratings.is_finite().not_(), None)
            fault = _mark(fault, columns["rating"], texts, 4)
        if "split" in block.columns:
            columns["split"] = block["split"].cast(pl.Enum(SPLIT_NAMES))
        if "title" in block.columns:
            titles = pl.DataFrame({"item": columns["item"], "title": block["title"]}).drop_nulls()
            self.titles.append(titles.unique("item", keep="first", maintain_order=True))
        return pl.DataFrame(columns | {"fault": fault})

    def collect_titles(self, items: Names) -> pl.DataFrame:
        """List the first title of each item."""
        if not self.titles:
            return pl.DataFrame(schema={"item": pl.String, "title": pl.String})
        titles = pl.concat(self.titles).unique("item", keep="first", maintain_order=True)
        names = items.names.gather(titles["item"].to_physical())
        titles = titles.with_columns(item=names, title=titles["title"].cast(pl.String))
        return titles.drop_nulls().unique("item", keep="first", maintain_order=True)

    def drop_missing(self, column: pl.Series, *, are_numbers: bool) -> pl.Series:
        """Make null what says that there is nothing; where all are numbers, they are read."""
        if are_numbers and len(column):  # none at all are no numbers yet
            numbers = column.cast(pl.Float64, strict=False)
            if numbers.is_finite().all(ignore_nulls=False):
                return numbers
        column = column.str.strip_chars()
        return column.set(column.str.to_lowercase().is_in(self.missing), None)


def as_text(column: pl.Series, kind: str) -> pl.Series:
    """Write the users or items of a block as texts.

    Raises:
        ValueError: They are of a type that names nobody.
    """
    if column.dtype.is_float():
        return float_names(column, kind).cast(pl.String)
    if isinstance(column.dtype, pl.List | pl.Array | pl.Struct):
        raise ValueError(
            f"the column of {kind}s holds lists or objects ({column.dtype}), one {kind} a row is "
            "expected; --explode makes rows of a list"
        )
    if not (
        column.dtype.is_integer()
        or column.dtype in (pl.String, pl.Null)
        or isinstance(column.dtype, pl.Categorical | pl.Enum)
    ):
        raise ValueError(
            f"the column of {kind}s is of type {column.dtype}; write {kind}s as texts or integers"
        )
    return column.cast(pl.String)


def check_memory(
    blocks: list[pl.DataFrame], name: str, memory_room: Callable[[], int] | None
) -> None:
    """Refuse to go on where what was read could not be ordered, split and written.

    Raises:
        ValueError: There is no room for it.
    """
    if memory_room is None:
        return
    rows = sum(block.height for block in blocks)
    names = {c: max((_count_codes(block[c]) for block in blocks[-1:]), default=0) for c in NAMED}
    needed = (
        SPARE_BYTES
        + BYTES_PER_ROW * rows
        + BYTES_PER_USER * names["user"]
        + BYTES_PER_ITEM * names["item"]
    )
    if needed > (room := memory_room()):
        raise ValueError(
            f"{name} does not fit into memory: its first {rows:,} interactions need "
            f"{needed / 1e9:.2f} GB more, and {max(room, 0) / 1e9:.2f} GB are free; read fewer "
            "rows by --where, or give the process more memory"
        )


def check_order(
    frame: pl.DataFrame, raw: RawInteractions, config: PreparationConfig, name: str
) -> None:
    """Refuse a source without times, unless its order is known or asked for."""
    is_chosen = config.order == "file" or not config.timestamp_column
    if not ("timestamp" in frame.columns or raw.is_ordered or is_chosen):
        raise ValueError(
            f"{name} has no timestamps, so the order of interactions is unknown; name their column "
            "by --timestamp-column, or take the order of the file by --order file"
        )


def check_rows(
    frame: pl.DataFrame,
    names: dict[str, Names],
    raw: RawInteractions,
    config: PreparationConfig,
    time_kind: str,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Drop incomplete rows if the config says so, and refuse all others that cannot be used.

    Returns:
        The rows that are left, and how many were dropped, by reason.
    """
    fault, messages = mark_faults(
        frame, {column: each.names for column, each in names.items()}, config, time_kind
    )
    dropped = {}
    if config.drop_incomplete:
        counts = np.bincount(fault, minlength=len(messages))[1 : len(INCOMPLETE) + 1].tolist()
        reasons = (message.replace("has no", "missing") for message in INCOMPLETE)
        dropped = {reason: n for reason, n in zip(reasons, counts, strict=True) if n}
        is_kept = (fault == 0) | (fault > len(INCOMPLETE))
        frame, fault = frame.filter(pl.Series(is_kept)), fault[is_kept]
    if fault.any():
        refuse_row(frame["line"].to_numpy(), fault, messages, raw)
    return frame.drop("fault"), dropped


def mark_faults(
    frame: pl.DataFrame, names: dict[str, pl.Series], config: PreparationConfig, time_kind: str
) -> tuple[np.ndarray, list[str]]:
    """Note what is wrong with each row.

    Args:
        frame: As BlockReader reads it.
        names: Of users and items by their codes, null where missing.
        config: Which times are allowed.
        time_kind: What a timestamp must be.

    Returns:
        (interactions,) places in the messages, and these; the first is that of a good row.
    """
    messages = ["", *INCOMPLETE, f"has a timestamp that is not {time_kind}", *OTHER_FAULTS]
    fault = frame["fault"].to_numpy().copy()
    if "timestamp" in frame.columns:
        mark_times(fault, frame["timestamp"].fill_null(1).to_numpy(), messages, config)
    for number, (column, its_names) in enumerate(names.items(), start=1):
        mark_names(fault, frame[column], its_names, messages, number)
    return fault, messages


def mark_times(
    fault: np.ndarray, times: np.ndarray, messages: list[str], config: PreparationConfig
) -> None:
    """Note times that are hardly meant, in place, where there is no other fault."""
    negative, zero = OTHER_FAULTS[1:]
    if not config.allow_negative_timestamps:
        fault[(fault == 0) & (times < 0)] = messages.index(negative)
        if not config.allow_zero_timestamps:
            fault[(fault == 0) & (times == 0)] = messages.index(zero)


def mark_names(
    fault: np.ndarray, column: pl.Series, names: pl.Series, messages: list[str], number: int
) -> None:
    """Note names that are missing or cannot be used, in place; new messages are appended."""
    codes = column.to_physical().to_numpy()
    is_missing = names.is_null().to_numpy()
    if is_missing[codes].any():
        fault[is_missing[codes] & ((fault == 0) | (fault > number))] = number
    for code, message in find_unusable(names, column.name).items():
        if message not in messages:
            messages.append(message)
        fault[(fault == 0) & (codes == code)] = messages.index(message)


def refuse_row(
    lines: np.ndarray, fault: np.ndarray, messages: list[str], raw: RawInteractions
) -> None:
    """Show the first row that cannot be used, as it stands in the file."""
    place = int((fault != 0).argmax())
    line, message = int(lines[place]), messages[fault[place]]
    found = {}
    for block in raw.read():
        rows = block.filter(pl.col("line") == line)
        if rows.height:
            repeated = int((lines[:place] == line).sum())
            found = rows.drop("line").row(min(repeated, rows.height - 1), named=True)
            break
    counts = np.bincount(fault, minlength=len(messages))
    counts = dict(zip(messages[1:], counts[1:].tolist(), strict=True))
    raise ValueError(
        f"{name_line(line, raw.files)} {describe_fault(message, found, counts, len(fault))}"
    )


def describe_fault(
    message: str, found: dict[str, object], counts: dict[str, int], num_rows: int
) -> str:
    """Say what is wrong with a row, how many others cannot be used, and what to do.

    Args:
        message: Its fault.
        found: The row as it stands in the file.
        counts: Fault → rows.
        num_rows: Of the source, the good ones too.
    """
    ways = {"has the timestamp 0": "--allow-zero-timestamps takes it as a time"}
    ways |= {"has a negative timestamp": "--allow-negative-timestamps takes it as a time"}
    ways |= dict.fromkeys(INCOMPLETE, "--drop-incomplete drops such rows")
    reasons = [f"{count:,} {said}" for said, count in counts.items() if count]
    told = f" ({', '.join(reasons)})" if len(reasons) > 1 else ""
    return (
        f"{message}: {found}; {sum(counts.values()):,} of {num_rows:,} interactions cannot be "
        f"used{told}, {ways.get(message, 'fix or remove them')}"
    )


def name_line(line: int, files: Sequence[str]) -> str:
    """Write a line with its number and file."""
    file = files[line >> FILE_SHIFT] if files else "the source"
    return f"line {line & ((1 << FILE_SHIFT) - 1)} of {file}"


def check_lines_of_users(frame: pl.DataFrame, raw: RawInteractions) -> None:
    """Refuse a user on two lines where each line is a whole history."""
    lines = frame.group_by("user").agg(first=pl.min("line"), last=pl.max("line"))
    twice = lines.filter(pl.col("first") != pl.col("last")).sort("last")
    if twice.height:
        user, first, last = twice.row(0)
        raise ValueError(
            f"user {user!r} occurs on line {first} and again: {name_line(last, raw.files)}; each "
            f"line has to be the whole history of one user ({twice.height:,} users occur twice). "
            "Where lines hold no user but only items, give --user-column ''; where a file repeats "
            "the beginnings of histories, take the one with one interaction per row"
        )


def scale_times(
    frame: pl.DataFrame, raw: RawInteractions, config: PreparationConfig, times: TimeReader
) -> tuple[pl.DataFrame, str]:
    """Bring times to seconds, and tell what they were taken for.

    Raises:
        ValueError: Some are in one unit and some in another.
    """
    values = frame["timestamp"].to_numpy()
    unit, other = "dates", None
    if config.timestamp_format in UNITS:
        unit = config.timestamp_format
    elif not times.reads_dates:
        unit, other = recognize_unit(values, raw.unit)
    if other is not None:
        place = name_line(frame["line"][other], raw.files)
        raise ValueError(describe_other_unit(place, values[other], unit))
    frame = frame.with_columns(pl.col("timestamp") / UNITS.get(unit, 1))
    first, last = frame["timestamp"].min(), frame["timestamp"].max()
    are_days = unit == "seconds" and are_calendar_days(values)
    return frame, note_times(unit, first, last, are_days=are_days)


def describe_other_unit(place: str, time: float, unit: str) -> str:
    """Say of a time that it is in another unit than most."""
    return (
        f"{place} has the timestamp {time:.0f}, while most are {unit}: some times are in another "
        "unit; fix them, or name the unit by --timestamp-format if it is one"
    )


def rename(column: pl.Series, names: Names) -> pl.Series:
    """Write the names of a categorical column as they are used."""
    if (names.names == names.written).fill_null(True).all():
        return column
    renamed = names.names.gather(column.to_physical())
    return renamed.cast(pl.Categorical(pl.Categories.random())).alias(column.name)


def _mark(fault: pl.Series, values: pl.Series, texts: pl.Series, number: int) -> pl.Series:
    """Note where a value is missing, or is there but cannot be read."""
    if not values.null_count():
        return fault
    fault = fault.set(values.is_null() & (fault == 0) & texts.is_null(), number)
    return fault.set(values.is_null() & (fault == 0), number + 2)


def _count_codes(column: pl.Series) -> int:
    """Names that a dictionary has so far, as the newest rows show."""
    return 1 + (column.to_physical().max() or 0)


def _is_number(word: str) -> bool:
    try:
        return float(word) == float(word)
    except ValueError:
        return False


def check_any(num_rows: int, name: str, dropped: Mapping[str, int]) -> None:
    """Refuse a source of which no row is left.

    Args:
        num_rows: That are left.
        name: What messages call the source.
        dropped: Reason → rows.
    """
    if not num_rows:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items() if count)
        told = f" left; rows dropped: {reasons}" if reasons else ""
        raise ValueError(f"{name} has no interactions{told}")
