"""What Spark itself does in a preparation: read parquet, count, filter, number and sort.

These are the rules that look across rows; what looks at one row, one name or one history is done
by the code of one machine, in `spark_rows` and `spark_histories`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812 - as it is known
from pyspark.sql.types import DataType, DecimalType

from .filters import check_left, drop_low_ratings
from .interactions import PreparationConfig
from .names import FRACTION, note_names
from .spark_rows import file_path

SETTINGS = {
    "spark.sql.caseSensitive": "true",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
}
DDL = {"int64": "bigint", "int8": "tinyint", "double": "double", "string": "string"}
DDL |= {"bool": "boolean"}


class ParquetTable(NamedTuple):
    """Parquet files as Spark sees them; a Table of which only the columns are asked for."""

    path: Path
    """What messages call it."""

    frame: DataFrame
    numbers: dict[str, int]
    """Path of a file → its number, in the order in which files are read."""

    files: list[str]
    """Their names."""

    @property
    def columns(self) -> list[str]:
        return self.frame.columns

    def select(self, columns: Mapping[str, str]) -> DataFrame:
        """Take columns by our names, with the `file` and `row` of each."""
        types = {field.name: field.dataType for field in self.frame.schema}
        chosen = [_typed(ours, name, types[name]) for ours, name in columns.items()]
        place = [
            F.col("_metadata.file_path").alias("file"),
            F.col("_metadata.row_index").alias("row"),
        ]
        return self.frame.select(*chosen, *place)


def _typed(ours: str, name: str, kind: DataType) -> Column:
    """Take a column; unsigned integers of 64 bits are decimals in Spark, and are texts here."""
    column = F.col(f"`{name.replace('`', '``')}`")
    if isinstance(kind, DecimalType):
        is_name = ours in ("user", "item") and kind.scale == 0
        column = column.cast("string" if is_name else "double")
    return column.alias(ours)


def start_spark() -> SparkSession:
    """Use the cluster that spark-submit or Spark's settings name, or this machine."""
    spark = SparkSession.builder.appName("bert4rec prepare").getOrCreate().newSession()
    for name, value in SETTINGS.items():
        spark.conf.set(name, value)
    return spark


@contextmanager
def explaining_spark(name: str) -> Iterator[None]:
    """Turn what Spark raises into one line; what our code in its workers raises stands in it.

    Raises:
        ValueError: With that line.
    """
    try:
        yield
    except (PySparkException, Py4JError) as error:
        text = str(error)
        ours = re.findall(r"^ValueError: (.+)$", text, flags=re.MULTILINE)
        if ours:
            raise ValueError(f"{name}: {ours[-1]}") from error
        others = re.findall(r"^\w+Error: .+$", text, flags=re.MULTILINE)
        said = others[-1] if others else text.strip().partition("\n")[0]
        raise ValueError(f"{name}: Spark could not read or prepare it: {said[:300]}") from error


def open_parquet(
    spark: SparkSession, name: str, paths: list[str], names: list[str]
) -> ParquetTable:
    """Look at parquet files.

    Args:
        spark: The session.
        name: What messages call them.
        paths: Of files on disks that all workers see, or one address such as `s3a://shop/orders`.
        names: Of the files; empty for an address, whose files are then listed.
    """
    reader = spark.read.option("recursiveFileLookup", "true")
    if not names:
        frame = reader.parquet(*paths)
        found = sorted(
            map(file_path, frame.inputFiles()), key=lambda path: PurePosixPath(path).parts
        )
        names, keys = [PurePosixPath(path).name for path in found], found
    else:
        frame = reader.parquet(*(f"file://{_escape(path)}" for path in paths))
        keys = paths
    return ParquetTable(Path(name), frame, {key: place for place, key in enumerate(keys)}, names)


def _escape(path: str) -> str:
    """Write a path so that no character of it is a pattern to Hadoop."""
    return re.sub(r"([\[\]{}*?\\])", r"\\\1", path)


def ddl(schema: pa.Schema) -> str:
    """Write a schema as Spark reads it."""
    return ", ".join(f"{field.name} {DDL[str(field.type)]}" for field in schema)


def count_reasons(rows: DataFrame) -> dict[str, tuple[int, int]]:
    """Count rows by why they are not used: reason → rows and the first line."""
    counts = rows.groupBy("reason").agg(F.sum("rows"), F.min("line")).collect()
    return {reason: (rows, line) for reason, rows, line in counts}


