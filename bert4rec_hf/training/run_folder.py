"""The folder of a run: made once, and gone on with only by the same run."""

import json
import math
import os
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

RUN_FILE = "run.json"


def check_output(output: Path, *, is_resumed: bool) -> None:
    """Refuse a folder that exists, or holds no run to resume.

    Raises:
        ValueError: It is such a folder.
    """
    if output.exists() and not is_resumed:
        raise ValueError(
            f"{output} exists; choose another --output, remove it, or continue it by --resume"
        )
    if is_resumed and not (output / RUN_FILE).exists():
        raise ValueError(f"{output} holds no run to resume: {RUN_FILE} is missing")


def open_output(
    output: Path, identity: dict[str, Any], accelerator: Accelerator, *, is_resumed: bool
) -> None:
    """Make the run's folder, or find it as the same run left it.

    Args:
        output: The run's folder.
        identity: What must be the same when the run is resumed, kept in `run.json`.
        accelerator: Tells the processes apart.
        is_resumed: Whether the folder must exist, or must not.

    Raises:
        ValueError: It is not so, or the folder holds another run.
    """
    path = output / RUN_FILE
    check_output(output, is_resumed=is_resumed)
    if is_resumed:
        before, now = _join_batches(json.loads(path.read_text())), _join_batches(identity)
        if changes := describe_changes(before, now):
            raise ValueError(
                f"{output} cannot be resumed, as {changes}; go back to what it was, or "
                "choose another --output"
            )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not is_resumed:
        output.mkdir(parents=True)
        settings = yaml.safe_dump(identity["experiment"], sort_keys=False)
        (output / "experiment.yaml").write_text(settings, encoding="utf-8")
        path.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
    accelerator.wait_for_everyone()


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
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
