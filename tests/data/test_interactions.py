import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError

from bert4rec_hf.data.filters import filter_k_core
from bert4rec_hf.data.interactions import (
    PreparationConfig,
    build_histories,
    count_copies,
    count_distinct,
    measure_interactions,
)

ROWS = [
    ("bea", "x", "30"),
    ("al", "z", "20"),
    ("bea", "y", "10"),
    ("al", "x", "20"),
    ("al", "z", "5.5"),
]


def test_histories_are_numbered_by_name_and_ordered_by_time(collect):
    histories = build_histories(collect(ROWS).frame)
    assert histories.users.to_list() == ["al", "bea"]
    assert histories.items.to_list() == ["x", "y", "z"]
    assert histories.offsets.tolist() == [0, 3, 5]
    assert histories.ids.tolist() == [4, 4, 2, 3, 2]
    assert histories.ids.dtype == np.int32
    assert histories.timestamps.tolist() == [5.5, 20, 20, 10, 30]
    assert histories.parts is None


def test_only_what_is_left_is_numbered(collect):
    # y and aa fall first, then bea and zoe, then x, which is left to al alone.
    kept = filter_k_core(collect([*ROWS, ("zoe", "aa", "1")]).frame, 2)
    histories = build_histories(kept)
    assert histories.users.to_list() == ["al"]
    assert histories.items.to_list() == ["z"]
    assert histories.ids.tolist() == [2, 2]


def test_counts_and_measures_are_those_worked_out_by_hand(collect):
    frame = collect(ROWS).frame
    counts = {"users": 2, "items": 3, "interactions": 5}
    assert count_distinct(frame) == counts
    assert measure_interactions(build_histories(frame)) == {
        "after": counts,
        "lengths": {"mean": 2.5, "median": 2.5, "max": 3},
        "sparsity": pytest.approx(1 - 5 / 6),
        "tied_timestamps": pytest.approx(1 / 3),  # al's z and x, of three pairs of neighbours
    }


def test_exact_copies_are_counted(collect):
    rows = [("a", "x", "1"), ("a", "y", "1"), ("a", "x", "1"), ("a", "x", "2"), ("a", "x", "1")]
    rows += [("b", "x", "1"), ("b", "x", "3")]
    assert count_copies(build_histories(collect(rows).frame)) == 2
    assert count_copies(build_histories(collect(ROWS).frame)) == 0


def test_the_tie_between_two_users_does_not_count(collect):
    rows = [("a", "x", "1"), ("a", "y", "2"), ("b", "x", "2"), ("b", "y", "3")]
    measures = measure_interactions(build_histories(collect(rows).frame))
    assert measures["tied_timestamps"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"duplicates": "first"}, "duplicates.*expected one of .*keep_all.*got first"),
        ({"min_interactions": -1}, "min_interactions must be 0 or more, got -1"),
        ({"min_interactions": "5"}, "min_interactions.*expected int, got str"),
        ({"test_users": -2}, "must be 0 or more, got 0 and -2"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(StrictDataclassError, match=f"(?s){message}"):
        PreparationConfig(**settings)
