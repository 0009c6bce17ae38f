"""The model folder: weights, configuration, the island's code, vocabulary, titles and card."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel

VOCABULARY_FILES = ("tokenizer.json", "tokenizer_config.json", "titles.json")
"""What a model takes over from its dataset folder; titles only where there are any."""


def save_model_folder(model: PreTrainedModel, dataset_folder: Path, folder: Path) -> None:
    """Write what `from_pretrained` loads, aside first, and put it in the place of an older one.

    Args:
        model: Unwrapped.
        dataset_folder: The prepared dataset whose vocabulary the model speaks.
        folder: The model folder.
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
