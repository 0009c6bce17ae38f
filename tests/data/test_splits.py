from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from bert4rec_hf.data.interactions import PreparationConfig, build_histories
from bert4rec_hf.data.reading import RawInteractions, collect_interactions
from bert4rec_hf.data.splits import SPLITS, split_interactions

HISTORIES = {"ann": "abcde", "bob": "bca", "cy": "db", "dee": "e", "eve": "adbc"}
TIMES = {
    "ann": [10, 20, 30, 40, 50],
    "bob": [10, 30, 30],
    "cy": [35, 45],
    "dee": [5],
    "eve": [1, 2, 3, 4],
}


def collect(frame):
    order = "time" if "timestamp" in frame.columns else "file"
    raw = RawInteractions.from_frame(frame)
    return collect_interactions(
        raw, PreparationConfig(order=order, allow_zero_timestamps=True)
    ).frame


def make_interactions(parts=None, with_times=True):
    rows = [
        {"user": user, "item": item, "timestamp": time, "split": parts and parts[user][place]}
        for user, items in HISTORIES.items()
        for place, (item, time) in enumerate(zip(items, TIMES[user], strict=True))
    ]
    frame = pl.DataFrame(rows)
    frame = frame if parts else frame.drop("split")
    return build_histories(collect(frame if with_times else frame.drop("timestamp")))


def read(split, histories, interactions, part):
    """Name the part's users, histories and targets as in HISTORIES."""
    letters = np.array(["?", "?", *interactions.items])
    rows = histories[part]
    targets = [""] * len(rows) if rows.targets is None else letters[rows.targets]
    return {
        interactions.users[int(user)]: ("".join(letters[rows[place]]), str(targets[place]))
        for place, user in enumerate(getattr(split, part).users)
    }


def split_by(interactions=None, **settings):
    interactions = interactions or make_interactions()
    split, histories = split_interactions(interactions, PreparationConfig(**settings))
    train, validation, test = (
        read(split, histories, interactions, part) for part in ("train", "validation", "test")
    )
    return {user: items for user, (items, _) in train.items()}, validation, test, split


def test_leave_one_out_holds_out_the_last_two_and_short_histories_only_train():
    train, validation, test, split = split_by(split="leave_one_out")
    assert train == {"ann": "abc", "bob": "b", "cy": "db", "dee": "e", "eve": "ad"}
    assert validation == {"ann": ("abc", "d"), "bob": ("b", "c"), "eve": ("ad", "b")}
    assert test == {"ann": ("abcd", "e"), "bob": ("bc", "a"), "eve": ("adb", "c")}
    assert split.left_out == {"too few interactions to hold out, training only": 2}
    assert split.count_used() == 15


def test_leave_one_out_with_few_validation_users_trains_all_others_on_all_but_the_last():
    train, validation, test, split = split_by(validation_users=1, seed=3)
    (drawn,) = validation
    assert drawn in {"ann", "bob", "eve"}
    whole = {"ann": "abcd", "bob": "bc", "cy": "d", "dee": "e", "eve": "adb"}
    assert train == whole | {drawn: HISTORIES[drawn][:-2]}
    assert test == {
        user: (HISTORIES[user][:-1], HISTORIES[user][-1]) for user in ("ann", "bob", "cy", "eve")
    }
    assert split.left_out == {"too few interactions to hold out, training only": 1}


def test_the_same_seed_draws_the_same_users_and_another_seed_others():
    draws = [tuple(split_by(validation_users=1, seed=seed)[1]) for seed in [0, 1, 2, 3, 4, 5] * 2]
    assert draws[:6] == draws[6:]
    assert len(set(draws)) > 1


def test_temporal_targets_are_the_first_at_or_after_each_point_in_time():
    train, validation, test, split = split_by(
        split="temporal", validation_time="30", test_time="1970-01-01T00:00:40"
    )
    assert train == {"ann": "ab", "bob": "b", "dee": "e", "eve": "adbc"}
    assert validation == {"ann": ("ab", "c"), "bob": ("b", "c")}
    assert test == {"ann": ("abc", "d"), "cy": ("d", "b")}
    assert split.left_out == {
        "nothing before the validation target": 1,  # cy begins at 35
        "nothing before the test target": 0,
    }
    assert split.count_used() == 13  # not ann's e nor the a of bob


def test_a_date_means_midnight_utc():
    dated, unix = ("1970-01-01", "0.0"), ("1970-01-02", "86400")
    for validation_time, test_time in ((dated[0], unix[1]), (dated[1], unix[0])):
        with pytest.raises(ValueError, match="leaves no history for train"):
            split_by(split="temporal", validation_time=validation_time, test_time=test_time)


