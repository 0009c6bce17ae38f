"""Public datasets of the hub whose files, columns and split are known here.

Facts are those of the datasets' cards and papers: Yambda (arXiv 2505.22238), VK-LSVD (its card),
Amazon Reviews 2023 (Hou et al., arXiv 2403.03952).
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Preset(NamedTuple):
    """What a configuration of a dataset consists of, and how it is prepared."""

    source: str
    """A name of the table SOURCES."""

    patterns: dict[str, str]
    """Split → pattern of its files; the empty split where files say nothing of it."""

    settings: dict[str, Any]
    """Of PreparationConfig; what the user gives counts more."""

    note: str = ""
    """What a user should know."""


DAY, GAP = 86_400, 1_800
YAMBDA_TEST_TIME = 26_000_000 - DAY
"""Times of Yambda are seconds since its beginning, in ticks of five."""

YAMBDA = {
    "user_column": "uid",
    "item_column": "item_id",
    "timestamp_column": "timestamp",
    "allow_zero_timestamps": True,
    "split": "temporal",
    "validation_time": str(YAMBDA_TEST_TIME - DAY - GAP),
    "test_time": str(YAMBDA_TEST_TIME),
    "gap": "30m",
    "targets": "all",
}
YAMBDA_LISTENS = {"rating_column": "played_ratio_pct", "min_rating": 50}
YAMBDA_NOTE = (
    "the benchmark of Yambda ranks items of the history too, and counts all items of the test day "
    "as targets: evaluate with --evaluation.exclude_seen false, and compare recall and NDCG of all "
    "targets; hit rate and the other NDCG are those of each user's first one. "
    "Histories here hold the half hour before the test, which the benchmark leaves out"
)


def choose_yambda(config: str) -> Preset:
    """`flat/50m/listens`, of three sizes and several kinds of events, one a row."""
    found = re.fullmatch(r"flat/(50m|500m|5b)/(\w+)", config)
    if not found:
        raise ValueError(
            "name the files by flat/SIZE/EVENTS, with a size of 50m, 500m or 5b and events such as "
            "listens or likes"
        )
    settings = dict(YAMBDA)
    if found[2] in ("listens", "multi_event"):
        settings |= YAMBDA_LISTENS
    if found[2] == "multi_event":
        settings["where"] = ["event_type=listen"]
    return Preset("parquet", {"": f"{config}.parquet"}, settings, YAMBDA_NOTE)


def choose_vk_lsvd(config: str) -> Preset:
    """`interactions`, or `subsamples/ur0.01_ir0.01`: a file a week, its rows in order of time."""
    settings = {
        "user_column": "user_id",
        "item_column": "item_id",
        "order": "file",
        "split": "given_next",
        "targets": "all",
    }
    patterns = {split: f"{config}/{split}/*.parquet" for split in ("train", "validation", "test")}
    note = (
        "every video shown counts; --where like=true, or --rating-column timespent --min-rating "
        "10, keeps those that were liked or watched for ten seconds"
    )
    return Preset("parquet", patterns, settings, note)


def choose_amazon(config: str) -> Preset:
    """`benchmark/5core/last_out/All_Beauty`, or as the dataset's loader: `5core_last_out_…`."""
    reviews = re.fullmatch(r"raw(?:/review_categories/|_review_)(\w+)", config)
    if reviews:
        pattern = {"": f"raw/review_categories/{reviews[1]}.jsonl"}
        return Preset("amazon2023_jsonl", pattern, {})
    kinds = "last_out_w_his|timestamp_w_his|rating_only|last_out|timestamp"
    found = re.fullmatch(rf"(?:benchmark/)?([05]core)[/_]({kinds})[/_](\w+)", config)
    if not found:
        raise ValueError(
            "name the files by benchmark/CORE/SPLIT/CATEGORY, with 0core or 5core and rating_only, "
            "last_out or timestamp, or by raw_review_CATEGORY"
        )
    core, kind, category = found.groups()
    stem = f"benchmark/{core}/{kind}/{category}"
    if kind == "rating_only":
        return Preset("amazon2023_rating_csv", {"": f"{stem}.csv"}, {})
    patterns = {"train": "train", "validation": "valid", "test": "test"}
    patterns = {split: f"{stem}.{part}.csv" for split, part in patterns.items()}
    split = "given" if kind.startswith("last_out") else "given_next"
    return Preset("amazon2023_rating_csv", patterns, {"split": split})


PRESETS: dict[str, Callable[[str], Preset]] = {
    "yandex/yambda": choose_yambda,
    "deepvk/VK-LSVD": choose_vk_lsvd,
    "McAuley-Lab/Amazon-Reviews-2023": choose_amazon,
}
"""Repository → what `--config` names of it."""
