"""The recipe: one experiment for every dataset, by a rule that looks at how large it is.

Three counts of the training part decide: histories, interactions and items. The rule is anchored at
the datasets it was measured on (configs/, model_cards/) and goes smoothly from one to another:

- Histories of up to 20 items on average, such as Amazon's (6,000 to 40,000 of them), want a wide
  model that reads 50 items, much dropout, and every prefix of a history asked about: they are few
  examples of much choice. Histories of 160 and more, such as MovieLens', want a narrow one that
  reads 200, little dropout, and random windows. In between each setting is in between, by the
  logarithm of the mean length, so that no dataset stands at an edge.
- Training takes the steps that it took there, 2,500 to 8,000, and more where that would be fewer
  than 7 epochs. Beyond 50,000 histories, where nothing has been measured, batches grow with the
  root of the number of histories and the rate with the root of the batch, and epochs become fewer
  with its fourth root, as more data are read less often; never fewer than 2.
- No history is read more than 50 times: with a thousand users and 48 items each, the best of 147
  epochs was seen within the first 36.
- Validation is looked at four times, more often where epochs are many, as small datasets are best
  early, and where steps are many, so that patience can end a training.
- Catalogs of over 100,000 items are learned with negatives, drawn by popularity: on a generated
  shop with a thousand items for each negative (model_cards/generated_100k-ablation.md, one seed),
  uniform ones came to 60 % of the best possible hit rate and grew worse, popular ones to 82 %.
- The nearest 50 neighbors of each item are mixed into the trained model, with the weight that is
  best on validation, or none; they helped on each of the three datasets that were measured with and
  without. Catalogs of over a million items go without, as nothing was measured there.
"""

import math
from typing import Any

SHORT, LONG = 20, 160
"""Items per training history, on average, up to and from which nothing depends on it any more."""

STEPS = (2_500, 8_000)
"""Optimizer steps of short and of long histories, at the sizes that were measured."""

BATCH_SIZES = (64, 32)
MEASURED_HISTORIES = 50_000
"""No dataset that the rule was measured on has more."""

MAX_BATCH_SIZE = 4_096
MAX_RATE_FACTOR = 2.0
"""Of the learning rate, where batches are larger than measured."""

EPOCHS, MIN_EPOCHS, MAX_EPOCHS = 7, 2, 50
VALIDATIONS = (4, 12)
"""How often training validates, at least and, for having few histories, at most."""

MAX_EVALUATION_STEPS = 2_000
FULL_SOFTMAX_ITEMS = 100_000
"""Larger catalogs are learned with drawn negatives."""

NEIGHBORS, MAX_NEIGHBOR_ITEMS = 50, 1_000_000


def choose_settings(num_histories: int, num_interactions: int, num_items: int) -> dict[str, Any]:
    """Choose the sections `data`, `model` and `training` of an experiment.

    Args:
        num_histories: Of the training part.
        num_interactions: Of the training part.
        num_items: Of the catalog.
    """
    length = length_between(num_histories, num_interactions)
    hidden_size = round_to(between(128, 64, length), 16)
    return {
        "data": {
            "last_item_ratio": 0.1,
            "prefix_view_ratio": 0.9,
            "prefix_ratio": round(1.0 - 0.5 * length, 2),
            "random_window_ratio": round(0.5 * length, 2),
        }
        | ({} if num_items <= FULL_SOFTMAX_ITEMS else {"negative_distribution": "popularity"}),
        "model": {
            "hidden_size": hidden_size,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 4 * hidden_size,
            "max_history_length": round_to(between(50, 200, length), 10),
            "position_type": "rotary",
            "norm_first": True,
            "output_transform": False,
            "output_bias": False,
            "objective": ("full_softmax" if num_items <= FULL_SOFTMAX_ITEMS else "sampled_softmax"),
            "hidden_dropout": round(0.4 - 0.2 * length, 2),
            "attention_dropout": 0.0,
            "initializer_range": 0.08,
        },
        "training": choose_training(num_histories, length)
        | {"added_neighbors": NEIGHBORS if num_items <= MAX_NEIGHBOR_ITEMS else 0},
    }


def choose_training(num_histories: int, length: float) -> dict[str, Any]:
    """Choose how long, how fast and in which batches to train.

    Args:
        num_histories: Of the training part.
        length: From 0, short histories, to 1, long ones.
    """
    growth = max(1.0, num_histories / MEASURED_HISTORIES)
    batch_size = round_to(between(*BATCH_SIZES, length) * math.sqrt(growth), 8)
    batch_size = min(batch_size, MAX_BATCH_SIZE)
    rate_factor = min(growth**0.25, MAX_RATE_FACTOR)
    epoch = num_histories / min(batch_size, num_histories)  # in steps
    epochs = max(MIN_EPOCHS, EPOCHS * growth**-0.25)
    max_steps = min(max(between(*STEPS, length), epochs * epoch), MAX_EPOCHS * epoch)
    max_steps = max(1, int(max_steps))
    if max_steps >= STEPS[0]:
        max_steps = max_steps // 100 * 100
    # A quarter of the histories are validated on twice as often.
    validations = round(VALIDATIONS[0] * math.sqrt(6_000 / num_histories))
    validations = min(max(validations, VALIDATIONS[0]), VALIDATIONS[1])
    evaluation_steps = min(max(1, max_steps // validations), MAX_EVALUATION_STEPS)
    return {
        "learning_rate": float(f"{2.0e-3 * rate_factor:.2g}"),
        "item_learning_rate_factor": 5.0,
        "batch_size": batch_size,
        "max_steps": max_steps,
        "warmup_ratio": 0.02,
        "schedule": "linear",
        "item_initialization": "co_occurrence",
        "attention_initialization": "average",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "evaluation_steps": evaluation_steps,
        "checkpoint_steps": evaluation_steps,
        "patience": 5,
        "seed": 0,
    }


def length_between(num_histories: int, num_interactions: int) -> float:
    """From 0, short histories, to 1, long ones, by the logarithm of their mean length.

    >>> [length_between(1_000, n) for n in (7_000, 20_000, 160_000, 900_000)]
    [0.0, 0.0, 1.0, 1.0]
    """
    place = math.log(num_interactions / num_histories / SHORT) / math.log(LONG / SHORT)
    return min(max(place, 0.0), 1.0)


def between(short: float, long: float, length: float) -> float:
    """A value between two, as far along by factors as `length` is from 0 to 1.

    >>> between(50, 200, 0.5)
    100.0
    """
    return short * (long / short) ** length


def round_to(value: float, step: int) -> int:
    """The nearest multiple of a step, at least one.

    >>> round_to(61.0, 8), round_to(1.0, 8)
    (64, 8)
    """
    return max(1, round(value / step)) * step
