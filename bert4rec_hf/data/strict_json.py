"""JSON files from elsewhere, read within bounds: broken ones are refused, never half understood."""

import json
import math
from pathlib import Path
from typing import Any

SETTINGS_BYTES = 1_000_000
"""No file of settings has a reason to be larger."""


def read_json(path: Path, max_bytes: int = SETTINGS_BYTES) -> dict[str, Any]:
    """Read a file that must be one JSON object.

    Args:
        path: The file.
        max_bytes: A larger file is refused before it is read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is too large, not UTF-8, not JSON, nested too deeply, names something twice,
            holds a number that is not finite, or is no object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if (size := path.stat().st_size) > max_bytes:
        raise ValueError(f"{path} has {size:,} bytes, at most {max_bytes:,} are read")
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_without_doubles,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: not JSON, {error.msg[:1].lower()}{error.msg[1:]}"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply to be read") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{twice!r} occurs twice; keep one")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return number
