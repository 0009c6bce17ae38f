"""One reader per public format, each into the same few columns; table SOURCES.

A reader looks at the first line, so that a wrong file is refused at once, and describes the rest as
a lazy polars frame: nothing else is read before `collect_interactions`. Text files may be gzipped.
"""

import gzip
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from .interactions import PreparationConfig
from .synthetic import generate_interactions

AMAZON_2014 = {
    "user": "reviewerID",
    "item": "asin",
    "rating": "overall",
    "timestamp": "unixReviewTime",
}
AMAZON_2023 = {
    "user": "user_id",
    "item": "parent_asin",
    "rating": "rating",
    "timestamp": "timestamp",
}
MOVIELENS = {"user": "userId", "item": "movieId", "rating": "rating", "timestamp": "timestamp"}
RECBOLE = {"user": "user_id", "item": "item_id", "rating": "rating", "timestamp": "timestamp"}


@dataclass(kw_only=True)
class RawInteractions:
    """What a reader hands over: where everything is, before it is read."""

    frame: pl.LazyFrame
    """Columns `user`, `item` and, where the source has them, `timestamp`, `rating`, `split`."""

    ticks_per_second: int = 1
    """Unit of the timestamps."""

    titles: Sequence[Path] = ()
    """Where this format usually has the titles of its items; none of them may exist."""

    best_possible: dict[str, float] = field(default_factory=dict)
    """Metrics that no model can beat, known where the interactions are generated."""


def read_ml100k(path: Path, config: PreparationConfig) -> RawInteractions:
    """MovieLens-100K, `u.data`: user, item, rating and timestamp between tabs, no header."""
    frame = scan_table(path, "\t", ["user", "item", "rating", "timestamp"])
    return RawInteractions(frame=frame, titles=[path.with_name("u.item")])


def read_ml1m(path: Path, config: PreparationConfig) -> RawInteractions:
    """MovieLens-1M, `ratings.dat`: user::item::rating::timestamp, no header."""
    frame = scan_table(path, "::", ["user", "item", "rating", "timestamp"])
    return RawInteractions(frame=frame, titles=[path.with_name("movies.dat")])


def read_movielens_csv(path: Path, config: PreparationConfig) -> RawInteractions:
    """MovieLens-20M, 25M, 32M and latest, `ratings.csv`: with header."""
    frame = choose_columns(scan_table(path, ","), MOVIELENS, path)
    return RawInteractions(frame=frame, titles=[path.with_name("movies.csv")])


def read_amazon_json(path: Path, config: PreparationConfig) -> RawInteractions:
    """Amazon reviews of 2014 and 2018, `Electronics_5.json.gz`: one JSON object a line."""
    category = path.name.split(".")[0].removeprefix("reviews_").removesuffix("_5")
    titles = [path.with_name(f"meta_{category}.json{ending}") for ending in ("", ".gz")]
    return RawInteractions(frame=scan_json_lines(path, AMAZON_2014), titles=titles)


def read_amazon2014_ratings_csv(path: Path, config: PreparationConfig) -> RawInteractions:
    """Amazon ratings of 2014, `ratings_Electronics.csv`: no header, the user comes first."""
    return RawInteractions(frame=scan_amazon_ratings(path, ["user", "item", "rating", "timestamp"]))


def read_amazon2018_ratings_csv(path: Path, config: PreparationConfig) -> RawInteractions:
    """Amazon ratings of 2018, `Electronics.csv`: no header, the item comes first."""
    return RawInteractions(frame=scan_amazon_ratings(path, ["item", "user", "rating", "timestamp"]))


def read_amazon2023_jsonl(path: Path, config: PreparationConfig) -> RawInteractions:
    """Amazon Reviews 2023, `Electronics.jsonl.gz`: one JSON object a line, milliseconds."""
    titles = amazon2023_titles(path)
    frame = scan_json_lines(path, AMAZON_2023)
    return RawInteractions(frame=frame, ticks_per_second=1000, titles=titles)


def read_amazon2023_rating_csv(path: Path, config: PreparationConfig) -> RawInteractions:
    """Amazon Reviews 2023, `5core_rating_only` or `0core`: csv with header, milliseconds."""
    titles = amazon2023_titles(path)
    frame = choose_columns(scan_table(path, ","), AMAZON_2023, path)
    return RawInteractions(frame=frame, ticks_per_second=1000, titles=titles)


