import numpy as np
import pytest

from bert4rec_hf.data.filters import drop_duplicates, drop_low_ratings, filter_k_core

ROWS = [
    ("bea", "x", "30"),
    ("al", "z", "20"),
    ("bea", "y", "10"),
    ("al", "x", "20"),
    ("al", "z", "5.5"),
]


def names(frame):
    return list(zip(frame["user"].to_list(), frame["item"].to_list(), strict=True))


def test_low_ratings_are_dropped_and_the_limit_itself_stays(collect):
    rows = [("a", "x", "3.5"), ("a", "y", "4"), ("b", "x", "5"), ("b", "y", "-1")]
    frame = collect(rows, ("user", "item", "rating"), order="file").frame
    assert names(drop_low_ratings(frame, 4)) == [("a", "y"), ("b", "x")]
    assert drop_low_ratings(frame, 0).height == 3
    assert drop_low_ratings(frame, None).height == 4


def test_a_rating_limit_needs_ratings(collect):
    with pytest.raises(ValueError, match="min_rating is 4, but the source has no ratings"):
        drop_low_ratings(collect(ROWS).frame, 4)


@pytest.mark.parametrize(
    ("duplicates", "expected"),
    [
        ("keep_all", [("al", "z"), ("bea", "y"), ("al", "z"), ("al", "x"), ("bea", "x")]),
        ("keep_first", [("al", "z"), ("bea", "y"), ("al", "x"), ("bea", "x")]),
        ("keep_last", [("bea", "y"), ("al", "z"), ("al", "x"), ("bea", "x")]),
    ],
)
def test_duplicates_are_first_and_last_in_time(collect, duplicates, expected):
    assert names(drop_duplicates(collect(ROWS).frame, duplicates)) == expected


def plain_k_core(pairs, k):
    while True:
        users, items = [user for user, _ in pairs], [item for _, item in pairs]
        kept = [(u, i) for u, i in pairs if users.count(u) >= k and items.count(i) >= k]
        if len(kept) == len(pairs):
            return kept
        pairs = kept


@pytest.mark.parametrize("k", [0, 1, 3, 4, 30])
def test_k_core_equals_a_plain_loop(collect, k):
    generator = np.random.default_rng(k)
    users, items = generator.zipf(1.6, (2, 303)) % 41
    pairs = [(f"u{user}", f"i{item}") for user, item in zip(users, items, strict=True)]
    filtered = filter_k_core(collect(pairs, ("user", "item"), order="file").frame, k)
    assert names(filtered) == plain_k_core(pairs, k)


def test_k_core_drops_in_rounds_until_nothing_changes(collect):
    # q falls below two, so that b does, so that p does, so that a does.
    pairs = [("a", "p"), ("b", "p"), ("b", "q"), ("a", "r"), ("c", "r"), ("c", "s"), ("d", "s")]
    frame = collect(pairs, ("user", "item"), order="file").frame
    assert filter_k_core(frame, 2).is_empty()