def read_names(rows: DataFrame, column: str) -> tuple[Column, list[str]]:
    """Decide on whole numbers like `101.0` as `read_names` of one machine does.

    Args:
        rows: All that meet the conditions.
        column: `user` or `item`.

    Returns:
        The names as they are used, and what a user should know.
    """
    name, blank, form = F.col(column), F.col(f"{column}_blank"), F.col(f"{column}_form")
    named = rows.where(name.isNotNull())
    is_decimal = form == 2
    num_blank, largest, smallest, example = named.agg(
        F.count_distinct(blank),
        F.max(form),
        F.min(form),
        F.min(F.when(is_decimal, F.coalesce(blank, name))),
    ).first()
    if largest != 2:
        return name, note_names(column, num_blank)
    whole = F.regexp_replace(name, FRACTION, "")
    if smallest >= 1:
        notes = note_names(column, num_blank, read_as_integer=example)
        return F.when(is_decimal, whole).otherwise(name).alias(column), notes
    decimals = named.where(is_decimal).select(name.alias("decimal"), whole.alias(column)).distinct()
    both = decimals.join(named.select(column).distinct(), column)
    num_both, first = both.agg(F.count("*"), F.min("decimal")).first()
    return name, note_names(column, num_blank, num_both, first or "")


def count_distinct(frame: DataFrame) -> dict[str, int]:
    """Count users, items and interactions."""
    users, items, interactions = frame.agg(
        F.count_distinct("user"), F.count_distinct("item"), F.count("*")
    ).first()
    return {"users": users, "items": items, "interactions": interactions}


def apply_filters(
    frame: DataFrame, config: PreparationConfig, num_rows: int
) -> tuple[DataFrame, dict[str, int]]:
    """Drop what the config does not want, and count the interactions dropped by each setting.

    Args:
        frame: Interactions with `line`.
        config: Which filters.
        num_rows: Of the frame.
    """
    dropped = {"vocabulary": 0, "min_rating": 0, "duplicates": 0, "min_interactions": 0}
    filters = {"min_rating": keep_ratings, "duplicates": keep_one, "min_interactions": keep_k_core}
    for setting, keep in filters.items():
        left = keep(frame, config)
        if left is frame:
            continue
        left = left.localCheckpoint()
        count = left.count()
        check_left(setting, getattr(config, setting), num_rows, count)
        dropped[setting] = num_rows - count
        frame, num_rows = left, count
    return frame, dropped


def keep_ratings(frame: DataFrame, config: PreparationConfig) -> DataFrame:
    """Keep what was rated min_rating or higher."""
    if config.min_rating is None:
        return frame
    if "rating" not in frame.columns:
        drop_low_ratings(pl.DataFrame(), config.min_rating)  # says so
    return frame.where(F.col("rating") >= F.lit(float(config.min_rating)))


def keep_one(frame: DataFrame, config: PreparationConfig) -> DataFrame:
    """Keep the first or the last of the interactions of a user with the same item."""
    if config.duplicates == "keep_all":
        return frame
    order = [name for name in ("timestamp", "line") if name in frame.columns]
    is_first = config.duplicates == "keep_first"
    columns = [F.col(name).asc() if is_first else F.col(name).desc() for name in order]
    repeats = Window.partitionBy("user", "item").orderBy(*columns)
    return (
        frame.withColumn("repeat", F.row_number().over(repeats)).where("repeat = 1").drop("repeat")
    )


def keep_k_core(frame: DataFrame, config: PreparationConfig) -> DataFrame:
    """Drop users and items with fewer interactions, until none is left that has fewer."""
    if config.min_interactions <= 1:
        return frame
    count = frame.count()
    while True:
        left = frame
        for column in ("user", "item"):
            enough = frame.groupBy(column).count().where(F.col("count") >= config.min_interactions)
            left = left.join(enough.select(column), column, "left_semi")
        # The plan of a round would hold those of all before it.
        left = left.localCheckpoint()
        num_left = left.count()
        if num_left in (0, count):
            return left
        frame, count = left, num_left


def sort_by_user(frame: DataFrame, items: list[str], first_id: int, num_shards: int) -> DataFrame:
    """Number the items, and put the users of each partition before those of the next one.

    Args:
        frame: Interactions with `line`.
        items: The catalog in the order of its ids.
        first_id: Of its first item.
        num_shards: How many partitions.

    Returns:
        Columns `user`, `id` and `timestamp` if there are times, each partition ordered by user and
        time; a user is in one partition.
    """
    numbers = pa.table({"item": items, "id": pa.array(range(first_id, first_id + len(items)))})
    ids = frame.sparkSession.createDataFrame(numbers)
    times = [name for name in ("timestamp",) if name in frame.columns]
    numbered = frame.join(ids, "item").select("user", "id", *times, "line")
    ordered = numbered.repartitionByRange(num_shards, "user").sortWithinPartitions(
        "user", *times, "line"
    )
    return ordered.select("user", "id", *times)


def list_items(frame: DataFrame) -> list[str]:
    """List the items, sorted by name as on one machine: by code points."""
    return sorted(row.item for row in frame.select("item").distinct().collect())


def find_row(
    table: ParquetTable, columns: Mapping[str, str], number: int, row: int
) -> dict[str, Any]:
    """Read a row as it stands in its file."""
    found = table.select(columns).where(F.col("row") == row).collect()
    found = [each for each in found if table.numbers[file_path(each.file)] == number]
    return {name: found[0][name] for name in columns}
