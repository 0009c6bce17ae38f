import polars as pl
import pytest

from bert4rec_hf.data import reading
from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.reading import RawInteractions, collect_interactions

ROWS = [
    ("bea", "x", "30"),
    ("al", "z", "20"),
    ("bea", "y", "10"),
    ("al", "x", "20"),
    ("al", "z", "5.5"),
]


def names(frame):
    return list(zip(frame["user"].to_list(), frame["item"].to_list(), strict=True))


def test_interactions_come_in_order_of_time_and_ties_in_order_of_the_file(collect):
    frame = collect(ROWS).frame
    expected = [("al", "z"), ("bea", "y"), ("al", "z"), ("al", "x"), ("bea", "x")]
    assert names(frame) == expected
    assert frame["timestamp"].to_list() == [5.5, 10, 20, 20, 30]


def test_timestamps_keep_their_fractions_when_the_unit_is_smaller(collect):
    frame = collect([("a", "x", "1999"), ("a", "y", "1001")], unit="milliseconds").frame
    assert frame["timestamp"].to_list() == pytest.approx([1.001, 1.999])


def test_without_timestamps_the_order_of_the_file_stays(collect):
    frame = collect([row[:2] for row in ROWS], ("user", "item"), order="file").frame
    assert names(frame) == [row[:2] for row in ROWS]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("", "x", "1"), r"line 6 of ml\.csv has no user: .*'item': 'x'"),
        ((None, "x", "1"), "has no user"),
        (("a", "", "1"), "has no item"),
        (("a", "  ", "1"), "has no item"),
        (("a", "x", "2001-02-03"), "has a timestamp that is not a number: .*'2001-02-03'"),
        (("a", "x", "inf"), "has a timestamp that is not a number: .*'inf'"),
        (("a", "x", "nan"), "has no timestamp: .*'nan'"),
        (("a", "x", None), "has no timestamp: .*None"),
        (
            ("a", "x", "-1"),
            "has a negative timestamp: .*'-1'.*; 1 of 6 interactions cannot be used",
        ),
        (("a", "x", "0"), "has the timestamp 0: .*--allow-zero-timestamps takes it as a time"),
    ],
)
def test_the_first_row_that_cannot_be_used_is_shown(collect, row, message):
    with pytest.raises(ValueError, match=message):
        collect([*ROWS, row], name="ml.csv")


def test_a_source_without_rows_is_refused(collect):
    with pytest.raises(ValueError, match="ml.csv has no interactions"):
        collect([], name="ml.csv")


def test_a_rating_that_is_not_a_number_is_refused(collect):
    rows = [("a", "x", "good")]
    with pytest.raises(ValueError, match="has a rating that is not a number: .*'good'"):
        collect(rows, ("user", "item", "rating"), order="file", min_rating=1)


def test_what_does_not_fit_into_memory_is_refused_with_the_numbers(monkeypatch):
    frame = pl.DataFrame({"user": "u", "item": ["a", "b", "c"], "timestamp": "7"})
    raw = RawInteractions.from_frame(frame)
    monkeypatch.setattr(reading, "BYTES_PER_ROW", 10**9)
    room = iter([10**9, 2 * 10**9])
    message = (
        "ml.csv does not fit into memory: its first 3 interactions need 3.15 GB more, and 2.00"
    )
    with pytest.raises(ValueError, match=message):
        collect_interactions(raw, PreparationConfig(), "ml.csv", lambda: next(room))
    frame = collect_interactions(raw, PreparationConfig(), "ml.csv", lambda: 4 * 10**9).frame
    assert frame.height == 3
