"""Which settings act with which source and split; the others are refused, not ignored."""

from collections.abc import Collection
from dataclasses import fields

from .interactions import PreparationConfig

COLUMNS = {"user_column", "item_column", "timestamp_column", "rating_column"}
HEADED = {"movielens_csv", "amazon_json", "amazon2023_jsonl", "amazon2023_rating_csv"}
HEADED |= {"amazon2023_last_out", "recbole", "csv", "jsonl", "parquet"}
HEADLESS = {"ml100k", "ml1m", "amazon2014_ratings_csv", "amazon2018_ratings_csv", "pairs"}
FILES = HEADED | HEADLESS | {"sequences"}
GENERIC = {"csv", "jsonl", "parquet", "recbole"}
TIMED = FILES - {"pairs", "sequences"}

SOURCES_OF = {
    **dict.fromkeys(COLUMNS, GENERIC),
    "user_column": GENERIC | {"sequences"},
    "separator": {"csv", "recbole", "pairs"},
    "quote": {"csv"},
    "header": {"csv"},
    "encoding": FILES - {"parquet"},
    "where": HEADED | HEADLESS,
    "explode": {"jsonl", "parquet"},
    "order": TIMED,
    "timestamp_format": TIMED,
    "allow_zero_timestamps": TIMED,
    "allow_negative_timestamps": TIMED,
    "missing": FILES,
    "drop_incomplete": FILES,
    "titles": FILES,
    "title_column": FILES,
    "synthetic": {"synthetic"},
}
"""Setting → the sources that it acts with; those that are not here act with all."""

SPLITS_OF = {
    "validation_users": {"leave_one_out", "by_user"},
    "test_users": {"by_user"},
    "validation_time": {"temporal"},
    "test_time": {"temporal"},
    "test_last": {"temporal"},
    "gap": {"temporal"},
    "targets": {"temporal", "given_next"},
}
"""Setting → the splits that it acts with."""


def check_settings(source: str, config: PreparationConfig, given: Collection[str] = ()) -> None:
    """Refuse settings that would not act.

    Args:
        source: A name of the table SOURCES.
        config: All settings.
        given: Settings that were given even where they have their default.

    Raises:
        ValueError: One does not act with this source, this split, or without another.
    """
    default = PreparationConfig()
    changed = {
        field.name
        for field in fields(config)
        if getattr(config, field.name) != getattr(default, field.name)
    }
    changed |= set(given)
    if config.synthetic == type(config.synthetic)(seed=config.synthetic.seed):
        changed.discard("synthetic")
    for setting in sorted(changed):
        for what, name, table in (
            ("source", source, SOURCES_OF),
            ("split", config.split, SPLITS_OF),
        ):
            if name not in table.get(setting, {name}):
                raise ValueError(
                    f"the {what} {name} does not use {setting}; it applies to "
                    f"{', '.join(sorted(table[setting]))}"
                )
    _check_together(config, changed)


def _check_together(config: PreparationConfig, changed: set[str]) -> None:
    """Refuse settings that another one leaves without effect."""
    without_times = config.order == "file" or not config.timestamp_column
    idle = {
        "rating_column": config.min_rating is None and "it is read only with min_rating",
        "timestamp_format": without_times and "order=file reads no times",
        "allow_zero_timestamps": without_times and "order=file reads no times",
        "allow_negative_timestamps": without_times and "order=file reads no times",
        "timestamp_column": config.order == "file"
        and bool(config.timestamp_column)
        and "order=file reads no times",
    }
    for setting, reason in idle.items():
        if setting in changed and reason:
            raise ValueError(f"{setting} would have no effect: {reason}")
