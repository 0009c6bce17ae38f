"""What a folder says and what it holds must agree, before anything is built or recommended.

transformers and PEFT report weights that are missing and go on with random ones; here they are
refused. Only headers are read: no size that a file merely states is ever allocated.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.initialization import no_init_weights

from bert4rec_hf.data.strict_json import read_json
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling

from .config_file import check_settings, read_config

WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
INDEX_BYTES = 100_000_000
FLOATS = {"F64", "F32", "F16", "BF16"}
INTEGERS = {torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL", torch.uint8: "U8"}
"""Types as safetensors names them."""


class Stored(NamedTuple):
    """A tensor as the header of a file describes it."""

    shape: tuple[int, ...]
    dtype: str


def check_model(folder: Path) -> BERT4RecConfig:
    """Refuse a folder whose weights are not those that its config.json describes.

    Returns:
        The configuration.

    Raises:
        ValueError: A weight is missing, unknown, or of another shape or type; a file is broken or
            not a safetensors file; or the configuration is wrong.
    """
    config = read_config(folder)
    stored = read_headers(folder)
    layers = len({name.split(".")[2] for name in stored if re.match(r"model\.layers\.\d+\.", name)})
    if layers != config.num_hidden_layers:  # before so many are built
        raise ValueError(
            f"{folder / 'config.json'} says num_hidden_layers {config.num_hidden_layers} and the "
            f"weights have {layers}; take the config.json that was saved with them"
        )
    try:
        with torch.device("meta"), no_init_weights():
            model = BERT4RecForMaskedItemModeling(config)
    except (AttributeError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} describes no model: {error}") from error
    expected = model.state_dict()
    if config.tie_word_embeddings:
        for tied in model.all_tied_weights_keys:
            expected.pop(tied, None)
    check_tensors(folder, stored, expected)
    check_settings(config, folder / "config.json")
    return config


def check_tensors(folder: Path, stored: Mapping[str, Stored], needed: Mapping[str, Tensor]) -> None:
    """Compare what a folder holds with what it must hold.

    Raises:
        ValueError: They differ; it names the first weight of each kind of difference.
    """
    common = [name for name in needed if name in stored]
    faults = {
        "missing": [name for name in needed if name not in stored],
        "unknown": [name for name in stored if name not in needed],
        "of another shape": [
            f"{name} ({stored[name].shape}, needed {tuple(needed[name].shape)})"
            for name in common
            if stored[name].shape != tuple(needed[name].shape)
        ],
        "of another type": [
            f"{name} ({stored[name].dtype}, needed {needed[name].dtype})"
            for name in common
            if not has_type(stored[name], needed[name])
        ],
    }
    found = [f"{len(n)} {kind}, the first is {n[0]}" for kind, n in faults.items() if n]
    if found:
        raise ValueError(
            f"the weights in {folder} are not those of its configuration: {'; '.join(found)}; "
            "take all files from one saved folder"
        )


def has_type(stored: Stored, needed: Tensor) -> bool:
    """Whether a stored tensor can stand for another; a float may have any precision."""
    if needed.dtype.is_floating_point:
        return stored.dtype in FLOATS
    return stored.dtype == INTEGERS.get(needed.dtype)


def read_headers(folder: Path) -> dict[str, Stored]:
    """List the tensors of a model folder, from the headers of its safetensors files.

    Raises:
        ValueError: There are none, or one is broken.
    """
    stored: dict[str, Stored] = {}
    for path in list_weights(folder):
        stored |= read_header(path)
    return stored


def read_header(path: Path) -> dict[str, Stored]:
    """List the tensors of a safetensors file, none of which is read.

    Raises:
        ValueError: It is broken, or cut off.
    """
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: Stored(tuple(each.get_shape()), each.get_dtype())
                for name, each in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error


def list_weights(folder: Path) -> list[Path]:
    """Name the files of weights, one or those of an index, all within the folder.

    Raises:
        ValueError: There are none, or the index names files elsewhere.
    """
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not index.is_file():
        pickles = [path.name for path in sorted(folder.glob("*.bin"))]
        hint = f"; {pickles[0]} is a pickle, which is never read" if pickles else ""
        raise ValueError(f"{folder} has no weights: {WEIGHTS} is missing{hint}")
    places = read_json(index, INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(each, str) for each in places.values()):
        raise ValueError(f"{index} must have a weight_map from weights to files")
    names = sorted(set(places.values()))
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ValueError(f"{index} names {name!r}, which is not a safetensors file beside it")
        if not (folder / name).is_file():
            raise ValueError(f"{index} names {name!r}, which is missing in {folder}")
    return [folder / name for name in names]


def check_finite(tensors: Iterable[tuple[str, Tensor]], origin: str | Path) -> None:
    """Refuse weights that would turn every score into NaN.

    Raises:
        ValueError: There are such.
    """
    for name, tensor in tensors:
        # The smallest and largest: they show any NaN or infinity without a copy.
        if tensor.dtype.is_floating_point and tensor.numel():
            bounds = torch.stack(torch.aminmax(tensor))
            if not bounds.isfinite().all():
                raise ValueError(
                    f"{name} in {origin} holds numbers that are not finite; the training that "
                    "wrote it had diverged, take an earlier folder"
                )


def check_adapter_header(folder: Path) -> dict[str, Stored]:
    """Refuse an adapter folder that is broken, or that states sizes that its weights do not have.

    Returns:
        Its tensors.

    Raises:
        ValueError: It is so.
    """
    path = folder / "adapter_config.json"
    settings = read_json(path)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickle = folder / "adapter_model.bin"
        hint = f"; {pickle.name} is a pickle, which is never read" if pickle.is_file() else ""
        raise ValueError(f"{folder} has no weights: {ADAPTER_WEIGHTS} is missing{hint}")
    stored = read_header(folder / ADAPTER_WEIGHTS)
    largest = max((size for each in stored.values() for size in each.shape), default=0)
    for name, size in stated_sizes(settings):
        if size > largest:  # before so much is allocated
            raise ValueError(
                f"{path} says {name} {size} and no weight of {ADAPTER_WEIGHTS} is so large; take "
                "both files from one saved folder"
            )
    return stored


def stated_sizes(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """List the sizes that an adapter's configuration allocates by."""
    ranks = settings.get("rank_pattern")
    patterns = ranks if isinstance(ranks, dict) else {}
    for name, size in [("r", settings.get("r")), ("num_experts", settings.get("num_experts"))]:
        if isinstance(size, int):
            yield name, size
    for name, size in patterns.items():
        if isinstance(size, int):
            yield f"rank_pattern.{name}", size