def read_amazon2023_last_out(path: Path, config: PreparationConfig) -> RawInteractions:
    """Amazon Reviews 2023, `5core_last_out_w_his`: train csv, with valid and test beside it.

    The column of histories repeats what the rows of the same user say, and is not read.
    """
    if ".train." not in path.name:
        raise ValueError(f"name the file of the train split, <category>.train.csv, got {path.name}")
    files = {"train": "train", "validation": "valid", "test": "test"}
    parts = []
    for split, file in files.items():
        raw = read_amazon2023_rating_csv(
            path.with_name(path.name.replace(".train.", f".{file}.")), config
        )
        parts.append(raw.frame.with_columns(split=pl.lit(split)))
    return RawInteractions(frame=pl.concat(parts), ticks_per_second=1000, titles=raw.titles)


def read_recbole(path: Path, config: PreparationConfig) -> RawInteractions:
    """RecBole's `.inter`: columns between tabs, header like `user_id:token`.

    With a column `item_id_list`, a row is one user's whole history, its `item_id` the newest.
    """
    table = scan_table(path, "\t").rename(lambda name: name.split(":")[0])
    frame = choose_columns(table, RECBOLE, path, optional=("rating", "timestamp"))
    if "item_id_list" in table.collect_schema():
        if table.select(pl.col("user_id").is_duplicated().any()).collect().item():
            raise ValueError(
                f"{path.name} has several rows with item_id_list for one user, which repeat the "
                "beginning of a history; take the file that has one interaction per row"
            )
        items = pl.concat_str("item_id_list", "item_id", separator=" ", ignore_nulls=True)
        frame = table.select(user="user_id", item=items.str.extract_all(r"\S+")).explode("item")
    return RawInteractions(frame=frame, titles=[path.with_suffix(".item")])


def read_pairs(path: Path, config: PreparationConfig) -> RawInteractions:
    """`user item` a line, in the order of time, as in the repositories of BERT4Rec and SASRec."""
    separator = "\t" if "\t" in read_first_line(path) else " "
    return RawInteractions(frame=scan_table(path, separator, ["user", "item"]))


def read_sequences(path: Path, config: PreparationConfig) -> RawInteractions:
    """`user item item …` a line, in the order of time, as in the repository of S3-Rec."""
    # The unit separator occurs in no such file: a line is one column.
    words = scan_table(path, "\x1f", ["line"]).select(pl.col("line").str.extract_all(r"\S+"))
    frame = words.select(user=pl.col("line").list.first(), item=pl.col("line").list.slice(1))
    return RawInteractions(frame=frame.explode("item", empty_as_null=True))


def read_csv(path: Path, config: PreparationConfig) -> RawInteractions:
    """Any csv with header; the config names its columns."""
    return RawInteractions(frame=choose_columns(scan_table(path, ","), named_columns(config), path))


def read_jsonl(path: Path, config: PreparationConfig) -> RawInteractions:
    """Any file of JSON lines; the config names its columns."""
    return RawInteractions(frame=scan_json_lines(path, named_columns(config)))


def read_parquet(path: Path, config: PreparationConfig) -> RawInteractions:
    """Any parquet file; the config names its columns, and times may be datetimes."""
    frame = choose_columns(pl.scan_parquet(path), named_columns(config), path)
    if config.timestamp_column and frame.collect_schema()["timestamp"].is_temporal():
        frame = frame.with_columns(pl.col("timestamp").dt.epoch("us") / 1e6)
    return RawInteractions(frame=frame)


def read_synthetic(path: Path | None, config: PreparationConfig) -> RawInteractions:
    """Interactions with a known pattern, generated here; no file is read."""
    data = generate_interactions(config.synthetic)
    return RawInteractions(frame=data.interactions.lazy(), best_possible=data.best_possible)


def amazon2023_titles(path: Path) -> list[Path]:
    """Where the metadata of the same category would lie."""
    category = path.name.split(".")[0]
    return [path.with_name(f"meta_{category}.jsonl{ending}") for ending in ("", ".gz")]


def named_columns(config: PreparationConfig) -> dict[str, str]:
    """Where the config says that the columns of a generic source are."""
    columns = {"user": config.user_column, "item": config.item_column}
    if config.timestamp_column:
        columns["timestamp"] = config.timestamp_column
    return columns | {"rating": config.rating_column}


