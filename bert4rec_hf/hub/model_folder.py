"""The folder that training leaves: a model with its code, or an adapter; vocabulary, titles, card.

Both are written here and loaded here, so that all who take a folder take either.
"""

import json
import shutil
import warnings
from pathlib import Path

from accelerate.utils import patch_environment
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers.utils import cached_file

# Not used by name, yet it is what makes iLoRA known to PEFT.
import bert4rec_hf.tuners  # noqa: F401
from bert4rec_hf.data.strict_json import read_json
from bert4rec_hf.data.vocabulary import ordered_items, read_ids, vocabulary_fingerprint
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.modeling.publishing import set_tokenizer_class

from .adapter_base import check_base, write_base
from .config_file import fingerprint_settings
from .pull import fetch_folder, is_repository
from .weights_check import (
    check_adapter_header,
    check_finite,
    check_model,
    check_tensors,
)

FINGERPRINTS = ("settings_fingerprint", "vocabulary_fingerprint")
"""What config.json says of the files that it was saved with."""

BASE_CLASS = {"base_model_class": "AutoModelForMaskedLM", "parent_library": "transformers"}
"""What AutoPeftModel loads the base model of an adapter by; PEFT allows few libraries."""

VOCABULARY_FILES = ("tokenizer.json", "tokenizer_config.json", "titles.json")
"""What a model takes over from its dataset folder; titles only where there are any."""


