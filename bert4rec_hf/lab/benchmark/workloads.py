"""Histories like those of real datasets, and the model shapes that are trained on them.

Needs numpy only: contestants of other libraries run where little else is installed.
"""

from dataclasses import dataclass

import numpy as np

from bert4rec_hf.data.histories import Histories

FIRST_ITEM_ID = 2

MODES = ("train", "evaluate", "collate")
"""What a benchmark measures: training steps, ranking, or the making of batches."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How many items there are, how unequally they are met, and how long histories get."""

    name: str
    num_items: int
    min_length: int

    mean_length: float
    """Items per history, before the longest are cut."""

    log_spread: float
    """Standard deviation of the logarithm of how much longer a history is than the shortest."""

    max_length: int
    """Items of a history that a model reads, the newest."""

    zipf_exponent: float
    """Popularity of the item in place n is proportional to n ** -zipf_exponent."""

    epoch_histories: int
    """Those of the real dataset, which a pass over it takes."""

    num_histories: int = 50_000


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of an encoder; its feed-forward networks are four times as wide as its states."""

    name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    tie_word_embeddings: bool = True
    """Whether the table that embeds the items also scores them."""


def draw_histories(workload: Workload, seed: int) -> Histories:
    """Draw as many histories as the workload has, each cut to its newest items.

    Lengths are log-normal above the shortest, and items are drawn by popularity, one regardless of
    the other: enough for what a step costs, and nothing to be learned from.
    """
    generator = np.random.default_rng(seed)
    # A log-normal number with this location has the mean asked for; rounding down takes 0.5.
    excess = workload.mean_length - workload.min_length + 0.5
    location = np.log(excess) - workload.log_spread**2 / 2
    drawn = generator.lognormal(location, workload.log_spread, workload.num_histories)
    lengths = (workload.min_length + drawn.astype(np.int64)).clip(max=workload.max_length)
    popularity = np.arange(1, workload.num_items + 1) ** -workload.zipf_exponent
    draws = generator.random(lengths.sum()) * popularity.sum()
    items = np.searchsorted(popularity.cumsum()[:-1], draws, side="right")
    names = generator.permutation(workload.num_items)  # an id tells nothing about popularity
    values = (FIRST_ITEM_ID + names[items]).astype(np.int32)
    return Histories(values, np.concatenate([[0], lengths.cumsum()]))


WORKLOADS = {
    workload.name: workload
    for workload in (
        # Amazon's Electronics where every user and item has at least five reviews.
        Workload(
            name="electronics",
            num_items=160_052,
            min_length=5,
            mean_length=9.85,  # 9.7 after the cut
            log_spread=1.1,
            max_length=50,
            zipf_exponent=0.7,
            epoch_histories=728_719,
        ),
        # Amazon's Beauty where every user and item has at least five reviews, less the last two.
        Workload(
            name="beauty",
            num_items=12_101,
            min_length=3,
            mean_length=6.9,  # 6.7 after the cut
            log_spread=1.3,
            max_length=50,
            zipf_exponent=0.7,
            epoch_histories=22_363,
            num_histories=22_363,
        ),
        # MovieLens-1M, where half of the users have rated more than 96 movies.
        Workload(
            name="movielens",
            num_items=3_706,
            min_length=20,
            mean_length=165.0,
            log_spread=1.14,
            max_length=200,
            zipf_exponent=0.7,
            epoch_histories=6_040,
            num_histories=6_040,
        ),
    )
}

SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="cpu", hidden_size=256, num_layers=4, num_heads=4),
        Shape(name="ml64", hidden_size=64, num_layers=2, num_heads=2),
        Shape(name="ml128", hidden_size=128, num_layers=2, num_heads=2),
        # Named by their parameters with the items of Electronics, nearly all of them in two tables.
        Shape(name="5m", hidden_size=16, num_layers=4, num_heads=2, tie_word_embeddings=False),
        Shape(name="85m", hidden_size=256, num_layers=4, num_heads=4, tie_word_embeddings=False),
        Shape(name="130m", hidden_size=384, num_layers=4, num_heads=6, tie_word_embeddings=False),
        Shape(name="430m", hidden_size=1024, num_layers=8, num_heads=16, tie_word_embeddings=False),
    )
}
