"""One reader per public format, each into the same few columns; table SOURCES.

A reader looks at the first lines, so that a wrong file is refused at once; the rest is read block
by block in `collect_interactions`. Text files may be compressed.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import polars as pl

from .interactions import PreparationConfig
from .json_lines import JsonLines
from .parquet import Parquet
from .reading import RawInteractions
from .recbole import merge_lists
from .rows import Table, select_rows
from .separated import UNIT_SEPARATOR, SeparatedText
from .several import Files, describe_files, find_files, open_several
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
FOUR_COLUMNS = ("user", "item", "rating", "timestamp")


def read_ml100k(path: Path, config: PreparationConfig) -> RawInteractions:
    """MovieLens-100K, `u.data`: user, item, rating and timestamp between tabs, no header."""
    table = separated(path, config, "\t", FOUR_COLUMNS)
    return choose_columns(table, config, titles=[path.with_name("u.item")])


def read_ml1m(path: Path, config: PreparationConfig) -> RawInteractions:
    """MovieLens-1M, `ratings.dat`: user::item::rating::timestamp, no header."""
    table = separated(path, config, "::", FOUR_COLUMNS)
    return choose_columns(table, config, titles=[path.with_name("movies.dat")])


def read_movielens_csv(path: Path, config: PreparationConfig) -> RawInteractions:
    """MovieLens-20M, 25M, 32M and latest, `ratings.csv`: with header."""
    table = separated(path, config, ",")
    return choose_columns(table, config, MOVIELENS, titles=[path.with_name("movies.csv")])


def read_amazon_json(path: Path, config: PreparationConfig) -> RawInteractions:
    """Amazon reviews of 2014 and 2018, `Electronics_5.json.gz`: one JSON object a line."""
    category = path.name.split(".")[0].removeprefix("reviews_").removesuffix("_5")
    titles = [path.with_name(f"meta_{category}.json{ending}") for ending in ("", ".gz")]
    return choose_columns(json_lines(path, config), config, AMAZON_2014, titles=titles)


def read_amazon2014_ratings_csv(path: Path, config: PreparationConfig) -> RawInteractions:
    """Amazon ratings of 2014, `ratings_Electronics.csv`: no header, the user comes first."""
    return read_amazon_ratings(path, config, FOUR_COLUMNS)


def read_amazon2018_ratings_csv(path: Path, config: PreparationConfig) -> RawInteractions:
    """Amazon ratings of 2018, `Electronics.csv`: no header, the item comes first."""
    return read_amazon_ratings(path, config, ("item", "user", "rating", "timestamp"))


def read_amazon2023_jsonl(path: Path, config: PreparationConfig) -> RawInteractions:
    """Amazon Reviews 2023, `Electronics.jsonl.gz`: one JSON object a line, milliseconds."""
    raw = choose_columns(
        json_lines(path, config), config, AMAZON_2023, titles=amazon2023_titles(path)
    )
    raw.unit = "milliseconds"
    return raw


def read_amazon2023_rating_csv(path: Path | Files, config: PreparationConfig) -> RawInteractions:
    """Amazon Reviews 2023, `5core_rating_only` or `0core`: csv with header, milliseconds."""
    table = open_several(path, lambda each: separated(each, config, ","))
    raw = choose_columns(table, config, AMAZON_2023, titles=amazon2023_titles(table.path))
    raw.unit = "milliseconds"
    return raw


def read_amazon2023_last_out(path: Path, config: PreparationConfig) -> RawInteractions:
    """Amazon Reviews 2023, `5core_last_out_w_his`: train csv, with valid and test beside it.

    The column of histories repeats what the rows of the same user say, and is not read.
    """
    if ".train." not in path.name:
        raise ValueError(f"name the file of the train split, <category>.train.csv, got {path.name}")
    parts = {"train": "train", "validation": "valid", "test": "test"}
    paths = [path.with_name(path.name.replace(".train.", f".{part}.")) for part in parts.values()]
    files = Files(str(path), paths, list(parts))
    return describe_files(read_amazon2023_rating_csv(files, config), files)


def read_recbole(path: Path, config: PreparationConfig) -> RawInteractions:
    """RecBole's `.inter`: columns between tabs, header like `user_id:token`.

    With a column `item_id_list`, a row is one user's whole history, its `item_id` the newest.
    """
    table = separated(path, config, "\t", kind=RecBoleText)
    named = named_columns(config)
    columns = RECBOLE | {ours: name for ours, name in named.items() if name != ours}
    if columns.get("title") not in table.columns:
        columns.pop("title", None)
    titles = [path.with_suffix(".item")]
    if "item_id_list" not in table.columns:
        optional = {"rating"} if config.timestamp_column != "timestamp" else {"rating", "timestamp"}
        return choose_columns(table, config, columns, optional=optional, titles=titles)
    columns.pop("timestamp")
    raw = choose_columns(table, config, columns | {"list": "item_id_list"}, titles=titles)
    read, notes = merge_lists(raw.read)
    raw.read, raw.notes = read, raw.notes + notes
    raw.is_ordered = raw.has_line_per_user = True
    return raw


def read_pairs(path: Path, config: PreparationConfig) -> RawInteractions:
    """`user item` a line, in the order of time, as in the repositories of BERT4Rec and SASRec."""
    table = separated(path, config, " ", ("user", "item"))
    if "\t" in table.first_line:
        table = separated(path, config, "\t", ("user", "item"))
    raw = choose_columns(table, config, {"user": "user", "item": "item"})
    raw.is_ordered = True
    return raw


def read_sequences(path: Path, config: PreparationConfig) -> RawInteractions:
    """`user item item …` a line, in the order of time, as in the repository of S3-Rec."""
    # The unit separator occurs in no such file: a line is one column.
    table = separated(path, config, UNIT_SEPARATOR, ("text",))
    # What is wrong with the first line is seen at once.
    _ = table.first_line
    words = pl.col("text").str.extract_all(r"\S+")
    user = words.list.first() if config.user_column else pl.format("line {}", "line")
    items = words.list.slice(1 if config.user_column else 0)

    def read() -> Iterator[pl.DataFrame]:
        for block in table.read({"text": "text"}):
            rows = block.select("line", user=user, item=items)
            yield rows.explode("item", empty_as_null=True)

    return RawInteractions(
        read=read, is_ordered=True, has_line_per_user=bool(config.user_column), files=[path.name]
    )


def read_csv(path: Path | Files, config: PreparationConfig) -> RawInteractions:
    """Any csv, or a folder of them; the config names the columns."""
    table = open_several(path, lambda each: separated(each, config, ","))
    return choose_columns(table, config, named_columns(config))


def read_jsonl(path: Path | Files, config: PreparationConfig) -> RawInteractions:
    """Any file of JSON lines, or a folder of them; the config names the columns."""
    table = open_several(path, lambda each: json_lines(each, config))
    return choose_columns(table, config, named_columns(config))


def read_parquet(path: Path | Files, config: PreparationConfig) -> RawInteractions:
    """Any parquet file, or a folder of them; the config names the columns, times may be dates."""
    table = open_several(path, lambda each: Parquet(path=each, explode=config.explode))
    return choose_columns(table, config, named_columns(config))


def read_synthetic(path: Path | None, config: PreparationConfig) -> RawInteractions:
    """Interactions with a known pattern, generated here; no file is read."""
    data = generate_interactions(config.synthetic)
    return RawInteractions.from_frame(data.interactions, best_possible=data.best_possible)


def read_amazon_ratings(
    path: Path, config: PreparationConfig, names: tuple[str, ...]
) -> RawInteractions:
    """Amazon's ratings, of which there are two files with users and items swapped."""
    table = separated(path, config, ",", names)
    item = table.first_line.split(",")[names.index("item") :][:1]
    if item and len(item[0]) != 10:
        raise ValueError(
            f"in the first line of {path.name}, {item[0]!r} stands where an item with its 10 "
            "characters is expected; the files of 2014 begin with the user and those of 2018 with "
            "the item: amazon2014_ratings_csv, amazon2018_ratings_csv"
        )
    return choose_columns(table, config)


