"""Who trains, validates and tests: each split holds out targets that training never sees.

Two numbers per history describe every part of a split: whose it is, and how many of the user's
first interactions belong to it. In validation and test the interaction right after is the target.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from .histories import SPLIT_NAMES, Histories
from .interactions import Interactions, PreparationConfig
from .times import read_duration, write_date


class EmptyPartError(ValueError):
    """A split leaves a part without a history."""

    def __init__(self, split: str, part: str, found: str):
        super().__init__(f"the split {split} leaves no history for {part}: {found}")


class Prefixes(NamedTuple):
    """The beginnings of some users' histories."""

    users: np.ndarray
    """(histories,) which user."""

    lengths: np.ndarray
    """(histories,) how many of the user's first interactions."""

    @classmethod
    def where(cls, chosen: np.ndarray, lengths: np.ndarray) -> "Prefixes":
        """Take the chosen users; both arguments have one entry per user."""
        return cls(np.flatnonzero(chosen), lengths[chosen])

    def copy_from(self, interactions: Interactions, *, has_targets: bool) -> Histories:
        """Copy the items, and as target the item right after, which is no part of the history."""
        starts = interactions.offsets[self.users]
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        places = np.repeat(starts - offsets[:-1], self.lengths) + np.arange(offsets[-1])
        targets = interactions.ids[starts + self.lengths] if has_targets else None
        return Histories(interactions.ids[places], offsets, targets)

    def copy_sets(self, interactions: Interactions, counts: np.ndarray) -> Histories:
        """Copy the ids of the items that follow each history, sorted and each once.

        Args:
            interactions: All of them.
            counts: (histories,) how many interactions to look at.
        """
        rows = np.repeat(np.arange(len(counts)), counts)
        starts = interactions.offsets[self.users] + self.lengths
        first = np.cumsum(counts) - counts
        places = np.arange(len(rows)) + np.repeat(starts - first, counts)
        base = int(interactions.ids.max(initial=0)) + 1
        rows, ids = np.divmod(np.unique(rows * base + interactions.ids[places]), base)
        ends = np.cumsum(np.bincount(rows, minlength=len(counts)))
        return Histories(ids.astype(np.int32), np.append(0, ends))


class Split(NamedTuple):
    """Three sets of histories, and how many users were left out of validation or test, and why."""

    train: Prefixes
    validation: Prefixes
    test: Prefixes
    left_out: dict[str, int]
    following: dict[str, np.ndarray] | None = None
    """Of validation and test, (histories,) the interactions of the part that follow each history,
    the target among them; None where a user has one target only."""

    def count_used(self, targets: str = "next") -> int:
        """Interactions that are part of a history or a target; those of test and training count."""
        following = self.following if targets == "all" else {}
        last = np.zeros(1 + max(part.users.max(initial=0) for part in self[:3]), dtype=np.int64)
        for name, part in zip(SPLIT_NAMES, self[:3], strict=True):
            num_targets = following.get(name, 0 if name == "train" else 1)
            last[part.users] = np.maximum(last[part.users], part.lengths + num_targets)
        return int(last.sum())


def split_interactions(
    interactions: Interactions, config: PreparationConfig
) -> tuple[Split, dict[str, Histories]]:
    """Split as the config says.

    Returns:
        Who is where, and the histories of train, validation and test.

    Raises:
        EmptyPartError: A part is left without a history.
    """
    split = SPLITS[config.split](interactions, config)
    histories = {}
    for name, prefixes in zip(SPLIT_NAMES, split[:3], strict=True):
        if len(prefixes.users) == 0 and config.split != "none":
            times = interactions.timestamps
            time_range = None if times is None else (times.min(), times.max())
            lengths = interactions.lengths
            found = describe_users(len(lengths), lengths.max(), time_range, split.left_out)
            raise EmptyPartError(config.split, name, found)
        part = prefixes.copy_from(interactions, has_targets=name != "train")
        if config.targets == "all" and name != "train":
            sets = prefixes.copy_sets(interactions, split.following[name])
            part = replace(part, target_sets=sets)
        histories[name] = part
    return split, histories


def none(interactions: Interactions, config: PreparationConfig) -> Split:
    """Train on everything, for a model that is shipped; nothing validates or tests it."""
    lengths = interactions.lengths
    nobody = np.zeros(len(lengths), dtype=bool)
    empty = Prefixes.where(nobody, lengths)
    return Split(train=Prefixes.where(~nobody, lengths), validation=empty, test=empty, left_out={})


