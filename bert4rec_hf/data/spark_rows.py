"""What Spark's workers do with blocks of raw rows: the checks of one machine, by the same code."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import polars as pl
import pyarrow as pa

from .interactions import PreparationConfig
from .names import DECIMAL, NUMBER, list_names
from .reading import FILE_SHIFT, NAMED, BlockReader, mark_faults
from .rows import Condition, meet_conditions
from .times import is_calendar_day, time_sizes

WHERE = "where"
"""The reason of rows that meet not all conditions."""

OURS = (*NAMED, "rating", "timestamp")
ROWS = pa.schema(
    {
        "line": pa.int64(),
        "rows": pa.int64(),
        "reason": pa.string(),
        "user": pa.string(),
        "item": pa.string(),
        "user_blank": pa.string(),
        "item_blank": pa.string(),
        "user_form": pa.int8(),
        "item_form": pa.int8(),
        "timestamp": pa.float64(),
        "size": pa.int8(),
        "is_day": pa.bool_(),
        "rating": pa.float64(),
    }
)
"""A row each, with why it is not used (empty if it is), and what decides how all are read: names
as they were written if there were blanks around them, whether they are whole numbers (1, or 2 if
written like 101.0), and of which size times are. Rows that no condition lets in are one, with
their number in `rows`."""


@dataclass(frozen=True)
class RowReader:
    """Reads the blocks of a source in a worker."""

    config: PreparationConfig
    conditions: list[Condition]
    numbers: dict[str, int]
    """Path of a file → its number; see FILE_SHIFT."""

    formats: tuple[str, ...] | None
    """Of the TimeReader, the same for all workers; None where there are no texts to read."""

    def read(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Check blocks with the columns of OURS, of conditions, `file` and `row`."""
        for batch in batches:
            block, num_dropped = self.select(batch)
            table = pl.concat([self.check(block), _dropped(num_dropped)])
            yield from table.to_arrow().cast(ROWS).to_batches()

    def first_times(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Find the first line of each block that has a timestamp, and the timestamp as a text."""
        reader = BlockReader(self.config)
        for batch in batches:
            block, _ = self.select(batch)
            texts = reader.drop_missing(block["timestamp"], are_numbers=False)
            found = block.select("line", timestamp=texts).drop_nulls().sort("line").head(1)
            yield from found.to_arrow().cast(FIRST_TIMES).to_batches()

    def select(self, batch: pa.RecordBatch) -> tuple[pl.DataFrame, int]:
        """Keep the rows of a block that meet the conditions, numbered by line; count the others."""
        block = pl.DataFrame(pl.from_arrow(batch))
        is_wanted = meet_conditions(block, self.conditions)
        names = {path: self.numbers[file_path(path)] for path in block["file"].unique()}
        files = block["file"].replace_strict(names, return_dtype=pl.Int64)
        lines = pl.Series("line", (files.to_numpy() << FILE_SHIFT) + block["row"].to_numpy() + 1)
        columns = [name for name in OURS if name in block.columns]
        block = block.select(columns).insert_column(0, lines).filter(is_wanted)
        return block, len(is_wanted) - block.height

    def check(self, block: pl.DataFrame) -> pl.DataFrame:
        """Read texts and numbers, and note why rows cannot be used."""
        reader = BlockReader(self.config)
        reader.times.formats = self.formats
        frame = reader.read(block)
        names = {column: list_names(frame[column], self.config.missing) for column in NAMED}
        fault, messages = mark_faults(
            frame, {column: each[0] for column, each in names.items()}, self.config, self.time_kind
        )
        columns = {
            "line": frame["line"],
            "rows": pl.Series([1], dtype=pl.Int64).new_from_index(0, frame.height),
            "reason": pl.Series(messages).gather(fault),
        }
        for column, (used, written) in names.items():
            codes = frame[column].to_physical()
            is_blank = (used != written.set(used.is_null(), None)).fill_null(False)
            form = used.str.contains(NUMBER).cast(pl.Int8) + used.str.contains(DECIMAL).cast(
                pl.Int8
            )
            columns[column] = used.gather(codes)
            columns[f"{column}_blank"] = written.set(~is_blank, None).gather(codes)
            columns[f"{column}_form"] = form.gather(codes)
        nothing = pl.Series([None], dtype=pl.Float64).new_from_index(0, frame.height)
        for column in ("timestamp", "rating"):
            columns[column] = frame[column] if column in frame.columns else nothing
        times = columns["timestamp"].fill_null(0).to_numpy()
        columns["size"] = pl.Series(time_sizes(times))
        columns["is_day"] = pl.Series(is_calendar_day(times))
        return pl.DataFrame(columns).select(ROWS.names)

    @property
    def time_kind(self) -> str:
        """What a timestamp must be."""
        reader = BlockReader(self.config)
        reader.times.formats = self.formats
        return reader.times.kind


FIRST_TIMES = pa.schema({"line": pa.int64(), "timestamp": pa.string()})


def file_path(address: str) -> str:
    """Path of a file by its address, as in `file:/data/a%20b.parquet`."""
    return unquote(urlsplit(address).path)


def _dropped(count: int) -> pl.DataFrame:
    """A row for those that met not all conditions; none if there are none."""
    schema = pl.DataFrame(pl.from_arrow(ROWS.empty_table())).schema
    columns = {"line": [0], "rows": [count], "reason": [WHERE]}
    columns |= {name: [None] for name in schema if name not in columns}
    return pl.DataFrame(columns, schema=schema).head(int(count > 0))
