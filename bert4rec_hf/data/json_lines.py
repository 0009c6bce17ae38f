"""JSON lines: one object a line, of which a few columns are read, as texts.

A block that polars refuses is read again line by line, so that the line is named, or read where it
is only unusual: NaN, half of a surrogate pair in a column that is not asked for, or Python's own
way to write objects, in which some public datasets come.
"""

import ast
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from .files import check_utf8, read_blocks, read_first_line

LINES_FOR_COLUMNS = 1_000
"""The first lines, of which one at least must have a column that is asked for."""

MAX_LITERAL_LENGTH = 1 << 20
"""Python's parser needs far more memory than the text that it reads."""


@dataclass(frozen=True, kw_only=True)
class JsonLines:
    """A file of one JSON object a line."""

    path: Path
    encoding: str = ""
    explode: str = ""
    """A column of lists, each entry of which becomes a row; where entries are objects, their fields
    become columns."""

    dropped: Counter = field(default_factory=Counter)
    """Rows without an entry to explode, complete when all is read."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns in the first lines, those of the exploded entries included.

        Raises:
            ValueError: The first line is no JSON object.
        """
        return list(dict.fromkeys([*self._fields[0], *self._fields[1]]))

    @cached_property
    def _fields(self) -> tuple[list[str], list[str]]:
        """Names of the columns, and of the fields of exploded entries."""
        first = read_first_line(self.path, self.encoding)
        if not isinstance(_parse_or_none(first), dict):
            raise ValueError(
                f"the first line of {self.path.name} is not a JSON object, but {first[:80]!r}; "
                "one object a line is expected"
            )
        lines = next(read_blocks(self.path, self.encoding)).split(b"\n")
        records = [_parse_or_none(line) for line in itertools.islice(lines, LINES_FOR_COLUMNS)]
        records = [record for record in records if isinstance(record, dict)]
        entries = [record.get(self.explode) for record in records]
        entries = [entry for row in entries if isinstance(row, list) for entry in row]
        fields = [field for entry in entries if isinstance(entry, dict) for field in entry]
        columns = list(dict.fromkeys(column for record in records for column in record))
        if self.explode and self.explode not in columns:
            raise ValueError(
                f"explode={self.explode}: {self.path.name} has no such column; its columns are "
                f"{', '.join(map(repr, columns))}"
            )
        return columns, list(dict.fromkeys(fields))

    def read(self, columns: dict[str, str]) -> Iterator[pl.DataFrame]:
        """Read some columns, block by block; see `SeparatedText.read`.

        A number is its text, and so is a list or an object.
        """
        schema = self._schema(list(columns.values()))
        self.dropped.clear()
        first_line = 1
        for block in read_blocks(self.path, self.encoding):
            check_utf8(block, first_line, self.path)
            table = self._parse_block(block, schema)
            if table is None:
                table = self._parse_lines(block, schema, first_line)
            table = table.with_columns(line=number_lines(block, table.height, first_line))
            if self.explode:
                table = explode_rows(table, self.explode, self.dropped)
            yield table.select("line", **columns)
            first_line += block.count(b"\n")

    def _schema(self, names: list[str]) -> dict[str, pl.DataType]:
        """What to read: texts, and in the exploded column texts or objects of texts."""
        fields = [name for name in dict.fromkeys(names) if name in self._fields[1]]
        schema = {name: pl.String for name in names if name not in fields}
        if self.explode:
            entry = pl.Struct(dict.fromkeys(fields, pl.String)) if fields else pl.String
            schema[self.explode] = pl.List(entry)
        return schema

    def _parse_block(self, block: bytes, schema: dict[str, pl.DataType]) -> pl.DataFrame | None:
        """Read a block at once; None where a line of it is unusual or no JSON object."""
        try:
            return pl.read_ndjson(io.BytesIO(block), schema=schema)
        except pl.exceptions.PolarsError:
            return None

    def _parse_lines(
        self, block: bytes, schema: dict[str, pl.DataType], first_line: int
    ) -> pl.DataFrame:
        """Read a block line by line.

        Raises:
            ValueError: A line is no object, or has something other than a list to explode.
        """
        rows = []
        for number, line in enumerate(block.decode().split("\n"), start=first_line):
            if not line.strip():
                continue
            try:
                record = parse_object(line)
                rows.append({name: _as_type(record.get(name), schema[name]) for name in schema})
            except ValueError as error:
                raise ValueError(
                    f"line {number} of {self.path.name} {error}: {line.strip()[:200]!r}"
                ) from error
        return pl.DataFrame(rows, schema=schema)


def parse_object(line: str | bytes) -> dict[str, Any]:
    """Read one line of JSON, or of Python's own way to write an object.

    Raises:
        ValueError: It is neither.
    """
    line = line.decode() if isinstance(line, bytes) else line
    is_python = line.startswith(("{'", "{u'", '{u"'))
    if is_python and len(line) > MAX_LITERAL_LENGTH:
        raise ValueError(f"is longer than {MAX_LITERAL_LENGTH:,} characters of Python")
    try:
        record = ast.literal_eval(line.strip()) if is_python else json.loads(line)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"is not JSON ({error}); is it complete?") from error
    if not isinstance(record, dict):
        raise ValueError("is not a JSON object")
    return record


def number_lines(block: bytes, rows: int, first_line: int) -> pl.Series:
    """Number the lines of a block that are not blank."""
    if block.count(b"\n") == rows:
        return pl.Series(range(first_line, first_line + rows), dtype=pl.Int64)
    numbers = [i for i, line in enumerate(block.split(b"\n"), start=first_line) if line.strip()]
    return pl.Series(numbers, dtype=pl.Int64)


def explode_rows(table: pl.DataFrame, column: str, dropped: Counter) -> pl.DataFrame:
    """Make each entry of a column of lists a row; rows without an entry are counted.

    Where the entries are objects, their fields become columns, in place of others of their names.
    """
    whole = table.filter(pl.col(column).list.len() > 0)
    dropped["empty lists"] += table.height - whole.height
    table = whole.explode(column)
    dtype = table.schema[column]
    if not isinstance(dtype, pl.Struct):
        return table
    others = [field.name for field in dtype.fields if field.name != column]
    return table.drop(others, strict=False).unnest(column)


def _parse_or_none(line: str | bytes) -> dict[str, Any] | None:
    try:
        return parse_object(line)
    except ValueError:
        return None


def _as_type(value: Any, dtype: pl.DataType) -> Any:
    """Turn a value of JSON into what the schema says; NaN is nothing."""
    if value is None or value != value:  # noqa: PLR0124
        return None
    if isinstance(dtype, pl.List):
        if not isinstance(value, list):
            raise ValueError("has something other than a list to explode")
        return [_as_type(entry, dtype.inner) for entry in value]
    if isinstance(dtype, pl.Struct):
        if not isinstance(value, dict):
            raise ValueError("has something other than objects in the list to explode")
        return {field.name: _as_type(value.get(field.name), field.dtype) for field in dtype.fields}
    return _as_text(value)


def _as_text(value: Any) -> str:
    """Write a value of JSON as polars does."""
    if isinstance(value, str):
        if not value.isprintable() and not _is_text(value):
            raise ValueError("holds half of a surrogate pair")
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
