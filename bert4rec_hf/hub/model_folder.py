"""The folder that training leaves: a model with its code, or an adapter; vocabulary, titles, card.

Both are written here and loaded here, so that all who take a folder take either.
"""

import hashlib
import shutil
from pathlib import Path

from accelerate.utils import patch_environment
from peft import PeftConfig, PeftModel
from torch import nn
from transformers.utils import cached_file

# Not used by name, yet it is what makes iLoRA known to PEFT.
import bert4rec_hf.tuners  # noqa: F401
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling

from .pull import fetch_folder, is_repository

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
    replaced = folder.with_name(f".replaced-{folder.name}")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    unfinished.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


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
                f"{name} is no model folder, it has neither config.json nor adapter_config.json; "
                f"{wrote}"
            )
    elif not is_repository(name):
        raise ValueError(f"there is no folder {name}; {wrote}, or a model of a hub as user/name")


def find_base(name: str | Path) -> str | None:
    """Tell the base model of an adapter; None for a folder, or a name of a hub, of a model.

    Raises:
        ValueError: It is neither.
    """
    check_model_folder(name)
    path = cached_file(name, "adapter_config.json", _raise_exceptions_for_missing_entries=False)
    return PeftConfig.from_pretrained(name).base_model_name_or_path if path else None


def load_weights(
    name: str | Path, config: BERT4RecConfig | None = None
) -> BERT4RecForMaskedItemModeling:
    """Load a model with all its weights on every process, sharded later or not at all.

    Where accelerate was launched with FSDP, transformers would leave all but one without.

    Args:
        name: A folder, or a name of a hub.
        config: In place of that of the folder.
    """
    with patch_environment(fsdp_cpu_ram_efficient_loading=False):
        return BERT4RecForMaskedItemModeling.from_pretrained(name, config=config)


def load_model(name: str | Path) -> BERT4RecForMaskedItemModeling | PeftModel:
    """Load a model, or an adapter on its base model, from a folder or a hub.

    Raises:
        ValueError: The base model of an adapter is not where the adapter says it is.
    """
    base = find_base(name)
    if base is None:
        return load_weights(name)
    try:
        check_model_folder(base)
        model = load_weights(fetch_folder(base))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is an adapter for the base model {base!r}, which cannot be loaded: {error}; "
            "name it by base_model_name_or_path in adapter_config.json"
        ) from error
    return PeftModel.from_pretrained(model, name)


def read_config(folder: Path) -> BERT4RecConfig:
    """Read the configuration of a model folder that is to be trained further.

    Raises:
        ValueError: It is no model folder.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is no model folder, it has no config.json; name one that scripts/train.py "
            "wrote, such as runs/…/model"
        )
    return BERT4RecConfig.from_pretrained(folder)


def fingerprint_weights(folder: Path) -> str:
    """Tell the weights of model folders apart."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
