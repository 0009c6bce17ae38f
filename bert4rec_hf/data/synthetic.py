"""Interactions with a known pattern, at any scale, and the best score that is possible on them.

Items have Zipf popularity and histories heavy-tailed lengths, as in real data. What follows what is
a chain: with a stated probability the next item is a successor of one of the newest items, else it
is drawn by popularity; no item occurs twice in a history. As the chain is known, so is the expected
score of a predictor that knows it, which is what a model can be measured against.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from huggingface_hub.dataclasses import strict

MIN_LENGTH = 5
"""Items in the shortest history: survives 5-core filtering and any split."""

BEST_KS = (1, 5, 10, 20)
"""The k of the best possible metrics."""

MAX_MATRIX_SIZE = 2**22
"""Users times length that are generated at once; bounds the memory, not the amount."""


@strict
@dataclass(kw_only=True)
class SyntheticConfig:
    """How much to generate, and how much of it can be predicted."""

    num_users: int = 5_000
    num_items: int = 400
    mean_length: float | int = 20.0
    """Expected items per history, before the longest are cut."""

    max_length: int = 100
    zipf_exponent: float | int = 0.7
    """Popularity of the item in place n is proportional to n ** -zipf_exponent."""

    pattern_ratio: float | int = 0.7
    """Probability that the next item is a successor of one of the newest."""

    num_recent: int = 2
    """How many of the newest items have a say, each half as likely as the one after it."""

    series_length: int = 10
    """Items of a series, at least; every item belongs to one."""

    num_successors: int = 3
    """How many of the next items in its series are an item's successors, each half as likely as
    the one before it."""

    seed: int = 0

    def validate_sizes(self) -> None:
        for name in ("num_users", "num_recent", "num_successors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def validate_lengths(self) -> None:
        if not MIN_LENGTH <= self.mean_length <= self.max_length <= self.num_items // 2:
            raise ValueError(
                f"{MIN_LENGTH} <= mean_length <= max_length <= num_items / 2 must hold, as no item "
                f"occurs twice in a history; got mean_length {self.mean_length}, "
                f"max_length {self.max_length}, num_items {self.num_items}"
            )

    def validate_series_length(self) -> None:
        if not self.num_successors < self.series_length <= self.num_items:
            raise ValueError(
                "series_length must be more than num_successors and at most num_items, got "
                f"{self.series_length} with {self.num_successors} and {self.num_items}"
            )

    def validate_pattern_ratio(self) -> None:
        if not 0 <= self.pattern_ratio < 1:
            raise ValueError(f"pattern_ratio must be in [0, 1), got {self.pattern_ratio}")


class Chain(NamedTuple):
    """Which item follows which: the truth behind the data. Items are numbered by popularity."""

    popularity: np.ndarray
    """(items,) probabilities, the highest first."""

    successors: np.ndarray
    """(items, successors) what likes to follow each item."""

    weights: np.ndarray
    """(recent x successors) probability that the next item is this successor of that newest item,
    the last item first; they sum to pattern_ratio."""

    def likely(self, seen: np.ndarray) -> np.ndarray:
        """(users, recent x successors) what likes to follow these (users, length) histories."""
        num_recent = len(self.weights) // self.successors.shape[1]
        # A history shorter than that hears its oldest item several times.
        places = (seen.shape[1] - 1 - np.arange(num_recent)).clip(min=0)
        return self.successors[seen[:, places]].reshape(len(seen), len(self.weights))


class SyntheticData(NamedTuple):
    """What was generated, and how well it can be predicted."""

    interactions: pl.DataFrame
    """Columns `user`, `item` (strings) and `timestamp` (seconds); each user's in order of
    time."""

    best_possible: dict[str, float]
    """Expected `hit_rate@k` and `ndcg@k`, over the last items of the histories, of the best
    predictor: one that knows the chain and leaves seen items out."""


def generate_interactions(config: SyntheticConfig) -> SyntheticData:
    """Draw the histories of all users, and work out how predictable their last items are."""
    generator = np.random.default_rng(config.seed)
    chain = make_chain(config, generator)
    lengths = draw_lengths(config, generator)
    user_names = _shuffled_names("user", config.num_users, generator)
    item_names = _shuffled_names("item", config.num_items, generator)
    frames, gains = [], []
    for start, stop in _user_chunks(lengths):
        histories = draw_histories(chain, lengths[start:stop], generator)
        gains.append(best_gains(chain, histories, lengths[start:stop]))
        filled = histories >= 0
        times = draw_times(filled.shape, generator)
        users = np.repeat(np.arange(start, stop), lengths[start:stop])
        columns = [
            user_names.gather(users),
            item_names.gather(histories[filled]),
            pl.Series("timestamp", times[filled]),
        ]
        frames.append(pl.DataFrame(columns))
    best = np.concatenate(gains).mean(axis=0).tolist()
    names = [f"{metric}@{k}" for metric in ("hit_rate", "ndcg") for k in BEST_KS]
    return SyntheticData(pl.concat(frames), dict(zip(names, best, strict=True)))


def make_chain(config: SyntheticConfig, generator: np.random.Generator) -> Chain:
    """Give every item its popularity and its successors: the next items of its series.

    A series is closed, after its last item comes the first, and its items are of like popularity.
    Following the chain thus changes the popularity of the items but little.
    """
    places = np.arange(1, config.num_items + 1)
    popularity = places**-config.zipf_exponent
    jitter = generator.normal(scale=0.5, size=config.num_items)
    by_like_popularity = np.argsort(np.log(places) + jitter)
    successors = np.empty((config.num_items, config.num_successors), dtype=np.int64)
    for series in np.array_split(by_like_popularity, config.num_items // config.series_length):
        series = generator.permutation(series)
        for distance in range(config.num_successors):
            successors[series, distance] = np.roll(series, -1 - distance)
    ages, ranks = np.arange(config.num_recent), np.arange(config.num_successors)
    weights = 0.5 ** np.add.outer(ages, ranks).ravel()
    weights *= config.pattern_ratio / weights.sum()
    return Chain(popularity / popularity.sum(), successors, weights)


def draw_lengths(config: SyntheticConfig, generator: np.random.Generator) -> np.ndarray:
    """(users,) length of each history, longest first: log-normal above the shortest."""
    # A log-normal number with these parameters has the mean asked for; rounding down takes 0.5.
    mean = np.log(config.mean_length - MIN_LENGTH + 0.5) - 0.5
    lengths = MIN_LENGTH + generator.lognormal(mean, sigma=1.0, size=config.num_users).astype(int)
    return -np.sort(-lengths.clip(max=config.max_length))


def draw_histories(chain: Chain, lengths: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Let the chain run once per user, without meeting an item twice.

    What was met is drawn again, chance and all: the next item thus has the probability that the
    chain gives it, divided by that of all unseen items.

    Args:
        chain: What follows what.
        lengths: (users,) length of each history, longest first.
        generator: Source of randomness.

    Returns:
        (users, length) items, -1 behind the end of a history.
    """
    histories = np.full((len(lengths), lengths[0]), -1, dtype=np.int32)
    cumulative = chain.popularity.cumsum()
    for step in range(lengths[0]):
        waiting = np.arange(np.count_nonzero(lengths > step))
        while len(waiting):
            seen = histories[waiting, :step]
            drawn = _draw_next(chain, cumulative, seen, generator)
            is_unseen = (seen != drawn[:, None]).all(axis=1)
            histories[waiting[is_unseen], step] = drawn[is_unseen]
            waiting = waiting[~is_unseen]
    return histories


