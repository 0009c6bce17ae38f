"""Separated text (csv, tabs, `::`), of which every row has as many fields as the header.

Polars checks quotes and numbers of fields only in the columns that it is asked for
(pola-rs/polars 21519, 28350), so that rows vanish or shift. Here each block of lines is checked
first, and then read by polars; where quotes are not used as RFC 4180 says, by the `csv` module.
"""

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import polars as pl

from .files import MAX_LINE_BYTES, check_utf8, read_blocks, read_first_line

UNIT_SEPARATOR = "\x1f"
"""Stands for a separator of several characters, since polars separates at one byte."""

csv.field_size_limit(MAX_LINE_BYTES)


class Records(NamedTuple):
    """Whole records at the beginning of a block."""

    data: bytes
    """Without blank lines; the separator is one byte."""

    lines: np.ndarray
    """(records,) number of the line in which each begins, counted from that of the block."""

    rows: list[list[str]] | None = None
    """(records, fields) where the csv module read them."""


@dataclass(frozen=True, kw_only=True)
class SeparatedText:
    """A file of separated columns, all of them texts."""

    path: Path
    separator: str
    """One character or several."""

    quote: str = ""
    """What fields that contain the separator or a line end stand in; empty for none."""

    names: tuple[str, ...] = ()
    """Of the columns, in a file without header."""

    encoding: str = ""
    """Empty for UTF-8, or what a byte order mark says."""

    @cached_property
    def first_line(self) -> str:
        """The header, or the first row.

        Raises:
            ValueError: It is blank.
        """
        return read_first_line(self.path, self.encoding)

    @property
    def columns(self) -> list[str]:
        """Names of the columns.

        Raises:
            ValueError: A file without header has not as many in its first line.
        """
        first = next(self._split_line(self.first_line))
        if not self.names:
            return [name.strip() for name in first]
        if len(first) != len(self.names):
            raise ValueError(
                f"the first line of {self.path.name} is not {len(self.names)} columns between "
                f"{self.separator!r} ({', '.join(self.names)}): "
                f"{self.separator.join(first)[:80]!r}"
            )
        return list(self.names)

    def read(self, columns: dict[str, str]) -> Iterator[pl.DataFrame]:
        """Read some columns, block by block.

        Args:
            columns: Our name → the name in the file.

        Yields:
            The columns by our names, and `line`, where in the file each row begins; a missing field
            is null.

        Raises:
            ValueError: A row has not as many fields as the header; it is named by its line.
        """
        names = self.columns
        places = {ours: names.index(name) for ours, name in columns.items()}
        first_line, rest, is_first = 1, b"", True
        for block in itertools.chain(read_blocks(self.path, self.encoding), [None]):
            if block:
                line = first_line + rest.count(b"\n")
                check_utf8(block, line, self.path)
                block = self._separate_at_byte(block, line)
            data = rest + (block or b"")
            if not data:
                continue
            end, records = self._cut(data, first_line, len(names), is_last=block is None)
            if len(records.lines):
                frame = self._parse(records, places, len(names), first_line)
                yield frame[1:] if is_first and not self.names else frame
                is_first = False
            first_line += data.count(b"\n", 0, end)
            rest = data[end:]
            if len(rest) > MAX_LINE_BYTES:
                self._refuse_quote(first_line, rest)

    def _split_line(self, line: str) -> Iterator[list[str]]:
        if self.quote:
            return csv.reader([line], delimiter=self._byte, quotechar=self.quote)
        return iter([line.split(self.separator)])

    @property
    def _byte(self) -> str:
        return self.separator if len(self.separator.encode()) == 1 else UNIT_SEPARATOR

    def _cut(
        self, data: bytes, first_line: int, width: int, *, is_last: bool
    ) -> tuple[int, Records]:
        """Take the whole records from the beginning of the data, and tell where they end."""
        separator, quote = self._byte.encode(), self.quote.encode()
        structure = data.translate(None, _all_but(separator + quote + b"\n"))
        pattern = separator * (width - 1) + b"\n"
        count = len(structure) // width
        if structure == pattern * count and (width > 1 or _has_no_blank_line(data)):
            return len(data), Records(data, np.arange(count))
        if quote and quote in data:
            return self._cut_quoted(data, first_line, width, is_last=is_last)
        return len(data), self._drop_blank_lines(data, first_line, width)

    def _drop_blank_lines(self, data: bytes, first_line: int, width: int) -> Records:
        """Keep the lines that are not blank, which must have as many fields as the header."""
        lines = data.split(b"\n")[:-1]
        numbers = [i for i, line in enumerate(lines) if line.strip(b" \r")]
        separator = self._byte.encode()
        for number in numbers:
            if lines[number].count(separator) != width - 1:
                found = lines[number].count(separator) + 1
                self._refuse_width(first_line + number, found, width, lines[number].decode())
        kept = b"".join(lines[number] + b"\n" for number in numbers)
        return Records(kept, np.array(numbers, dtype=np.int64))

    def _cut_quoted(
        self, data: bytes, first_line: int, width: int, *, is_last: bool
    ) -> tuple[int, Records]:
        """Take whole records, of which fields in quotes may contain separators and line ends."""
        records = cut_strict_records(data, self._byte, self.quote, width)
        if records is not None:
            end, lines = records
            if is_last and end < len(data):
                self._refuse_quote(first_line + data.count(b"\n", 0, end), data[end:])
            return end, Records(data[:end], lines)
        return self._read_loose_records(data, first_line, width, is_last=is_last)

    def _read_loose_records(
        self, data: bytes, first_line: int, width: int, *, is_last: bool
    ) -> tuple[int, Records]:
        """Read records in which a quote inside a field is a character like others."""
        text = [line + "\n" for line in data.decode().replace("\r\n", "\n").split("\n")[:-1]]
        reader = csv.reader(text, delimiter=self._byte, quotechar=self.quote, strict=True)
        rows, numbers, done = [], [], 0
        try:
            for row in reader:
                if text[done].strip():
                    if len(row) != width:
                        self._refuse_width(first_line + done, len(row), width, text[done])
                    rows.append(row)
                    numbers.append(done)
                done = reader.line_num
        except csv.Error as error:
            if is_last or "unexpected end" not in str(error):
                self._refuse_quote(first_line + done, text[done].encode(), f"{error}")
        # Where the last record is not whole, it is read again together with the next block.
        end = sum(len(line) for line in data.split(b"\n")[:done]) + done
        return end, Records(b"", np.array(numbers, dtype=np.int64), rows)

    def _parse(
        self, records: Records, places: dict[str, int], width: int, first_line: int
    ) -> pl.DataFrame:
        """Read the columns of records that are known to be whole."""
        if records.rows is not None:
            columns = {
                ours: pl.Series([row[place] or None for row in records.rows], dtype=pl.String)
                for ours, place in places.items()
            }
            return pl.DataFrame(columns).with_columns(line=first_line + records.lines)
        chosen = sorted(set(places.values()))
        table = pl.read_csv(
            io.BytesIO(records.data),
            separator=self._byte,
            quote_char=self.quote or None,
            has_header=False,
            infer_schema=False,
            columns=chosen,
        )
        if table.height != len(records.lines):
            raise ValueError(
                f"{self.path.name} has {len(records.lines):,} rows from line {first_line} on, "
                f"of which {table.height:,} could be read"
            )
        columns = {ours: table.columns[chosen.index(place)] for ours, place in places.items()}
        return table.select(**columns).with_columns(line=first_line + records.lines)

    def _refuse_width(self, line: int, found: int, width: int, text: str) -> NoReturn:
        kind = "as columns are named" if self.names else "as its header has"
        raise ValueError(
            f"line {line} of {self.path.name} has {found} fields, not {width} {kind}: "
            f"{text.strip()[:200]!r}; fix the line, or name another --separator"
        )

    def _refuse_quote(self, line: int, text: bytes, error: str = "it is never closed") -> NoReturn:
        raise ValueError(
            f"line {line} of {self.path.name} has a field that begins with a quote, but {error}: "
            f"{text.decode(errors='replace').strip()[:200]!r}; double the quotes inside a quoted "
            "field, or give --quote '' where quotes are part of the text"
        )

    def _separate_at_byte(self, block: bytes, first_line: int) -> bytes:
        """Put one byte in the place of a separator of several characters."""
        if len(self.separator.encode()) == 1:
            return block
        place = block.find(UNIT_SEPARATOR.encode())
        if place >= 0:
            line = first_line + block.count(b"\n", 0, place)
            raise ValueError(
                f"line {line} of {self.path.name} contains the control character \\x1f, which "
                f"cannot stand in a file with the separator {self.separator!r}"
            )
        return block.replace(self.separator.encode(), UNIT_SEPARATOR.encode())