def choose_columns(
    table: pl.LazyFrame,
    columns: dict[str, str],
    path: Path,
    optional: Collection[str] = ("rating",),
) -> pl.LazyFrame:
    """Pick columns of a table and give them our names; an optional one may be missing.

    Args:
        table: All there is.
        columns: Our name → the name in the table.
        path: Named in messages.
        optional: Our names of the columns that need not be there.
    """
    found = table.collect_schema().names()
    missing = [name for ours, name in columns.items() if name not in found and ours not in optional]
    if missing:
        raise ValueError(
            f"{path.name} has no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, found))}: is it the right source and separator?"
        )
    return table.select(**{ours: name for ours, name in columns.items() if name in found})


def scan_table(path: Path, separator: str, names: list[str] | None = None) -> pl.LazyFrame:
    """Describe a file of separated columns, all of them texts.

    Args:
        path: Plain or gzipped.
        separator: One character, once or twice; only a comma goes together with quotes.
        names: Of the columns, in a file without header.
    """
    first_line = read_first_line(path)
    if names and first_line.count(separator) != len(names) - 1:
        raise ValueError(
            f"the first line of {path.name} is not {len(names)} columns between {separator!r} "
            f"({', '.join(names)}): {first_line[:80]!r}"
        )
    # Polars separates at one byte: inside a double separator it sees an empty column.
    table = pl.scan_csv(
        streamed(path),
        separator=separator[0],
        has_header=names is None,
        quote_char='"' if separator == "," else None,
        infer_schema=False,
    )
    if names is None:
        return table
    found = table.collect_schema().names()[:: len(separator)]
    return table.select(**dict(zip(names, found, strict=True)))


def scan_amazon_ratings(path: Path, names: list[str]) -> pl.LazyFrame:
    """Describe a file of Amazon's ratings, of which there are two with users and items swapped."""
    item = read_first_line(path).split(",")[names.index("item") :][:1]
    if item and len(item[0]) != 10:
        raise ValueError(
            f"in the first line of {path.name}, {item[0]!r} stands where an item with its 10 "
            "characters is expected; the files of 2014 begin with the user and those of 2018 with "
            "the item: amazon2014_ratings_csv, amazon2018_ratings_csv"
        )
    return scan_table(path, ",", names)


def scan_json_lines(path: Path, columns: dict[str, str]) -> pl.LazyFrame:
    """Describe a file of one JSON object a line, of which only the columns are read, as texts."""
    first_line = read_first_line(path)
    try:
        found = json.loads(first_line)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"the first line of {path.name} is not a JSON object, but {first_line[:80]!r}"
        )
    choose_columns(pl.LazyFrame(schema=list(found)), columns, path)
    present = {name: pl.String for name in columns.values() if name in found}
    return choose_columns(pl.scan_ndjson(streamed(path), schema=present), columns, path)


def read_first_line(path: Path) -> str:
    """Read the first line of a text file, which must be there and not be blank."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    open_text = gzip.open if path.suffix == ".gz" else Path.open
    with open_text(path, "rt", encoding="utf-8") as file:
        line = file.readline().rstrip("\r\n")
    if not line.strip():
        raise ValueError(f"{path.name} is empty, or begins with an empty line")
    return line


def streamed(path: Path) -> str:
    """Name a file such that polars reads it piece by piece.

    Named by its path, it is memory-mapped, and a compressed file counts as used memory in full.
    """
    return path.resolve().as_uri()


SOURCES: dict[str, Callable[[Path, PreparationConfig], RawInteractions]] = {
    "ml100k": read_ml100k,
    "ml1m": read_ml1m,
    "movielens_csv": read_movielens_csv,
    "amazon_json": read_amazon_json,
    "amazon2014_ratings_csv": read_amazon2014_ratings_csv,
    "amazon2018_ratings_csv": read_amazon2018_ratings_csv,
    "amazon2023_jsonl": read_amazon2023_jsonl,
    "amazon2023_rating_csv": read_amazon2023_rating_csv,
    "amazon2023_last_out": read_amazon2023_last_out,
    "recbole": read_recbole,
    "pairs": read_pairs,
    "sequences": read_sequences,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "synthetic": read_synthetic,
}
