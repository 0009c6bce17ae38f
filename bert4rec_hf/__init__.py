"""BERT4Rec for the Hugging Face ecosystem: a pipeline from interactions to recommendations.

What people type is imported when it is first used, so that `import bert4rec_hf` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.interactions import PreparationConfig
    from .data.preparation import prepare_dataset
    from .data.prepared import load_prepared
    from .experiment.load import load_experiment
    from .experiment.run import run_experiment
    from .modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling, BERT4RecModel
    from .serving.recommender import Recommender
    from .tuners import ILoraConfig

ROOMS = {
    "BERT4RecConfig": "modeling",
    "BERT4RecForMaskedItemModeling": "modeling",
    "BERT4RecModel": "modeling",
    "ILoraConfig": "tuners",
    "PreparationConfig": "data.interactions",
    "Recommender": "serving.recommender",
    "load_experiment": "experiment.load",
    "load_prepared": "data.prepared",
    "prepare_dataset": "data.preparation",
    "run_experiment": "experiment.run",
}
"""Where each name lives."""

__all__ = [
    "BERT4RecConfig",
    "BERT4RecForMaskedItemModeling",
    "BERT4RecModel",
    "ILoraConfig",
    "PreparationConfig",
    "Recommender",
    "load_experiment",
    "load_prepared",
    "prepare_dataset",
    "run_experiment",
]


def __getattr__(name: str) -> Any:
    if name not in ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{ROOMS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