def cut_strict_records(
    data: bytes, separator: str, quote: str, width: int
) -> tuple[int, np.ndarray] | None:
    """Find the whole records in data where quotes are used as RFC 4180 says.

    That is: a field stands in quotes as a whole or contains none, and inside they are doubled.

    Returns:
        Where the last whole record ends, and the line in which each begins, counted from 0; None
        where quotes are used otherwise, a record has not `width` fields, or there are blank lines.
    """
    block = np.frombuffer(data, dtype=np.uint8)
    quotes = np.flatnonzero(block == ord(quote))
    borders = np.frombuffer(f"{separator}\n\r{quote}".encode(), dtype=np.uint8)
    opening, closing = quotes[0::2], quotes[1::2]
    before = block[opening[opening > 0] - 1]
    after = block[closing[closing < len(block) - 1] + 1]
    if not (np.isin(before, borders).all() and np.isin(after, borders).all()):
        return None
    ends = np.flatnonzero(block == ord("\n"))
    line_ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
    if not len(line_ends):
        return 0, np.zeros(0, dtype=np.int64)
    separators = np.flatnonzero(block[: line_ends[-1]] == ord(separator))
    separators = separators[np.searchsorted(quotes, separators) % 2 == 0]
    counts = np.diff(np.searchsorted(separators, line_ends), prepend=0)
    starts = np.concatenate([[0], line_ends[:-1] + 1])
    is_blank = (line_ends == starts) | (block[starts] == ord("\r"))
    if (counts != width - 1).any() or is_blank.any():
        return None
    return int(line_ends[-1]) + 1, np.searchsorted(ends, starts)


def _all_but(kept: bytes) -> bytes:
    """List all bytes but some, as `bytes.translate` deletes them."""
    return bytes(set(range(256)) - set(kept))


def _has_no_blank_line(data: bytes) -> bool:
    """Tell whether a file of one column has a line in every line."""
    return not data.startswith((b"\n", b"\r")) and b"\n\n" not in data and b"\n\r" not in data
