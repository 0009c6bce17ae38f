"""Parquet files, in batches of rows."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from .json_lines import explode_rows

BATCH_ROWS = 1 << 19


@dataclass(frozen=True, kw_only=True)
class Parquet:
    """A parquet file, read by pyarrow: a damaged one is an error there, not an abort."""

    path: Path
    explode: str = ""
    """As of JsonLines, as the next one."""

    dropped: Counter = field(default_factory=Counter)

    @property
    def columns(self) -> list[str]:
        """Names of the columns, the fields of exploded entries included."""
        schema = self._schema()
        fields = []
        if self.explode:
            column = schema.get(self.explode)
            if not isinstance(column, pl.List | pl.Array):
                raise ValueError(
                    f"explode={self.explode}: {self.path.name} has no column of lists of this "
                    f"name; its columns are {', '.join(map(repr, schema))}"
                )
            if isinstance(column.inner, pl.Struct):
                fields = [field.name for field in column.inner.fields]
        return list(dict.fromkeys([*schema, *fields]))

    def read(self, columns: dict[str, str]) -> Iterator[pl.DataFrame]:
        """Read some columns, batch by batch, in their own types; `line` is the row, from 1."""
        schema = self._schema()
        # A field of exploded entries comes before a column of the same name.
        names = {name for name in columns.values() if name in schema} | {self.explode} - {""}
        self.dropped.clear()
        row = 1
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=sorted(names)):
                table = pl.from_arrow(batch).select(names)
                table = table.with_row_index("line", row).cast({"line": pl.Int64})
                row += table.height
                if self.explode:
                    entries = pl.List(schema[self.explode].inner)
                    table = explode_rows(
                        table.cast({self.explode: entries}), self.explode, self.dropped
                    )
                yield table.select("line", **columns)

    def _schema(self) -> dict[str, pl.DataType]:
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {self.path}")
        with pq.ParquetFile(self.path) as file:
            return dict(pl.from_arrow(file.schema_arrow.empty_table()).schema)
