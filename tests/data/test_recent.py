import numpy as np
import polars as pl
import pytest

from bert4rec_hf.data.recent import TargetCollator, TargetViews, read_recent
from bert4rec_hf.data.views import Views

ROWS = [
    ("ann", "alien", 1),
    ("bob", "heat", 2),
    ("ann", "zardoz", 3),  # old, and unknown: left out
    ("ann", "dune", 4),
    ("cem", "fargo", 5),  # new, but nothing before it
    ("ann", "heat", 6),
    ("bob", "tron", 6),  # a new item
    ("ann", "tron", 7),
]
CATALOG = ["alien", "dune", "fargo", "heat"]


@pytest.fixture
def interactions():
    frame = pl.DataFrame(ROWS, schema=["user", "item", "timestamp"], orient="row")
    return frame.with_columns(pl.col("timestamp").cast(pl.Float64)).with_row_index("row")


def test_what_is_recent_has_its_whole_history_before_it(interactions):
    recent = read_recent(interactions, CATALOG, since=5)
    assert recent.new_items == ["tron"]
    names = [None, None, *CATALOG, "tron"]
    histories = [[names[number] for number in history] for history in recent.histories]
    assert histories == [["alien", "dune", "heat", "tron"], ["heat", "tron"], ["fargo"]]
    assert recent.targets.tolist() == [2, 3, 5]
    assert recent.others.tolist() == [1]


def test_windows_end_with_their_target(interactions):
    recent = read_recent(interactions, CATALOG, since=5)
    views = TargetViews(recent.histories, recent.targets, max_history_length=3)
    histories, targets = views.split()
    assert [history.tolist() for history in histories] == [[2, 3], [3, 5], [5]]
    assert targets.tolist() == [5, 6, 6]


@pytest.mark.parametrize(
    ("since", "message"),
    [
        (8, "no interaction is as new as --since 8, the newest is of 7"),
        (7.5, "no interaction is as new as"),
    ],
)
def test_a_date_after_everything_is_refused(interactions, since, message):
    with pytest.raises(ValueError, match=message):
        read_recent(interactions, CATALOG, since)


def test_a_file_of_only_first_interactions_is_refused(interactions):
    first = interactions.filter(pl.col("user") == "cem")
    with pytest.raises(ValueError, match="none of the 1 interactions since 5 has an earlier one"):
        read_recent(first, CATALOG, 5)


def make_views():
    values = np.array([7, 8, 9, 5, 6], dtype=np.int32)
    return Views(values, np.array([0, 3]), np.array([3, 2]), np.array([1, 2], dtype=np.uint64))


def test_only_the_last_item_of_a_window_is_asked_for():
    batch = TargetCollator(max_history_length=4)(make_views())
    assert batch["input_ids"].tolist() == [[5, 1, 7, 8, 1]]
    assert batch["labels"].tolist() == [[-100, 6, -100, -100, 9]]


def test_a_causal_model_is_asked_at_the_item_before():
    batch = TargetCollator(max_history_length=4, is_causal=True)(make_views())
    assert batch["input_ids"].tolist() == [[5, 1, 7, 8, 1]]
    assert batch["labels"].tolist() == [[6, -100, -100, 9, -100]]
