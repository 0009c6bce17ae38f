import numpy as np
import polars as pl
import pytest
from huggingface_hub.errors import StrictDataclassError

from bert4rec_hf.data.interactions import (
    PreparationConfig,
    build_histories,
    collect_interactions,
    count_distinct,
    drop_duplicates,
    drop_low_ratings,
    filter_k_core,
    measure_interactions,
)

ROWS = [
    ("bea", "x", "30"),
    ("al", "z", "20"),
    ("bea", "y", "10"),
    ("al", "x", "20"),
    ("al", "z", "5.5"),
]


def lazy(rows, columns=("user", "item", "timestamp")):
    return pl.LazyFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")


def names(frame):
    return list(zip(frame["user"].to_list(), frame["item"].to_list(), strict=True))


def test_interactions_come_in_order_of_time_and_ties_in_order_of_the_file():
    frame = collect_interactions(lazy(ROWS))
    expected = [("al", "z"), ("bea", "y"), ("al", "z"), ("al", "x"), ("bea", "x")]
    assert names(frame) == expected
    assert frame["timestamp"].to_list() == [5.5, 10, 20, 20, 30]


def test_timestamps_keep_their_fractions_when_the_unit_is_smaller():
    frame = collect_interactions(lazy([("a", "x", "1999"), ("a", "y", "1001")]), 1000)
    assert frame["timestamp"].to_list() == pytest.approx([1.001, 1.999])


def test_without_timestamps_the_order_of_the_file_stays():
    frame = collect_interactions(lazy([row[:2] for row in ROWS], ("user", "item")))
    assert names(frame) == [row[:2] for row in ROWS]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("", "x", "1"), r"interaction 6 of ml\.csv has no user: .*'item': 'x'"),
        ((None, "x", "1"), "has no user"),
        (("a", "", "1"), "has no item"),
        (("a", "  ", "1"), "has no item"),
        (("a", "x", "2001-02-03"), "has a timestamp that is not a number: .*'2001-02-03'"),
        (("a", "x", "nan"), "has a timestamp that is not a number"),
        (("a", "x", None), "has a timestamp that is not a number: .*None"),
        (
            ("a", "x", "-1"),
            "has a negative timestamp: .*'-1'.*; 1 of 6 interactions cannot be used",
        ),
    ],
)
def test_the_first_row_that_cannot_be_used_is_shown(row, message):
    with pytest.raises(ValueError, match=message):
        collect_interactions(lazy([*ROWS, row]), name="ml.csv")


def test_a_source_without_rows_is_refused():
    with pytest.raises(ValueError, match="ml.csv has no interactions"):
        collect_interactions(lazy([]), name="ml.csv")


def test_a_rating_that_is_not_a_number_is_refused():
    raw = lazy([("a", "x", "good")], ("user", "item", "rating"))
    with pytest.raises(ValueError, match="has a rating that is not a number: .*'good'"):
        collect_interactions(raw)


def test_low_ratings_are_dropped_and_the_limit_itself_stays():
    raw = lazy([("a", "x", "3.5"), ("a", "y", "4"), ("b", "x", "5")], ("user", "item", "rating"))
    frame = collect_interactions(raw)
    assert names(drop_low_ratings(frame, 4)) == [("a", "y"), ("b", "x")]
    assert drop_low_ratings(frame, 0).height == 3


def test_a_rating_limit_needs_ratings():
    with pytest.raises(ValueError, match="min_rating is 4, but the source has no ratings"):
        drop_low_ratings(collect_interactions(lazy(ROWS)), 4)


@pytest.mark.parametrize(
    ("duplicates", "expected"),
    [
        ("keep_all", [("al", "z"), ("bea", "y"), ("al", "z"), ("al", "x"), ("bea", "x")]),
        ("keep_first", [("al", "z"), ("bea", "y"), ("al", "x"), ("bea", "x")]),
        ("keep_last", [("bea", "y"), ("al", "z"), ("al", "x"), ("bea", "x")]),
    ],
)
def test_duplicates_are_first_and_last_in_time(duplicates, expected):
    assert names(drop_duplicates(collect_interactions(lazy(ROWS)), duplicates)) == expected


def plain_k_core(pairs, k):
    while True:
        users, items = [user for user, _ in pairs], [item for _, item in pairs]
        kept = [(u, i) for u, i in pairs if users.count(u) >= k and items.count(i) >= k]
        if len(kept) == len(pairs):
            return kept
        pairs = kept


@pytest.mark.parametrize("k", [0, 1, 3, 4, 30])
def test_k_core_equals_a_plain_loop(k):
    generator = np.random.default_rng(k)
    users, items = generator.zipf(1.6, (2, 303)) % 41
    pairs = [(f"u{user}", f"i{item}") for user, item in zip(users, items, strict=True)]
    filtered = filter_k_core(collect_interactions(lazy(pairs, ("user", "item"))), k)
    assert names(filtered) == plain_k_core(pairs, k)


def test_k_core_drops_in_rounds_until_nothing_changes():
    # q falls below two, so that b does, so that p does, so that a does.
    pairs = [("a", "p"), ("b", "p"), ("b", "q"), ("a", "r"), ("c", "r"), ("c", "s"), ("d", "s")]
    frame = collect_interactions(lazy(pairs, ("user", "item")))
    assert filter_k_core(frame, 2).is_empty()


def test_histories_are_numbered_by_name_and_ordered_by_time():
    histories = build_histories(collect_interactions(lazy(ROWS)))
    assert histories.users.to_list() == ["al", "bea"]
    assert histories.items.to_list() == ["x", "y", "z"]
    assert histories.offsets.tolist() == [0, 3, 5]
    assert histories.ids.tolist() == [4, 4, 2, 3, 2]
    assert histories.ids.dtype == np.int32
    assert histories.timestamps.tolist() == [5.5, 20, 20, 10, 30]
    assert histories.parts is None


def test_only_what_is_left_is_numbered():
    # y and aa fall first, then bea and zoe, then x, which is left to al alone.
    kept = filter_k_core(collect_interactions(lazy([*ROWS, ("zoe", "aa", "1")])), 2)
    histories = build_histories(kept)
    assert histories.users.to_list() == ["al"]
    assert histories.items.to_list() == ["z"]
    assert histories.ids.tolist() == [2, 2]


def test_counts_and_measures_are_those_worked_out_by_hand():
    frame = collect_interactions(lazy(ROWS))
    counts = {"users": 2, "items": 3, "interactions": 5}
    assert count_distinct(frame) == counts
    assert measure_interactions(build_histories(frame)) == {
        "after": counts,
        "lengths": {"mean": 2.5, "median": 2.5, "max": 3},
        "sparsity": pytest.approx(1 - 5 / 6),
        "tied_timestamps": pytest.approx(1 / 3),  # al's z and x, of three pairs of neighbours
    }


def test_the_tie_between_two_users_does_not_count():
    rows = [("a", "x", "1"), ("a", "y", "2"), ("b", "x", "2"), ("b", "y", "3")]
    measures = measure_interactions(build_histories(collect_interactions(lazy(rows))))
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
