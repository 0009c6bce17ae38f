"""Checksums of the files of a checkpoint, and what is wrong with one that has changed since."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

CHECKSUMS = "checksums.json"
STATE = "state.json"


def digest_file(path: Path) -> dict[str, Any]:
    """Bring a file to the disk, past all caches, and describe it by size and SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def write_checksums(folder: Path, digests: dict[str, dict[str, Any]]) -> None:
    """Write the last file of a folder, and bring it and the list of its files to the disk."""
    path = folder / CHECKSUMS
    path.write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for each in (path, folder):
        sync(each)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # where folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def find_damage(checkpoint: Path) -> str:
    """Say what is wrong with a checkpoint; empty if all files are as they were written."""
    try:
        digests = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
        if not isinstance(digests, dict) or STATE not in digests:
            return f"{CHECKSUMS} lists no {STATE}"
        for name, expected in digests.items():
            if damage := _find_damage_of(checkpoint / name, expected):
                return damage
        step = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["state"]["step"]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{error.filename or checkpoint} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{CHECKSUMS} is not what was written"
    return "" if checkpoint.name == name_of_step(step) else f"it is a copy of {name_of_step(step)}"


def _find_damage_of(path: Path, expected: dict[str, Any]) -> str:
    size = path.stat().st_size
    if size != expected["bytes"]:
        return f"{path.name} has {size:,} bytes instead of {expected['bytes']:,}"
    with path.open("rb") as file:
        is_same = hashlib.file_digest(file, "sha256").hexdigest() == expected["sha256"]
    return "" if is_same else f"{path.name} has different bytes from those written"


def name_of_step(step: int) -> str:
    """Of the folder of a checkpoint, such as `step-00000500`."""
    return f"step-{step:08d}"
