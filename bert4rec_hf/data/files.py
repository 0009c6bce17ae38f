"""Text files as blocks of whole lines in UTF-8, whatever they are compressed with and encoded in.

What a file is compressed with is seen from its first bytes, not from its name. Memory is bounded by
the size of a block, and by MAX_LINE_BYTES where a line is longer than that.
"""

import bz2
import codecs
import gzip
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

BLOCK_BYTES = 1 << 24
MAX_LINE_BYTES = 1 << 26
"""A longer line is taken for a file of another kind."""

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16, so it comes first
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class NotUtf8Error(ValueError):
    """A text file is in another encoding."""


def open_bytes(path: Path) -> BinaryIO:
    """Open a file that may be compressed; what is read is not.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is an archive of files.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(8)
    for magic, open_compressed in COMPRESSIONS.items():
        if start.startswith(magic):
            return open_compressed(path)
    return path.open("rb")


def read_blocks(path: Path, encoding: str = "") -> Iterator[bytes]:
    """Read a text file in blocks of whole lines, each of which ends with a line feed.

    Args:
        path: Plain, or compressed with gzip, bz2, xz or zstandard.
        encoding: Empty for UTF-8, or for what a byte order mark at the beginning says.

    Yields:
        UTF-8, not checked to be so where the file claims it.

    Raises:
        ValueError: A line is longer than MAX_LINE_BYTES, or not in the encoding.
    """
    rest, line, line_end = b"", 1, b""
    for chunk in _read_utf8(path, encoding):
        # Files of old Macs end their lines with a carriage return alone.
        line_end = line_end or (b"\r" if b"\r" in chunk and b"\n" not in chunk else b"\n")
        data = rest + (chunk.replace(b"\r", b"\n") if line_end == b"\r" else chunk)
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        if len(rest) > MAX_LINE_BYTES:
            raise ValueError(
                f"line {line + data.count(bytes([10]))} of {path.name} is longer than "
                f"{MAX_LINE_BYTES / 1e6:.0f} MB: is it a text file, and of this source?"
            )
        if end:
            yield data[:end]
            line += data.count(b"\n")
    if rest:
        yield rest + b"\n"


def check_utf8(block: bytes, first_line: int, path: Path) -> None:
    """Refuse a block that is not UTF-8, by its line.

    Raises:
        NotUtf8Error: A byte is not part of a character.
    """
    if block.isascii():
        return
    try:
        block.decode()
    except UnicodeDecodeError as error:
        line = block.count(b"\n", 0, error.start)
        text = block.split(b"\n")[line][:80]
        raise NotUtf8Error(
            f"line {first_line + line} of {path.name} is not UTF-8: {text!r}; if it is complete, "
            "name its encoding, such as --encoding latin-1"
        ) from error


def read_first_line(path: Path, encoding: str = "") -> str:
    """Read the first line of a text file, which must be there and not be blank.

    Raises:
        ValueError: It is blank, or no text.
    """
    for block in read_blocks(path, encoding):
        line = block[: block.index(b"\n") + 1]
        check_utf8(line, 1, path)
        if line.strip():
            return line.decode().rstrip("\r\n")
        break
    raise ValueError(f"{path.name} is empty, or begins with an empty line")


def _read_utf8(path: Path, encoding: str) -> Iterator[bytes]:
    """Read chunks and put them into UTF-8 where they are not; a byte order mark is left out."""
    with open_bytes(path) as file:
        chunk = file.read(BLOCK_BYTES)
        marks = [name for mark, name in BYTE_ORDER_MARKS.items() if chunk.startswith(mark)]
        encoding = encoding or (marks[0] if marks else "utf-8")
        if encoding == "utf-8-sig":
            chunk, encoding = chunk.removeprefix(codecs.BOM_UTF8), "utf-8"
        if codecs.lookup(encoding).name == "utf-8":
            while chunk:
                yield chunk
                chunk = file.read(BLOCK_BYTES)
            return
        decode = codecs.getincrementaldecoder(encoding)().decode
        line = 1
        while chunk:
            following = file.read(BLOCK_BYTES)
            try:
                text = decode(chunk, final=not following)
            except UnicodeError as error:
                raise ValueError(
                    f"{path.name} is not {encoding}, after its line {line}: {error}; name its "
                    "encoding by --encoding"
                ) from error
            line += text.count("\n")
            yield text.encode()
            chunk = following


def _open_zstandard(path: Path) -> BinaryIO:
    return pa.input_stream(str(path), compression="zstd")


def _refuse_archive(path: Path) -> BinaryIO:
    raise ValueError(f"{path} is a zip archive; unpack it, and name the file in it")


COMPRESSIONS: dict[bytes, Callable[[Path], BinaryIO]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstandard,
    b"PK\x03\x04": _refuse_archive,
}
"""First bytes of a file → how it is opened."""