def test_by_user_holds_out_whole_users():
    train, validation, test, split = split_by(split="by_user", validation_users=1, test_users=2)
    assert len(validation), len(test) == (1, 2)
    assert sorted([*train, *validation, *test]) == sorted(HISTORIES)
    assert train == {user: HISTORIES[user] for user in train}
    assert "dee" in train
    for user, example in (validation | test).items():
        assert example == (HISTORIES[user][:-1], HISTORIES[user][-1])
    assert split.left_out == {"too few interactions to hold out, training only": 1}


T, V, E = "train", "validation", "test"


def test_the_given_split_is_taken_as_it_is():
    parts = {"ann": [T, T, T, V, E], "bob": [T, T, E], "cy": [T, V], "dee": [E], "eve": [T] * 4}
    train, validation, test, split = split_by(make_interactions(parts), split="given")
    assert train == {"ann": "abc", "bob": "bc", "cy": "d", "eve": "adbc"}
    assert validation == {"ann": ("abc", "d"), "cy": ("d", "b")}
    assert test == {"ann": ("abcd", "e"), "bob": ("bc", "a")}
    assert split.left_out["nothing before the test target"] == 1
    assert split.count_used() == 14


@pytest.mark.parametrize(
    "ann", [[T, T, V, T, E], [T, T, V, V, E], [T, T, E, E, E], [T, T, T, E, V]]
)
def test_a_given_split_that_mixes_past_and_future_is_refused(ann):
    parts = {"ann": ann, "bob": [T, V, E], "cy": [T, V], "dee": [T], "eve": [T] * 4}
    with pytest.raises(ValueError, match="1 users do not have train, .* the first is 'ann'"):
        split_by(make_interactions(parts), split="given")


def test_of_several_given_targets_the_first_is_taken():
    parts = {"ann": [T, T, V, V, E], "bob": [T, E, E], "cy": [V, V], "dee": [E], "eve": [T] * 4}
    train, validation, test, split = split_by(make_interactions(parts), split="given_next")
    assert train == {"ann": "ab", "bob": "b", "eve": "adbc"}
    assert validation == {"ann": ("ab", "c")}
    assert test == {"ann": ("abcd", "e"), "bob": ("b", "c")}
    assert split.left_out == {
        "nothing before the validation target": 1,
        "nothing before the test target": 1,
    }


def test_all_items_of_a_part_can_be_targets():
    settings = {"split": "temporal", "validation_time": "40", "test_time": "70", "targets": "all"}
    users = {"ann": "abcdbeb", "bob": "abab", "cy": "ab"}
    times = {"ann": [10, 20, 40, 50, 60, 70, 80], "bob": [30, 71, 72, 73], "cy": [40, 90]}
    rows = [
        (user, item, time)
        for user in users
        for item, time in zip(users[user], times[user], strict=True)
    ]
    frame = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    interactions = build_histories(collect(frame))
    split, parts = split_interactions(interactions, PreparationConfig(**settings))
    letters = {
        name: [[interactions.items[int(id) - 2] for id in ids] for ids in parts[name].target_sets]
        for name in ("validation", "test")
    }
    assert letters == {
        "validation": [["b", "c", "d"]],  # of ann; cy has nothing before it
        "test": [["b", "e"], ["a", "b"], ["b"]],
    }
    assert parts["train"].target_sets is None
    assert parts["test"].targets.tolist() == [6, 3, 3]  # e of ann, b of bob and cy
    assert split.count_used("all") == 7 + 4 + 2
    assert split.count_used() == 6 + 2 + 2
    drawn = parts["test"].draw(2, seed=3)
    for target, its_set in zip(drawn.targets, drawn.target_sets, strict=True):
        assert target in its_set
    frame = frame.with_columns(item=pl.lit("x"))
    _, others = split_interactions(build_histories(collect(frame)), PreparationConfig(**settings))
    assert [each.tolist() for each in others["test"].target_sets] == [[2], [2], [2]]


@pytest.mark.parametrize("ann", [[T, T, V, T, E], [T, V, E, E, V], [T, E, T, T, T]])
def test_parts_in_time_that_mix_past_and_future_are_refused(ann):
    parts = {"ann": ann, "bob": [T, V, E], "cy": [T, V], "dee": [T], "eve": [T] * 4}
    with pytest.raises(ValueError, match="1 users do not have train, .* the first is 'ann'"):
        split_by(make_interactions(parts), split="given_next")


