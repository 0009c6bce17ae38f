"""Interactions of a shop as files, streamed: names of users and items, and when they met."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
from polars.io.plugins import register_io_source

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.names import read_names as read_written_names
from bert4rec_hf.data.reading import BlockReader, RawInteractions, check_order, check_rows, rename
from bert4rec_hf.data.sources import SOURCES
from bert4rec_hf.data.times import UNITS, TimeReader, recognize_unit

ENDINGS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl"}
"""Ending of a file's name, `.gz` and `.zst` left out → name of the table SOURCES."""

SCHEMA = {"user": pl.String, "item": pl.String, "timestamp": pl.Float64, "row": pl.Int64}


def scan_interactions(path: Path, config: PreparationConfig, source: str = "") -> pl.LazyFrame:
    """Describe a file of interactions, which is read block by block each time it is asked for.

    Users and items are named as preparing a dataset would name them, and rows are as strictly
    checked. What is asked of the frame must be collected by the streaming engine to stay lean.

    Args:
        path: The file.
        config: What its columns are called, and how they are read.
        source: A name of the table SOURCES; chosen by the ending of the name when empty.

    Returns:
        `user` and `item` as texts, `timestamp` in seconds or the number of the row where the order
        of the file is the time, and `row`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is of no known format, or has no interactions; or, when it is collected, a
            row cannot be used.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of interactions {path}")
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    source = source or ENDINGS.get(Path(name).suffix, "")
    if source not in SOURCES:
        raise ValueError(
            f"{path.name} ends with none of {', '.join(ENDINGS)}; name its format by --source, one "
            f"of {', '.join(SOURCES)}"
        )
    raw = SOURCES[source](path, config)

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, batch: int | None
    ) -> Iterator[pl.DataFrame]:
        for block in read_blocks(raw, config, path.name):
            chosen = block if predicate is None else block.filter(predicate)
            yield chosen if columns is None else chosen.select(columns)

    return register_io_source(read, schema=SCHEMA)


def read_blocks(
    raw: RawInteractions, config: PreparationConfig, name: str
) -> Iterator[pl.DataFrame]:
    """Read, check and name the interactions of one block after the other.

    Args:
        raw: Where the rows are.
        config: What is taken for missing, and which times are allowed.
        name: What messages call the file.

    Raises:
        ValueError: There is no row, or one cannot be used.
    """
    times, ticks, row = TimeReader(config.timestamp_format), None, 0
    for texts in raw.read():
        reader = BlockReader(config)  # with a dictionary of names of its own, dropped after it
        reader.times = times
        block = reader.read(texts)
        check_order(block, raw, config, name)
        names = {c: read_written_names(block[c], c, config.missing) for c in ("user", "item")}
        block, _ = check_rows(block, names, raw, config, times.kind)
        if block.is_empty():
            continue
        columns = {c: rename(block[c], names[c]).cast(pl.String) for c in ("user", "item")}
        rows = pl.int_range(row, row + block.height, dtype=pl.Int64, eager=True)
        columns["timestamp"] = rows.cast(pl.Float64)
        if "timestamp" in block.columns:
            ticks = ticks or count_ticks(block["timestamp"], raw, config, times)
            columns["timestamp"] = block["timestamp"] / ticks
        yield pl.DataFrame(columns | {"row": rows})
        row += block.height
    if row == 0:
        raise ValueError(f"{name} has no interactions")


def count_ticks(
    timestamps: pl.Series, raw: RawInteractions, config: PreparationConfig, times: TimeReader
) -> int:
    """Tell how many ticks of a file's clock are a second, by its first block if nothing says so."""
    if config.timestamp_format in UNITS:
        return UNITS[config.timestamp_format]
    if times.reads_dates:
        return 1
    return UNITS[recognize_unit(timestamps.to_numpy(), raw.unit)[0]]


def read_names(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """Read a list of names: a line each in a text file, or columns of a csv or parquet file.

    Args:
        path: `.txt`, `.csv` or `.parquet`.
        columns: What they are called; the last one must be there, and alone in a text file.

    Returns:
        Those of the columns that the file has, as texts.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is of no known format, lacks the last column, or is empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        frame = pl.DataFrame({columns[-1]: [line for line in lines if line.strip()]})
    elif path.suffix == ".csv":
        frame = pl.read_csv(path, infer_schema=False)
    elif path.suffix == ".parquet":
        frame = pl.read_parquet(path)
    else:
        raise ValueError(f"{path.name} must end with .txt, .csv or .parquet")
    if columns[-1] not in frame.columns:
        raise ValueError(
            f"{path.name} has no column {columns[-1]!r}; its columns are "
            f"{', '.join(map(repr, frame.columns))}"
        )
    if frame.is_empty():
        raise ValueError(f"{path.name} is empty")
    found = [column for column in columns if column in frame.columns]
    return frame.select(pl.col(found).cast(pl.String)).drop_nulls(columns[-1])