def leave_one_out(interactions: Interactions, config: PreparationConfig) -> Split:
    """Hold out the last two interactions: the last one tests, the one before validates.

    A history that tests contains the validation item. With `validation_users`, only so many users,
    drawn with the seed, validate; all others train on everything but their last interaction. Users
    who are too short to hold out from, below three interactions (two where nothing is held
    out to validate), only train, as is usual in the field.
    """
    lengths = interactions.lengths
    validates = lengths >= 3
    tests = validates
    if config.validation_users:
        validates = _draw(validates, config.validation_users, config, "validation_users")
        tests = lengths >= 2
    train_lengths = lengths - tests - validates
    return Split(
        train=Prefixes.where(train_lengths > 0, train_lengths),
        validation=Prefixes.where(validates, lengths - 2),
        test=Prefixes.where(tests, lengths - 1),
        left_out={"too few interactions to hold out, training only": int((~tests).sum())},
    )


def temporal(interactions: Interactions, config: PreparationConfig) -> Split:
    """Divide past from future at two points in time that are the same for all users.

    Training sees what happened before `validation_time`, without the `gap` right before it. A user
    validates with the first interaction from then on, if it comes before `test_time`, and tests
    with the first from `test_time` on; everything the user did before the target is the model's
    input.
    """
    if interactions.timestamps is None:
        raise ValueError("the split temporal needs timestamps, and the source has only an order")
    validation_time, test_time = find_borders(interactions, config)
    if not validation_time < test_time:
        raise ValueError(
            f"validation_time must come before test_time, got {write_date(validation_time)} and "
            f"{write_date(test_time)}"
        )
    before_validation = _count_before(interactions, validation_time)
    before_test = _count_before(interactions, test_time)
    split = _hold_out_next(
        before_validation, before_test - before_validation, interactions.lengths - before_test
    )
    if not config.gap:
        return split
    trained = _count_before(interactions, validation_time - read_duration(config.gap, "gap"))
    return split._replace(train=Prefixes.where(trained > 0, trained))


def find_borders(interactions: Interactions, config: PreparationConfig) -> tuple[float, float]:
    """Find where validation and test begin: where the config says, or so long before the end."""
    if not config.test_last:
        return read_seconds(config.validation_time, "validation_time"), read_seconds(
            config.test_time, "test_time"
        )
    if config.test_time:
        raise ValueError(
            f"test_time={config.test_time} and test_last={config.test_last} both say where the "
            "test begins; give one of them"
        )
    span = read_duration(config.test_last, "test_last")
    # Open at its beginning, so that the last moment belongs to the test.
    test_time = np.nextafter(interactions.timestamps.max() - span, np.inf)
    if config.validation_time:
        return read_seconds(config.validation_time, "validation_time"), test_time
    return test_time - span, test_time


def by_user(interactions: Interactions, config: PreparationConfig) -> Split:
    """Hold out whole users, drawn with the seed: their last interaction is the target.

    Nothing of a user who validates or tests is trained on.
    """
    lengths = interactions.lengths
    if not (config.validation_users and config.test_users):
        raise ValueError(
            "the split by_user needs validation_users and test_users, "
            f"got {config.validation_users} and {config.test_users}"
        )
    num_held_out = config.validation_users + config.test_users
    held_out = _draw(lengths >= 2, num_held_out, config, "validation_users and test_users")
    tests = _draw(held_out, config.test_users, config, "test_users")
    return Split(
        train=Prefixes.where(~held_out, lengths),
        validation=Prefixes.where(held_out & ~tests, lengths - 1),
        test=Prefixes.where(tests, lengths - 1),
        left_out={"too few interactions to hold out, training only": int((lengths < 2).sum())},
    )


def given(interactions: Interactions, config: PreparationConfig) -> Split:
    """Take the source's own split: at most one validation and one test target per user.

    In each history the targets must come after everything that is trained on.
    """
    (num_train, num_validation, num_test), mixed = _count_parts(interactions, "given")
    mixed = np.union1d(mixed, np.flatnonzero((num_validation > 1) | (num_test > 1)))
    if len(mixed):
        raise ValueError(
            f"{len(mixed):,} users do not have train, then at most one validation and at most one "
            f"test interaction in the order of time, the first is "
            f"{interactions.users[int(mixed[0])]!r}; choose another split, such as given_next if "
            "users have several in each"
        )
    return _hold_out_next(num_train, num_validation, num_test)


