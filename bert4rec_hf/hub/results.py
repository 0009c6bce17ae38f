"""What runs leave behind as JSON, as records; files of older versions are upgraded when read."""

import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from bert4rec_hf.training.checkpoint import FORMER_NAMES

FORMER = FORMER_NAMES | {"num_warmup_looks": "num_warmup_validations"}
"""Names in files of before version 0.2, wherever in the file they stand."""


class MeasuredSplit(TypedDict):
    """A contestant on a held-out split."""

    metrics: dict[str, float]
    """By `name@k`."""

    intervals: dict[str, tuple[float, float]]
    """Bootstrap over users, 95 %."""

    by_popularity: dict[str, dict[str, float]]
    by_length: dict[str, dict[str, float]]
    seen_targets: NotRequired[dict[str, Any]]
    """How many targets repeat an item of their history, and what they change; since 0.2."""

    variety: NotRequired[dict[str, int | bool]]
    """How many different items are recommended, and whether that is a collapse; since 0.2."""

    target_sets: NotRequired[dict[str, float]]
    """Recall and NDCG of all targets of a history, where a split has several; since 0.2."""

    protocol: dict[str, Any]


class RunResults(TypedDict):
    """`results.json` of a run: what was trained, on what, with what, and the results."""

    run: str
    dataset_fingerprint: str
    num_processes: int
    experiment: dict[str, Any]
    training: dict[str, Any]
    memory: dict[str, Any]
    parameters: dict[str, int]
    dataset: dict[str, Any]
    test: MeasuredSplit
    validation: MeasuredSplit
    baselines: dict[str, MeasuredSplit]
    beyond_item_knn: NotRequired[dict[str, dict[str, Any]]]
    """By `name@k`: difference, interval and p_value of a paired bootstrap; since version 0.2."""

    share_of_best: dict[str, float]
    experts: NotRequired[dict[str, Any]]
    refit: NotRequired[dict[str, Any]]
    """Trained on everything: what is measured here is its twin."""

    device: dict[str, Any]
    mixed_precision: str
    dynamo_backend: str
    versions: dict[str, str]
    commit: NotRequired[str | None]


def upgrade(value: Any) -> Any:
    """Give what an older version wrote its present names.

    >>> upgrade({"training": {"looks": [{"step": 5}], "late_rise": 0.1}})
    {'training': {'validations': [{'step': 5}], 'still_improving': 0.1}}
    >>> upgrade({"exclude_seen": True, "ties": "against the model"})["seen_targets"]
    'ranked'
    """
    if isinstance(value, dict):
        named = {FORMER.get(name, name): upgrade(each) for name, each in value.items()}
        if {"exclude_seen", "ties"} <= named.keys():  # a protocol
            # Before 0.2 a target that repeats an item of its history was ranked like all others.
            return {"seen_targets": "ranked"} | named
        return named
    return [upgrade(each) for each in value] if isinstance(value, list) else value


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file of any version, of a run (RunResults) or of a study.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not JSON.
    """
    try:
        return upgrade(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a results file: {error}") from error