def amazon2023_titles(path: Path) -> list[Path]:
    """Where the metadata of the same category would lie."""
    category = path.name.split(".")[0]
    return [path.with_name(f"meta_{category}.jsonl{ending}") for ending in ("", ".gz")]


def named_columns(config: PreparationConfig) -> dict[str, str]:
    """Where the config says that the columns of a generic source are."""
    columns = {ours: getattr(config, f"{ours}_column") for ours in FOUR_COLUMNS}
    if config.title_column and not config.titles:
        columns["title"] = config.title_column
    return {ours: name for ours, name in columns.items() if name}


def separated(
    path: Path,
    config: PreparationConfig,
    separator: str,
    names: Sequence[str] = (),
    kind: type[SeparatedText] = SeparatedText,
) -> SeparatedText:
    """Describe a file of separated columns; of the usual separators a comma goes with quotes."""
    separator = config.separator or separator
    return kind(
        path=path,
        separator=separator,
        quote=config.quote if separator == "," or config.separator else "",
        names=tuple(config.header or names),
        encoding=config.encoding,
    )


def json_lines(path: Path, config: PreparationConfig) -> JsonLines:
    """Describe a file of JSON lines."""
    return JsonLines(path=path, encoding=config.encoding, explode=config.explode)


class RecBoleText(SeparatedText):
    """Separated text with the types of its columns in the header."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns without their types."""
        return [name.split(":")[0] for name in super().columns]


