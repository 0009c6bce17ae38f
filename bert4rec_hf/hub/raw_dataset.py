"""Raw datasets of a hub: the files of one configuration, downloaded, and how to prepare them.

Files come through huggingface_hub, which knows HF_ENDPOINT, HF_TOKEN and the cache; polars' own
`hf://` reads from one hub only.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.repocard import metadata_load

from bert4rec_hf.data.histories import SPLIT_NAMES
from bert4rec_hf.data.several import ENDINGS, Files, is_data

from .dataset_presets import PRESETS, Preset
from .errors import HubError, explaining_hub
from .pull import is_repository

CARD = "README.md"
SPLIT_WORDS = {"train": "train", "validation": "validation", "valid": "validation"}
SPLIT_WORDS |= {"val": "validation", "dev": "validation", "test": "test"}
"""How the names of files and splits say what they are for."""

SHOWN = 12


class RawDataset(NamedTuple):
    """The files of a configuration, here on disk."""

    source: str
    """A name of the table SOURCES."""

    path: Path | Files
    settings: dict[str, Any]
    """Of PreparationConfig, where they are known."""

    origin: dict[str, Any]
    """Repository, its commit, configuration and files, and a note on it, which may be empty."""


def fetch_dataset(
    name: str, config: str = "", *, revision: str | None = None, token: str | bool | None = None
) -> RawDataset:
    """Download the files of one configuration, those that are in the cache already excepted.

    Args:
        name: `owner/dataset`, or `owner/dataset@revision`.
        config: One that PRESETS or the dataset's card knows, or a file, folder or pattern of files
            in the repository; may be empty where there is only one.
        revision: Branch, tag or commit.
        token: That of HF_TOKEN or `hf auth login` when None.

    Raises:
        ValueError: There is no such configuration, or its files cannot be read.
        HubError: The hub cannot be reached, or refuses.
    """
    repository, _, part = name.partition("@")
    revision = revision or part or None
    if not is_repository(repository):
        raise ValueError(f"{name} must be the name of a dataset of a hub, as owner/dataset")
    address = f"datasets/{repository}"
    with explaining_hub(address, revision):
        info = HfApi(token=token).dataset_info(repository, revision=revision)
    files = sorted(each.rfilename for each in info.siblings or [])
    fetch = _Fetcher(repository, info.sha, token)
    choose = PRESETS.get(repository)
    if choose:
        preset = choose(config)
        chosen = match_patterns(preset.patterns, files)
    else:
        preset, chosen = Preset("", {}, {}), find_config(config, files, fetch)
    if not chosen:
        raise ValueError(describe_missing(config, preset.patterns.values(), files))
    source = preset.source or tell_source(chosen)
    paths = [fetch(file) for file in chosen]
    origin = {
        "repository": repository,
        "revision": info.sha,
        "config": config,
        "files": list(chosen),
        "note": preset.note,
    }
    splits = [split for split in chosen.values() if split]
    path = paths[0] if len(paths) == 1 else Files(f"{repository} {config}".strip(), paths)
    if len(splits) == len(paths) and len(set(splits)) > 1:
        path = Files(path.name, paths, splits)
    return RawDataset(source, path, preset.settings, origin)


class _Fetcher:
    """Downloads files of one commit."""

    def __init__(self, repository: str, commit: str, token: str | bool | None):
        self.repository, self.commit, self.token = repository, commit, token

    def __call__(self, file: str) -> Path:
        try:
            with explaining_hub(f"datasets/{self.repository}", self.commit):
                path = hf_hub_download(
                    self.repository,
                    file,
                    repo_type="dataset",
                    revision=self.commit,
                    token=self.token,
                )
        except HubError as error:
            raise HubError(f"{file} was not downloaded: {error}") from error
        return Path(path)


def match_patterns(patterns: dict[str, str], files: list[str]) -> dict[str, str]:
    """Find the files of each split: file → split, in the order of splits and names."""
    return {
        file: split
        for split, pattern in patterns.items()
        for file in files
        if fnmatchcase(file, pattern)
    }


def find_config(config: str, files: list[str], fetch: _Fetcher) -> dict[str, str]:
    """Find the files of a configuration of any dataset: file → split, empty where unknown.

    Raises:
        ValueError: None is named, and there are several.
    """
    configs = read_configs(fetch(CARD)) if CARD in files else {}
    config = config or ("default" if "default" in configs else "")
    if not config and len(configs) == 1:
        config = next(iter(configs))
    if config in configs:
        chosen = {}
        for split, patterns in configs[config]:
            for pattern in patterns:
                chosen |= match_patterns({SPLIT_WORDS.get(split, ""): pattern}, files)
        return order_by_split(chosen)
    data = [file for file in files if is_data(Path(file)) and _sources_of(file)]
    if not config and (configs or len(data) > 1):
        named = ", ".join(configs) or _list(data)
        raise ValueError(f"name one of its configurations or files by --config: {named}")
    chosen = [
        file
        for file in data
        if not config
        or file == config
        or file.startswith((f"{config}/", f"{config}."))
        or fnmatchcase(file, config)
    ]
    return order_by_split({file: guess_split(file) for file in chosen})


def read_configs(card: Path) -> dict[str, list[tuple[str, list[str]]]]:
    """Read the configurations of a dataset's card: name → splits and the patterns of their files.

    Returns:
        Empty where the card has none, or has them in another form.
    """
    configs = (metadata_load(card) or {}).get("configs")
    found = {}
    for config in configs if isinstance(configs, list) else []:
        files = config.get("data_files") if isinstance(config, dict) else None
        if isinstance(files, str):
            files = [{"split": "train", "path": files}]
        if not isinstance(files, list):
            continue
        splits = []
        for each in files:
            each = each if isinstance(each, dict) else {"path": each}
            paths = each.get("path")
            paths = paths if isinstance(paths, list) else [paths]
            splits.append((str(each.get("split", "train")), [str(path) for path in paths]))
        found[str(config.get("config_name", "default"))] = splits
    return found


def order_by_split(chosen: dict[str, str]) -> dict[str, str]:
    """Put training first, then validation and test, and files of unknown splits where they are."""
    places = {split: place for place, split in enumerate(SPLIT_NAMES)}
    return dict(sorted(chosen.items(), key=lambda pair: places.get(pair[1], 0)))


def guess_split(file: str) -> str:
    """What a file is for by its name or folder.

    >>> guess_split("data/train-00000-of-00001.parquet"), guess_split("0.test.csv")
    ('train', 'test')
    """
    words = [word for word in re.split(r"[/._-]", file) if word in SPLIT_WORDS]
    return SPLIT_WORDS[words[-1]] if words else ""


def tell_source(files: Iterable[str]) -> str:
    """Which source reads files, by their endings.

    Raises:
        ValueError: None does, or several would.
    """
    found = sorted({source for file in files for source in _sources_of(file) or ["none"]})
    if len(found) != 1 or found == ["none"]:
        endings = ", ".join(ending for each in ENDINGS.values() for ending in each)
        raise ValueError(
            f"its files {_list(files)} must all be of one format, with names that end with one of "
            f"{endings}; name some of them by --config, such as --config 'data/*.parquet'"
        )
    return found[0]


def describe_missing(config: str, patterns: Iterable[str], files: list[str]) -> str:
    """Say that a configuration has no files, and which there are."""
    data = [file for file in files if is_data(Path(file)) and _sources_of(file)]
    sought = ", ".join(patterns) or config
    close = get_close_matches(sought, data, n=1, cutoff=0.8)
    close = close or get_close_matches(config, [file.rpartition(".")[0] for file in data], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"it has no files {sought}{hint}; there are {_list(data)}"


def _sources_of(file: str) -> list[str]:
    return [source for source, endings in ENDINGS.items() if file.endswith(endings)]


def _list(files: Iterable[str]) -> str:
    files = list(files)
    rest = f" and {len(files) - SHOWN:,} more" if len(files) > SHOWN else ""
    return (", ".join(files[:SHOWN]) or "none") + rest
