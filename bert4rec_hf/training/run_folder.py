"""The folder of a run: made once, held by one process, and gone on with only by the same run."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from filelock import FileLock, Timeout

from bert4rec_hf.config import DataConfig, TrainingConfig
from bert4rec_hf.training.agreement import failing_together, from_main_process

FREE = (
    "data.dataset",
    "data.num_workers",
    "training.max_steps",
    "training.patience",
    "training.logging_steps",
    "training.checkpoint_steps",
    "training.keep_checkpoints",
    "training.on_bad_step",
    "training.item_table",
    "training.trackers",
    "card.",
)
"""Settings that may change when a run is resumed: how long it trains, and what no weight depends
on. The dataset may have moved, as its fingerprint tells it from others."""

NOTED = ("training.max_steps", "training.patience", "training.on_bad_step")
"""Those of them that the results tell, as the weights come out otherwise."""

RUN_FILE, LOCK = "run.json", ".lock"
LOCK_SECONDS = 10.0
"""How long a lock is waited for: workers of a killed process hold it until they notice."""


def check_output(output: Path, *, is_resumed: bool) -> None:
    """Refuse a folder that exists, or holds no run to resume.

    Raises:
        ValueError: It is such a folder.
    """
    # Hidden files are what a process leaves that is killed before it has written anything.
    is_new = not output.exists() or all(path.name.startswith(".") for path in output.iterdir())
    if not is_new and not is_resumed:
        raise ValueError(
            f"{output} exists; choose another --output, remove it, or continue it with --resume"
        )
    if is_resumed and not (output / RUN_FILE).exists():
        raise ValueError(f"{output} holds no run to resume: {RUN_FILE} is missing")


@contextmanager
def open_output(
    output: Path, identity: dict[str, Any], accelerator: Accelerator, *, is_resumed: bool
) -> Iterator[list[dict[str, Any]]]:
    """Make the run's folder, or find it as the same run left it; nobody else gets it meanwhile.

    Args:
        output: The run's folder.
        identity: What must be the same when the run is resumed, but for the settings that are
            FREE; kept in RUN_FILE.
        accelerator: Tells the processes apart.
        is_resumed: Whether the folder must exist, or must not.

    Yields:
        The changes of settings so far, each with `setting`, `before` and `after`.

    Raises:
        ValueError: It is not so, the folder holds another run, or a process is at work in it.
        OSError: It cannot be written.
    """
    lock, changes = FileLock(output / LOCK), []
    try:
        with failing_together(accelerator):
            if accelerator.is_main_process:
                check_output(output, is_resumed=is_resumed)
                if is_resumed:
                    changes = _go_on(output, identity, lock)
                else:
                    _begin(output, identity, lock)
        yield from_main_process(changes)
    finally:
        lock.release()


def _begin(output: Path, identity: dict[str, Any], lock: FileLock) -> None:
    output.mkdir(parents=True, exist_ok=True)
    _acquire(lock, output)
    if (output / RUN_FILE).exists():
        raise ValueError(
            f"another process has just started a run in {output}; choose another --output"
        )
    clean_up(output)
    _write_identity(output, identity, [])


def _go_on(output: Path, identity: dict[str, Any], lock: FileLock) -> list[dict[str, Any]]:
    _acquire(lock, output)
    saved = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))
    changes = saved.pop("changes", [])
    before, now = _join_batches(saved), _join_batches(identity)
    before = _fill_in(before, now)
    free = {name for name in before.keys() | now.keys() if is_free(name)}
    if refused := describe_changes(_without(before, free), _without(now, free)):
        raise ValueError(
            f"{output} cannot be resumed: {refused}; restore the old setting, or "
            "choose another --output"
        )
    changes += [
        {"setting": name.removeprefix("experiment."), "before": before.get(name), "after": value}
        for name, value in sorted(now.items())
        if name.removeprefix("experiment.") in NOTED and before.get(name, value) != value
    ]
    clean_up(output)
    _write_identity(output, identity, changes)
    return changes


def _fill_in(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """Add settings that a run of an older version did not have, where they are as by default."""
    defaults = {
        f"experiment.{section}.{field.name}": str(_default_of(field))
        for section, kind in (("data", DataConfig), ("training", TrainingConfig))
        for field in dataclasses.fields(kind)
    }
    return {name: now[name] for name in now if now[name] == defaults.get(name)} | before


def _default_of(field: dataclasses.Field) -> Any:
    """What a setting is if it is not given; lists and objects are made by their factory."""
    return (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )


def _acquire(lock: FileLock, output: Path) -> None:
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise ValueError(
            f"another process is using {output}; wait until it has finished, or stop it"
        ) from error


def is_free(name: str) -> bool:
    """Whether a setting may change when a run is resumed.

    >>> is_free("experiment.card.dataset_name"), is_free("experiment.training.seed")
    (True, False)
    """
    return name.removeprefix("experiment.").startswith(FREE)


def _without(settings: dict[str, str], names: set[str]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name not in names}


def _write_identity(output: Path, identity: dict[str, Any], changes: list[dict[str, Any]]) -> None:
    settings = yaml.safe_dump(identity["experiment"], sort_keys=False)
    saved = identity | ({"changes": changes} if changes else {})
    write_whole(output / RUN_FILE, json.dumps(saved, indent=2) + "\n")
    write_whole(output / "experiment.yaml", settings)


def clean_up(output: Path) -> None:
    """Remove what a process that was killed has left unfinished; nobody else may be at work."""
    for replaced in output.glob(".replaced-*"):  # killed between two renames
        folder = output / replaced.name.removeprefix(".replaced-")
        if not folder.exists():
            replaced.rename(folder)
    for pattern in (".replaced-*", ".unfinished-*", "checkpoints/.unfinished-*"):
        for path in output.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _join_batches(identity: dict[str, Any]) -> dict[str, str]:
    """Flatten an identity; processes and accumulation may change as long as their product stays.

    A step then reads the same batches, whoever reads them.
    """
    settings = flatten(identity)
    factors = ("num_processes", "experiment.training.gradient_accumulation_steps")
    batches = math.prod(int(settings.pop(name)) for name in factors)
    return settings | {" x ".join(factors): str(batches)}


def describe_changes(before: dict[str, str], now: dict[str, str]) -> str:
    """Say which settings differ, and how; empty if none does."""
    return "; ".join(
        f"{name} was {before.get(name)} and is {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    )


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Name nested settings by their path, their values as text.

    >>> flatten({"model": {"layers": 2}, "seed": 0})
    {'model.layers': '2', 'seed': '0'}
    """
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def write_whole(path: Path, text: str) -> None:
    """Write aside and rename, as several workers may write the same file."""
    unfinished = path.with_name(f".unfinished-{path.name}-{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:  # one from writing names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)
