"""The recipe: one experiment for every dataset, by a rule that looks at how large it is."""

from typing import Any

LONG = 50
"""Items per training history, on average, from which a dataset is one of long histories."""

EPOCHS = 7
MIN_STEPS = 2_500
"""How often short histories are read: so many epochs, but no fewer steps where users are few."""

FULL_SOFTMAX_ITEMS = 100_000
"""Larger catalogs are learned with drawn negatives."""


def choose_settings(num_histories: int, num_interactions: int, num_items: int) -> dict[str, Any]:
    """Choose the sections `data`, `model` and `training` of an experiment.

    All is the same everywhere but what hangs on how long histories are, how many there are, and
    how large the catalog is.

    Args:
        num_histories: Of the training part.
        num_interactions: Of the training part.
        num_items: Of the catalog.
    """
    is_long = num_interactions >= LONG * num_histories
    hidden_size = 64 if is_long else 128
    batch_size = 32 if is_long else 64
    max_steps = (
        8_000 if is_long else max(MIN_STEPS, EPOCHS * num_histories // batch_size // 100 * 100)
    )
    evaluation_steps = max_steps // 4
    return {
        "data": {
            "last_item_ratio": 0.1,
            "prefix_view_ratio": 0.9,
            "prefix_ratio": 0.5 if is_long else 1.0,
            "random_window_ratio": 0.5 if is_long else 0.0,
        },
        "model": {
            "hidden_size": hidden_size,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 4 * hidden_size,
            "max_history_length": 200 if is_long else 50,
            "position_type": "rotary",
            "norm_first": True,
            "output_transform": False,
            "output_bias": False,
            "objective": ("full_softmax" if num_items <= FULL_SOFTMAX_ITEMS else "sampled_softmax"),
            "hidden_dropout": 0.2 if is_long else 0.4,
            "attention_dropout": 0.0,
            "initializer_range": 0.08,
        },
        "training": {
            "learning_rate": 2.0e-3,
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
        },
    }
