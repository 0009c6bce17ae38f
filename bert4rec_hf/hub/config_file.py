"""The config.json of a model folder, read strictly: what it cannot mean is refused."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from bert4rec_hf.data.strict_json import read_json
from bert4rec_hf.modeling import BERT4RecConfig

SCORE_FREE = ("objective", "gbce_calibration", "hidden_dropout", "attention_dropout")
SCORE_FREE += ("initializer_range", "vocab_size", "max_history_length")
"""Settings that no score of a trained model depends on, that the shape of its weights shows, or
that may change: how much of a history is read."""

REFUSED = ("quantization_config", "attn_implementation", "experts_implementation")
"""What would change how weights are loaded, or fetch code; no BERT4Rec is saved with it."""


def read_config(folder: Path) -> BERT4RecConfig:
    """Read the configuration of a model folder.

    Raises:
        ValueError: It is no model folder, or its config.json is broken, of another model, or has a
            setting that is unknown or out of range.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a model folder: it has no config.json; name one that "
            "scripts/train.py wrote, such as runs/…/model"
        )
    settings = read_json(path)
    if (kind := settings.get("model_type")) != BERT4RecConfig.model_type:
        raise ValueError(f"{path} must have the model_type {BERT4RecConfig.model_type}, got {kind}")
    check_names(path, settings)
    try:
        config = BERT4RecConfig.from_dict(dict(settings))
    except (StrictDataclassError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error.__cause__ or error}") from error
    if not isinstance(config.dtype, torch.dtype | None):
        raise ValueError(f"{path}: dtype must be the name of one, got {config.dtype!r}")
    return config


def check_settings(config: BERT4RecConfig, path: Path) -> None:
    """Refuse settings that no shape shows and that are not those the weights were saved with.

    Args:
        config: As read from the file.
        path: The file.

    Raises:
        ValueError: They are others.
    """
    saved = getattr(config, "settings_fingerprint", None)
    if saved is not None and saved != fingerprint_settings(config):
        raise ValueError(
            f"{path} was changed since its weights were saved: a setting that affects scores, "
            "such as hidden_act or num_attention_heads, is different; take the config.json that "
            "was saved with the weights, or remove settings_fingerprint if the change is meant"
        )


def check_names(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a misspelt setting, which would count as left out, and what changes how weights load.

    Raises:
        ValueError: There is one.
    """
    known = [field.name for field in dataclasses.fields(BERT4RecConfig)]
    for name in sorted(settings.keys() - set(known)):
        if name in REFUSED:
            raise ValueError(f"{path} has {name}, which BERT4Rec never saves; remove it")
        if close := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            raise ValueError(f"{path} has no setting {name}; did you mean {close[0]}?")


def fingerprint_settings(config: BERT4RecConfig) -> str:
    """Tell apart configurations that give other scores with the same weights.

    Only what differs from its default counts, so that a setting added later changes no fingerprint.
    """
    names = vars(BERT4RecConfig)["__annotations__"]
    defaults = {field.name: field.default for field in dataclasses.fields(BERT4RecConfig)}
    values = {name: getattr(config, name) for name in names if name not in SCORE_FREE}
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    text = json.dumps(changed, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
