"""Which base model an adapter was learned on: kept beside it, and compared when it is loaded.

The folder that an adapter names can be trained anew or replaced. The adapter would load on other
weights or on another catalog just as well, and recommend something else.
"""

import hashlib
import json
from pathlib import Path

from bert4rec_hf.data.strict_json import read_json
from bert4rec_hf.data.vocabulary import ordered_items, read_ids, vocabulary_fingerprint

BASE_FILE = "base_model.json"


def write_base(folder: Path, base: Path) -> None:
    """Keep beside an adapter what its base model is known by."""
    text = json.dumps(fingerprint_base(base), indent=2)
    (folder / BASE_FILE).write_text(text + "\n", encoding="utf-8")


def check_base(folder: Path, base: Path) -> None:
    """Refuse another base model than the one that an adapter was learned on.

    An adapter folder that was written before this was kept is not checked.

    Args:
        folder: Of the adapter.
        base: Of the base model that it is to be put on.

    Raises:
        ValueError: Weights or vocabulary of the base model are others.
    """
    if not (folder / BASE_FILE).is_file():
        return
    learned, found = read_json(folder / BASE_FILE), fingerprint_base(base)
    for what, now in found.items():
        before = learned.get(what)
        if before is not None and now is not None and before != now:
            raise ValueError(
                f"the adapter in {folder} was learned on a base model with the {what} {before}, "
                f"but {base} has the {what} {now}; put that base model back, name its folder by "
                "base_model_name_or_path in adapter_config.json, or train the adapter again"
            )


def fingerprint_base(base: Path) -> dict[str, str | None]:
    """Tell what a base model is known by; null for a vocabulary that it does not have."""
    path = base / "tokenizer.json"
    vocabulary = vocabulary_fingerprint(ordered_items(read_ids(path))) if path.is_file() else None
    return {
        "weights_fingerprint": fingerprint_weights(base),
        "vocabulary_fingerprint": vocabulary,
    }


def fingerprint_weights(folder: Path) -> str:
    """Tell the weights of model folders apart."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
