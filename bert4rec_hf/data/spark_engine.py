"""Which preparations Spark takes over, checked before it is started."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from .interactions import PreparationConfig
from .options import check_settings
from .several import Files, find_files
from .writing import check_output

SPLITS = ("leave_one_out", "temporal", "none")
UNUSED = ("vocabulary", "validation_users", "targets", "explode", "titles", "title_column")
"""Settings that only the engine of one machine knows."""


def prepare_on_spark(
    source: str,
    path: Path | str | Files | None,
    output: Path,
    config: PreparationConfig,
    num_shards: int = 0,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Prepare parquet files on Spark: the same content and fingerprint as on one machine.

    Args:
        source: Must be `parquet`.
        path: A file, a folder of them, or an address that Spark reads, such as `s3a://shop/orders`.
            Files and folders lie where the driver and all workers see them, under the same name.
        output: The folder to write, which they see, too; it appears only when everything is in it.
        config: What to keep, and how to split.
        num_shards: Files for each split; 0 to choose them by the number of interactions.
        origin: As of prepare_dataset.

    Returns:
        The content of `statistics.json`.

    Raises:
        ValueError: Spark does not do what is asked, the source cannot be used, or Spark fails.
    """
    check_spark(source, config, num_shards)
    check_output(output)
    check_settings(source, config)
    if path is None:
        raise ValueError("the engine spark needs the path of a parquet file or folder")
    files = locate(path)
    require_spark()
    from .spark_preparation import prepare

    return prepare(files, output.absolute(), config, num_shards, origin)


def check_spark(source: str, config: PreparationConfig, num_shards: int = 0) -> None:
    """Refuse what the engine spark does not do, by name."""
    way = "leave out --engine spark, which prepares on this machine"
    if source != "parquet":
        raise ValueError(f"the engine spark reads the source parquet, got {source}; {way}")
    if config.split not in SPLITS:
        raise ValueError(
            f"the engine spark has the splits {', '.join(SPLITS)}, got {config.split}; {way}"
        )
    default = PreparationConfig()
    for setting in UNUSED:
        value = getattr(config, setting)
        if value != getattr(default, setting):
            raise ValueError(f"the engine spark does not know {setting}={value}; {way}")
    if num_shards < 0:
        raise ValueError(f"shards must be 0 or more, got {num_shards}")


class Located(NamedTuple):
    """Where Spark finds a source."""

    name: str
    """What messages call it."""

    paths: list[str]
    """Of its files, or one address."""

    names: list[str]
    """Of its files; empty for an address, whose files Spark lists."""


def locate(path: Path | str | Files) -> Located:
    """Find the files of a source.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The folder has none.
    """
    if isinstance(path, str):
        return Located(path, [path], [])
    if isinstance(path, Path) and path.is_dir():
        path = find_files(path, "parquet")
    if isinstance(path, Path):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        path = Files(path.name, [path])
    # Spark names the file that a link leads to as that of its rows.
    paths = [str(each.resolve()) for each in path.paths]
    return Located(path.name, paths, [each.name for each in path.paths])


def require_spark() -> None:
    """Refuse to start without Spark, and say how to install it.

    Raises:
        ValueError: pyspark or Java is missing.
    """
    if find_spec("pyspark") is None:
        raise ValueError("the engine spark needs pyspark; pip install 'bert4rec_hf[spark]'")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise ValueError(
            "the engine spark needs Java 17 or later, and there is no command java; install it, "
            "such as by apt-get install default-jre-headless"
        )