def given_next(interactions: Interactions, config: PreparationConfig) -> Split:
    """Take the source's own split in time: of each part, a user's first interaction is the target.

    As in the split temporal, everything the user did before the target is the model's input. In
    each history validation must come after training, and the test after validation.
    """
    (num_train, num_validation, num_test), mixed = _count_parts(interactions, "given_next")
    if len(mixed):
        raise ValueError(
            f"{len(mixed):,} users do not have train, validation and test interactions in the "
            f"order of time, the first is {interactions.users[int(mixed[0])]!r}; choose another "
            "split"
        )
    return _hold_out_next(num_train, num_validation, num_test)


def _count_parts(interactions: Interactions, split: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Count each user's interactions in train, validation and test as the source has them.

    Returns:
        (users,) counts for each part, and which users do not have them in this order.
    """
    if interactions.parts is None:
        raise ValueError(f"the split {split} needs a source with its own split; this one has none")
    owners = np.repeat(np.arange(len(interactions.users)), interactions.lengths)
    counts = [
        np.bincount(owners[interactions.parts == part], minlength=len(interactions.users))
        for part in range(len(SPLIT_NAMES))
    ]
    steps_back = (np.diff(interactions.parts.astype(np.int8)) < 0) & (np.diff(owners) == 0)
    return counts, np.unique(owners[1:][steps_back])


def _hold_out_next(
    num_train: np.ndarray, num_validation: np.ndarray, num_test: np.ndarray
) -> Split:
    """Train on what comes before validation; each target is the next interaction, if any.

    Args:
        num_train: (users,) interactions before validation.
        num_validation: (users,) interactions from there to the test.
        num_test: (users,) interactions of the test.
    """
    before_test = num_train + num_validation
    new_validation, new_test = num_train == 0, before_test == 0
    validates, tests = (num_validation > 0) & ~new_validation, (num_test > 0) & ~new_test
    return Split(
        train=Prefixes.where(~new_validation, num_train),
        validation=Prefixes.where(validates, num_train),
        test=Prefixes.where(tests, before_test),
        left_out={
            "nothing before the validation target": int(
                ((num_validation > 0) & new_validation).sum()
            ),
            "nothing before the test target": int(((num_test > 0) & new_test).sum()),
        },
        following={"validation": num_validation[validates], "test": num_test[tests]},
    )


def _draw(
    candidates: np.ndarray, num_users: int, config: PreparationConfig, setting: str
) -> np.ndarray:
    """Choose users at random, all others False."""
    users = np.flatnonzero(candidates)
    if num_users > len(users):
        raise ValueError(
            f"{setting} asks for {num_users:,} users, but only {len(users):,} have enough "
            "interactions; choose fewer"
        )
    chosen = np.zeros(len(candidates), dtype=bool)
    chosen[np.random.default_rng(config.seed).choice(users, num_users, replace=False)] = True
    return chosen


def _count_before(interactions: Interactions, time: float) -> np.ndarray:
    """(users,) interactions of each user that happened before the point in time."""
    counts = np.concatenate([[0], np.cumsum(interactions.timestamps < time)])
    return np.diff(counts[interactions.offsets])


def describe_users(
    num_users: int,
    longest: int,
    time_range: tuple[float, float] | None,
    left_out: dict[str, int],
) -> str:
    """Say of a split that failed what there was to split.

    Args:
        num_users: All users.
        longest: Interactions of the one with most.
        time_range: First and last time, None where there are none.
        left_out: Reason → users that were not held out.
    """
    reach = ""
    if time_range:
        reach = f", and times reach from {write_date(time_range[0])} to {write_date(time_range[1])}"
    counts = ", ".join(f"{reason}: {n:,}" for reason, n in left_out.items() if n)
    return (
        f"the longest of {num_users:,} users has {longest:,} interactions{reach}; users not held "
        f"out: {counts or 'none'}"
    )


def read_seconds(time: str, setting: str) -> float:
    """Read unix seconds, or an ISO date or time, which is taken as UTC unless it says otherwise."""
    try:
        return float(time)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(time)
    except ValueError as error:
        raise ValueError(
            f"{setting} must be unix seconds or an ISO date like 2015-03-01, got {time!r}"
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


SPLITS: dict[str, Callable[[Interactions, PreparationConfig], Split]] = {
    "leave_one_out": leave_one_out,
    "temporal": temporal,
    "by_user": by_user,
    "given": given,
    "given_next": given_next,
    "none": none,
}