def _draw_next(
    chain: Chain, cumulative: np.ndarray, seen: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """(users,) next items; `cumulative` are the summed popularities, (items,)."""
    draws = generator.random(len(seen)) * cumulative[-1]
    items = np.searchsorted(cumulative[:-1], draws, side="right")
    if seen.shape[1] > 0:
        choice = np.searchsorted(chain.weights.cumsum(), generator.random(len(seen)), side="right")
        follows = choice < len(chain.weights)
        items[follows] = chain.likely(seen[follows])[np.arange(follows.sum()), choice[follows]]
    return items


def draw_times(shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """(users, length) seconds since 1970, increasing along each history: some days apart."""
    first_of_2015, day = 1_420_070_400, 86_400
    gaps = 1 + generator.exponential(5 * day, size=shape).astype(np.int64)
    gaps[:, 0] += first_of_2015 + generator.integers(3 * 365 * day, size=shape[0])
    return gaps.cumsum(axis=1)


def best_gains(chain: Chain, histories: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Work out what the best predictor gains at the last item of each history, in expectation.

    Args:
        chain: The truth.
        histories: (users, length) items, -1 behind the end.
        lengths: (users,) length of each history.

    Returns:
        (users, metrics) hit rate, then NDCG, each at every one of BEST_KS.
    """
    gains = np.empty((len(lengths), 2 * len(BEST_KS)))
    discounts = 1 / np.log2(np.arange(2, max(BEST_KS) + 2))
    for length in np.unique(lengths):
        rows = lengths == length
        best = best_probabilities(chain, histories[rows, : length - 1])
        hits, discounted = best.cumsum(axis=1), (best * discounts).cumsum(axis=1)
        columns = np.array(BEST_KS) - 1
        gains[rows] = np.concatenate([hits[:, columns], discounted[:, columns]], axis=1)
    return gains


def best_probabilities(chain: Chain, seen: np.ndarray) -> np.ndarray:
    """Work out the true probabilities of the most probable next items.

    Only successors of the newest items and the most popular items can be among them; so many of
    these are considered that enough are left when seen items and successors are taken out.

    Args:
        chain: The truth.
        seen: (users, length) items so far.

    Returns:
        (users, max(BEST_KS)) probabilities, the highest first; 0 where candidates ran out.
    """
    by_popularity = chain.popularity * (1 - chain.weights.sum())  # (items,)
    successors = chain.likely(seen)  # (users, recent x successors)
    is_same = successors[:, :, None] == successors[:, None, :]
    is_first = is_same.argmax(axis=2) == np.arange(successors.shape[1])
    is_seen = (successors[:, :, None] == seen[:, None, :]).any(axis=2)
    as_successor = is_first * ~is_seen * (by_popularity[successors] + is_same @ chain.weights)

    num_popular = min(max(BEST_KS) + successors.shape[1] + seen.shape[1], len(by_popularity))
    as_popular = np.tile(by_popularity[:num_popular], (len(seen), 1))
    taken = np.concatenate([successors, seen], axis=1)
    rows, columns = np.nonzero(taken < num_popular)
    as_popular[rows, taken[rows, columns]] = 0

    unseen_mass = 1 - by_popularity[seen].sum(axis=1) - is_seen @ chain.weights
    probabilities = np.concatenate([as_successor, as_popular], axis=1) / unseen_mass[:, None]
    best = np.zeros((len(seen), max(BEST_KS)))
    probabilities = -np.sort(-probabilities, axis=1)[:, : max(BEST_KS)]
    best[:, : probabilities.shape[1]] = probabilities
    return best


def write_amazon_json(interactions: pl.DataFrame, path: Path, seed: int = 0) -> None:
    """Write interactions as the JSON lines of Amazon's reviews of 2018, with texts of usual length.

    Args:
        interactions: Columns `user`, `item` and `timestamp`.
        path: A `.json.gz` file.
        seed: Of the texts.
    """
    generator = np.random.default_rng(seed)
    texts = pl.Series("reviewText", _draw_texts(10_000, generator))
    by_item = interactions.sort("item", maintain_order=True)  # as the real files are
    with gzip.open(path, "wb", compresslevel=1) as file:
        for rows in by_item.iter_slices(2**18):
            time = pl.from_epoch("timestamp")
            reviews = rows.select(
                overall=pl.lit(5.0),
                verified=pl.lit(True),
                reviewTime=time.dt.strftime("%m %-d, %Y"),
                reviewerID="user",
                asin="item",
                reviewerName="user",
                reviewText=texts.gather(generator.integers(len(texts), size=len(rows))),
                summary=pl.lit("Five Stars"),
                unixReviewTime="timestamp",
            )
            reviews.write_ndjson(file)


def _draw_texts(count: int, generator: np.random.Generator) -> list[str]:
    """Texts of made-up words, half of them longer than 30 words, a few very long."""
    letters = np.array(list("etaoinshrdlucmfwypvbg"))
    words = ["".join(generator.choice(letters, size=n)) for n in 1 + generator.poisson(3, 1_000)]
    sizes = generator.lognormal(np.log(30), sigma=1.2, size=count).astype(int).clip(1, 3_000)
    drawn = np.array(words)[generator.integers(len(words), size=sizes.sum())]
    return [" ".join(text) for text in np.split(drawn, sizes.cumsum()[:-1])]


def _shuffled_names(prefix: str, count: int, generator: np.random.Generator) -> pl.Series:
    """Names whose numbers tell nothing about length or popularity."""
    digits = len(str(count - 1))
    return pl.Series(prefix, [f"{prefix}-{n:0{digits}}" for n in generator.permutation(count)])


def _user_chunks(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last user, exclusive, of runs whose histories fit into one matrix."""
    start = 0
    while start < len(lengths):
        stop = min(start + max(1, MAX_MATRIX_SIZE // lengths[start]), len(lengths))
        yield start, stop
        start = stop