def save_model_folder(model: nn.Module, dataset_folder: Path, folder: Path) -> None:
    """Write what `from_pretrained` loads, aside first, and put it in the place of an older one.

    Args:
        model: Unwrapped: a transformers model, or a PEFT model, of which the adapter is written.
        dataset_folder: The prepared dataset whose vocabulary the model speaks.
        folder: The model folder, or adapter folder.
    """
    unfinished = folder.with_name(f".unfinished-{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    for name in VOCABULARY_FILES:
        if (dataset_folder / name).exists():
            shutil.copyfile(dataset_folder / name, unfinished / name)
    if (unfinished / "config.json").exists():
        write_fingerprints(unfinished / "config.json", model.config, dataset_folder)
        set_tokenizer_class(unfinished, model.config.max_history_length)
    if isinstance(model, PeftModel):
        name_base_class(unfinished / "adapter_config.json")
        base = Path(model.active_peft_config.base_model_name_or_path or "")
        if (base / "config.json").is_file():
            write_base(unfinished, base)
    replaced = folder.with_name(f".replaced-{folder.name}")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    unfinished.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def name_base_class(path: Path) -> None:
    """Let an adapter_config.json say what loads the base model, in words that PEFT allows."""
    settings = json.loads(path.read_text(encoding="utf-8")) | {"auto_mapping": BASE_CLASS}
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_fingerprints(path: Path, config: BERT4RecConfig, dataset_folder: Path) -> None:
    """Let config.json say which settings and which vocabulary its weights go with."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["settings_fingerprint"] = fingerprint_settings(config)
    statistics = dataset_folder / "statistics.json"
    if statistics.exists():
        known = json.loads(statistics.read_text(encoding="utf-8"))
        content["vocabulary_fingerprint"] = known["vocabulary_fingerprint"]
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_model_folder(name: str | Path) -> None:
    """Refuse what can be neither a folder of a model or adapter nor a name of a hub.

    Raises:
        ValueError: It is so.
    """
    wrote = "name one that scripts/train.py wrote, such as runs/…/model"
    if Path(name).is_dir():
        if not any(
            (Path(name) / file).is_file() for file in ("config.json", "adapter_config.json")
        ):
            raise ValueError(
                f"{name} is not a model folder: it has neither config.json nor "
                f"adapter_config.json; {wrote}"
            )
    elif not is_repository(name):
        raise ValueError(f"there is no folder {name}; {wrote}, or a model of a hub as user/name")


def find_base(name: str | Path) -> str | None:
    """Tell the base model of an adapter; None for a folder, or a name of a hub, of a model.

    Raises:
        ValueError: It is neither, or the adapter is of a kind that is not known.
    """
    check_model_folder(name)
    path = cached_file(name, "adapter_config.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    settings = read_json(Path(path))
    if settings.get("peft_type") not in [each.value for each in PEFT_TYPE_TO_CONFIG_MAPPING]:
        raise ValueError(
            f"{path} has the peft_type {settings.get('peft_type')!r}, which no installed library "
            "knows; take the file that was saved with the adapter"
        )
    return str(settings.get("base_model_name_or_path"))


def load_weights(
    name: str | Path, config: BERT4RecConfig | None = None
) -> BERT4RecForMaskedItemModeling:
    """Load a model with all its weights on every process, sharded later or not at all.

    Where accelerate was launched with FSDP, transformers would leave all but one without.

    Args:
        name: A folder, or a name of a hub.
        config: In place of that of the folder.

    Raises:
        ValueError: The folder is broken, or its weights are not those of its configuration.
    """
    folder = fetch_folder(name)
    of_folder = check_model(folder)
    with patch_environment(fsdp_cpu_ram_efficient_loading=False):
        model = BERT4RecForMaskedItemModeling.from_pretrained(
            folder, config=config or of_folder, use_safetensors=True, trust_remote_code=False
        )
    check_finite(model.state_dict().items(), folder)
    for fingerprint in FINGERPRINTS:  # of these weights, and not of what may be saved from them
        vars(model.config).pop(fingerprint, None)
    return model


def load_model(name: str | Path) -> BERT4RecForMaskedItemModeling | PeftModel:
    """Load a model, or an adapter on its base model, from a folder or a hub.

    Raises:
        ValueError: A folder is broken, or the base model of an adapter is not where the adapter
            says it is, or another one than it was learned on.
    """
    base = find_base(name)
    if base is None:
        return load_weights(name)
    try:
        check_model_folder(base)
        base_folder = fetch_folder(base)
        model = load_weights(base_folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is an adapter for the base model {base!r}, which cannot be loaded: {error}; "
            "name it by base_model_name_or_path in adapter_config.json"
        ) from error
    check_base(fetch_folder(name), base_folder)
    return load_adapter(model, name)


def load_adapter(model: BERT4RecForMaskedItemModeling, name: str | Path) -> PeftModel:
    """Put the adapter of a folder on its base model.

    Raises:
        ValueError: The folder is broken, or its weights are not those of its configuration.
    """
    folder = fetch_folder(name)
    stored = check_adapter_header(folder)
    try:
        with warnings.catch_warnings():
            # PEFT only warns of keys that are missing; they are compared below.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, folder)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the adapter in {folder} cannot be loaded: {error}") from error
    needed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    tables = [name for name in stored if name not in needed and "embed_tokens" in name]
    check_tensors(folder, {k: v for k, v in stored.items() if k not in tables}, needed)
    check_finite(needed.items(), folder)
    return adapted


def read_vocabulary(name: str | Path) -> dict[str, int]:
    """Read raw item → id of a model or adapter folder, padding and mask included.

    No tokenizer is built, which would take ten seconds for a million items.

    Raises:
        FileNotFoundError: There is no vocabulary.
        ValueError: Its ids are wrong, or it is not the one that the model was saved with.
    """
    folder = fetch_folder(name)
    path = folder / "tokenizer.json"
    ids = read_ids(path)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    saved = config.get("vocabulary_fingerprint")
    if saved is not None and saved != (found := vocabulary_fingerprint(ordered_items(ids))):
        raise ValueError(
            f"{path} is not the vocabulary that the model was saved with (fingerprints {found} and "
            f"{saved}): its ids are other items; take the file that was saved with the weights, or "
            "remove vocabulary_fingerprint from config.json if the change is meant"
        )
    return ids