@pytest.mark.parametrize(
    "settings",
    [
        {"split": "leave_one_out"},
        {"split": "leave_one_out", "validation_users": 23},
        {"split": "temporal", "validation_time": "60", "test_time": "80"},
        {"split": "by_user", "validation_users": 11, "test_users": 17},
    ],
)
def test_no_target_is_trained_on_and_none_is_in_its_own_history(settings):
    generator = np.random.default_rng(5)
    users, times = generator.integers(101, size=907), generator.integers(100, size=907)
    # Every interaction has an item of its own, so that a leak can be seen.
    rows = {"user": users.astype(str), "item": np.arange(907).astype(str), "timestamp": times}
    interactions = build_histories(collect(pl.DataFrame(rows)))
    _, histories = split_interactions(interactions, PreparationConfig(**settings))
    trained = set(histories["train"].values.tolist())
    assert len(trained) == len(histories["train"].values)
    for part in (histories["validation"], histories["test"]):
        assert len(part) > 5
        assert trained.isdisjoint(part.targets.tolist())
        assert all(target not in part[i] for i, target in enumerate(part.targets))
    assert set(histories["validation"].targets).isdisjoint(histories["test"].targets)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_users": 4}, "validation_users asks for 4 users, but only 3 have enough"),
        ({"split": "by_user"}, "needs validation_users and test_users, got 0 and 0"),
        (
            {"split": "by_user", "validation_users": 3, "test_users": 2},
            "asks for 5 users, but only 4 have enough",
        ),
        (
            {"split": "temporal", "validation_time": "soon", "test_time": "9"},
            "validation_time must be unix seconds or an ISO date like 2015-03-01, got 'soon'",
        ),
        (
            {"split": "temporal", "validation_time": "9", "test_time": "8"},
            "validation_time must come before test_time, got 1970-01-01 00:00:09 and 1970-01-01 ",
        ),
        (
            {"split": "temporal", "validation_time": "60", "test_time": "70"},
            "the split temporal leaves no history for validation: the longest of 5 users has 5",
        ),
        ({"split": "given"}, "the split given needs a source with its own split"),
        ({"split": "given_next"}, "the split given_next needs a source with its own split"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        split_by(**settings)


def test_a_temporal_split_needs_timestamps():
    with pytest.raises(ValueError, match="temporal needs timestamps"):
        split_by(make_interactions(with_times=False), split="temporal")


def test_histories_that_are_all_too_short_are_refused():
    frame = pl.DataFrame({"user": ["a", "a", "b"], "item": ["x", "y", "x"]})
    with pytest.raises(ValueError, match="leave_one_out leaves no history for validation"):
        split_by(build_histories(collect(frame)))


def test_every_split_of_the_table_has_the_name_of_its_function():
    assert all(split.__name__ == name for name, split in SPLITS.items())


def test_a_history_can_be_read_from_both_ends():
    _, histories = split_interactions(make_interactions(), PreparationConfig())
    train = histories["train"]
    assert train[-1].tolist() == train[len(train) - 1].tolist()
    with pytest.raises(IndexError):
        train[len(train)]
    assert replace(train, targets=np.zeros(5)).targets.sum() == 0


def test_everything_trains_where_nothing_is_held_out():
    train, validation, test, split = split_by(split="none")
    assert train == HISTORIES
    assert validation == test == split.left_out == {}
    assert split.count_used() == 15


def test_a_gap_before_validation_is_not_trained_on():
    train, validation, test, _ = split_by(
        split="temporal", validation_time="40", test_time="45", gap="10s"
    )
    assert train == {"ann": "ab", "bob": "b", "dee": "e", "eve": "adbc"}
    assert validation == {"ann": ("abc", "d")}
    assert test == {"ann": ("abcd", "e"), "cy": ("d", "b")}


def test_the_last_seconds_test_and_as_many_before_validate():
    # The last time is 50: what comes after 41 tests, and what comes after 32 validates.
    train, validation, test, _ = split_by(split="temporal", test_last="9s")
    assert train == {"ann": "abc", "bob": "bca", "dee": "e", "eve": "adbc"}
    assert validation == {"ann": ("abc", "d")}
    assert test == {"ann": ("abcd", "e"), "cy": ("d", "b")}
    with pytest.raises(ValueError, match="test_time=45 and test_last=9s both say where"):
        split_by(split="temporal", test_last="9s", test_time="45")


@pytest.mark.parametrize("span", ["1", "d", "-1d", "1y", "infd", "nand"])
def test_a_span_of_time_that_is_none_is_refused(span):
    with pytest.raises(ValueError, match=f"test_last must be a span .* like 12h, 1d .* '{span}'"):
        split_by(split="temporal", test_last=span)
