"""How commands read the interactions of a shop with a trained model."""

import argparse
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from accelerate import Accelerator
from safetensors import SafetensorError

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.serving.interactions import scan_interactions
from bert4rec_hf.training.launch import check_launch, share_cores


def read_interactions(options: argparse.Namespace, path: Path) -> pl.LazyFrame:
    """Describe a file of interactions as the options say.

    An empty --timestamp-column means that the order of the rows is the time.
    """
    columns = {
        f"{column}_column": getattr(options, f"{column}_column")
        for column in ("user", "item", "timestamp")
    }
    return scan_interactions(path, PreparationConfig(**columns), options.source)


def describe_columns(options: argparse.Namespace) -> list[str]:
    """Describe how interactions are read, to distinguish one job from another."""
    return [options.source, options.user_column, options.item_column, options.timestamp_column]


def fingerprint_file(path: Path | None) -> str | None:
    """Hash the contents of a file; None for no file."""
    if path is None:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def launch() -> Accelerator:
    """Find out on what device and how many processes this runs."""
    accelerator = Accelerator()
    check_launch(accelerator)
    share_cores(accelerator)
    return accelerator


@contextmanager
def exit_on_bad_input(parser: argparse.ArgumentParser, name: str = "") -> Iterator[None]:
    """End the command with a line instead of a traceback where its input is at fault.

    Args:
        parser: Of the command.
        name: What the message begins with, such as the folder of the model.
    """
    prefix = f"error: {name}: " if name else "error: "
    try:
        yield
    except KeyError as error:
        parser.exit(2, f"{prefix}{error.args[0]}\n")
    except (OSError, SafetensorError, ValueError, TypeError, pl.exceptions.PolarsError) as error:
        parser.exit(2, f"{prefix}{error}\n")