def choose_columns(
    table: Table,
    config: PreparationConfig,
    columns: dict[str, str] | None = None,
    *,
    optional: Collection[str] = ("rating",),
    titles: Sequence[Path] = (),
) -> RawInteractions:
    """Pick columns of a table and give them our names; an optional one may be missing.

    Args:
        table: All there is.
        config: Which rows are read, and whether ratings and times are needed.
        columns: Our name → the name in the table; None where they are the same.
        optional: Our names of the columns that need not be there.
        titles: As of RawInteractions.
    """
    columns = columns or dict(zip(FOUR_COLUMNS, FOUR_COLUMNS, strict=True))
    columns = find_columns(table, config, columns, optional)
    dropped = table.dropped if config.explode else Counter()
    read = select_rows(table, columns, config.where, dropped)
    return RawInteractions(read=read, titles=titles, files=[table.path.name], dropped=dropped)


def find_columns(
    table: Table,
    config: PreparationConfig,
    columns: dict[str, str],
    optional: Collection[str] = ("rating",),
) -> dict[str, str]:
    """Find the columns of a table that are read: our name → the name in the table.

    Takes the arguments of choose_columns.

    Raises:
        ValueError: One is missing, or stands there twice.
    """
    columns = dict(columns)
    if config.order == "file" or not config.timestamp_column:
        columns.pop("timestamp", None)
    found = table.columns
    is_given = config.min_rating is not None
    missing = [name for ours, name in columns.items() if name not in found and ours not in optional]
    if missing:
        raise ValueError(
            f"{table.path.name} has no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, found))}: is it the right source and separator?"
        )
    columns = {
        ours: name
        for ours, name in columns.items()
        if name in found and (ours != "rating" or is_given)
    }
    twice = [name for name in columns.values() if found.count(name) > 1]
    if twice:
        raise ValueError(f"{table.path.name} has several columns {twice[0]!r}; rename all but one")
    return columns


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


def open_source(
    source: str, path: Path | Files | None, config: PreparationConfig
) -> RawInteractions:
    """Look at a source, which may be a file, a folder of files, or none if it is generated."""
    if isinstance(path, Path) and path.is_dir():
        path = find_files(path, source)
    raw = SOURCES[source](path, config)
    return describe_files(raw, path) if isinstance(path, Files) else raw
