"""Sources of several files of the same columns, which are read one after the other."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from .histories import SPLIT_NAMES
from .reading import FILE_SHIFT, RawInteractions
from .rows import Table

COMPRESSED = ("", ".gz", ".bz2", ".xz", ".zst")
ENDINGS = {
    "parquet": (".parquet",),
    "csv": tuple(f"{ending}{packed}" for ending in (".csv", ".tsv") for packed in COMPRESSED),
    "jsonl": tuple(
        f"{ending}{packed}" for ending in (".jsonl", ".ndjson", ".json") for packed in COMPRESSED
    ),
}
"""Source → endings of the names of its files, by which they are found in a folder."""


@dataclass(frozen=True)
class Files:
    """Several files in the order in which they are read; where times tie, this order counts."""

    name: str
    """What messages call them."""

    paths: Sequence[Path]
    splits: Sequence[str] = ()
    """Per file, whether it is for train, validation or test; empty where files say nothing."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class JoinedTables:
    """Files with the same columns as one table; lines are numbered as name_line reads them."""

    path: Path
    """What messages call it."""

    tables: Sequence[Table]
    dropped: Counter = field(default_factory=Counter)
    """As of JsonLines."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns that every file has."""
        first, *others = (table.columns for table in self.tables)
        return [name for name in first if all(name in columns for columns in others)]

    def read(self, columns: dict[str, str]) -> Iterator[pl.DataFrame]:
        """Read some columns, file by file; see `SeparatedText.read`."""
        self.dropped.clear()
        for number, table in enumerate(self.tables):
            for block in table.read(columns):
                yield block.with_columns(line=pl.col("line") + (number << FILE_SHIFT))
            self.dropped.update(getattr(table, "dropped", {}))


def find_files(folder: Path, source: str) -> Files:
    """List the files of a source in a folder and those below, sorted by name.

    Raises:
        ValueError: There is none, or the source is read from one file only.
    """
    if source not in ENDINGS:
        raise ValueError(
            f"the source {source} is read from one file, and {folder} is a folder; folders of "
            f"files are read by {', '.join(ENDINGS)}"
        )
    paths = [path for path in folder.rglob("*") if path.name.endswith(ENDINGS[source])]
    # Engines hide what is not data behind a dot or an underscore.
    paths = [path for path in paths if is_data(path.relative_to(folder)) and path.is_file()]
    if not paths:
        raise ValueError(
            f"{folder} has no files that end with {' or '.join(ENDINGS[source])}; name the folder "
            "that has"
        )
    return Files(folder.resolve().name, sorted(paths))


def is_data(path: Path) -> bool:
    """Whether neither a file nor a folder above it is hidden."""
    return not any(part.startswith((".", "_")) for part in path.parts)


def open_several(path: Path | Files, open_one: Callable[[Path], Table]) -> Table:
    """Describe one file, or several as one table."""
    if isinstance(path, Files):
        return JoinedTables(path=Path(path.name), tables=[open_one(each) for each in path.paths])
    return open_one(path)


def describe_files(raw: RawInteractions, files: Files) -> RawInteractions:
    """Name each file for messages, and label each row with the split of its file if it has one."""
    raw.files = [path.name for path in files.paths]
    if not files.splits:
        return raw
    read, labels = raw.read, pl.Series(files.splits, dtype=pl.Enum(SPLIT_NAMES))

    def read_labeled() -> Iterator[pl.DataFrame]:
        for block in read():
            yield block.with_columns(split=labels.gather(block["line"].to_numpy() >> FILE_SHIFT))

    raw.read = read_labeled
    return raw
