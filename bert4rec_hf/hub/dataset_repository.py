"""Prepared datasets on a hub: parquet that `load_dataset` reads, and the folder rebuilt from it."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard

from bert4rec_hf.data.dataset_card import render_card
from bert4rec_hf.data.histories import SPLIT_NAMES
from bert4rec_hf.data.prepared import PreparedDataset, load_prepared
from bert4rec_hf.modeling.repository import open_repository, push_folder

from .errors import explaining_hub
from .finish import write_record
from .pull import fetch_folder

BESIDE = ("tokenizer.json", "tokenizer_config.json", "titles.json", "statistics.json")
"""What a prepared folder holds besides its histories and its card."""

TARGETS = (pa.field("target", pa.int32()), pa.field("targets", pa.list_(pa.int32())))
"""Columns that validation and test have, and training only on a hub, where they are empty."""

ROWS_PER_GROUP = 100_000


def push_dataset(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Publish a prepared dataset, its splits in parquet with the same columns.

    Args:
        folder: As `bert4rec prepare` wrote it.
        repo_id: `user/name`, or `name` for one of one's own; made where there is none.
        private: Whether a repository that is made now is.
        revision: The branch, made where there is none; `main` when None.
        token: The one of `hf auth login` when None.

    Returns:
        Address of the commit.

    Raises:
        HubError: The hub cannot be reached, or refuses.
    """
    with TemporaryDirectory() as name, explaining_hub(repo_id, revision):
        stage = Path(name)
        write_parquet(folder, stage)
        for each in BESIDE:
            if (folder / each).is_file():
                shutil.copyfile(folder / each, stage / each)
        opened = {"kind": "dataset", "revision": revision, "token": token}
        repo_id = open_repository(repo_id, private=private, **opened)
        write_card(folder, stage, repo_id)
        address = push_folder(stage, repo_id, **opened)
    write_record(folder, {"repository": repo_id, "revision": revision})
    return address


def write_parquet(folder: Path, stage: Path) -> None:
    """Write a file per split; training has targets too, which are empty, as a hub wants it."""
    parts = datasets.load_from_disk(str(folder))
    for name in SPLIT_NAMES:
        table = parts[name].with_format("arrow")[:]
        for field in TARGETS:
            if field.name not in table.column_names and field.name in parts["test"].column_names:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        path = stage / "data" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table.replace_schema_metadata(), path, row_group_size=ROWS_PER_GROUP)


def write_card(folder: Path, stage: Path, repo_id: str) -> None:
    """Let the card say where the splits are, and how they are loaded from there."""
    statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    path, text = folder / "README.md", render_card(statistics)
    if path.is_file() and (written := path.read_text(encoding="utf-8")) != text:
        text = written
    else:
        text = render_card(statistics, repo_id)
    card = DatasetCard(text)
    files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in SPLIT_NAMES]
    card.data.configs = [{"config_name": "default", "data_files": files}]
    card.save(stage / "README.md")


def open_dataset(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    verify: bool = False,
) -> PreparedDataset:
    """Open a prepared dataset by its folder, or by its name on a hub.

    Args:
        name: The folder, or `user/name`.
        revision: Branch, tag or commit of a repository.
        token: The one of `hf auth login` when None.
        verify: Read the whole dataset and compare it with its fingerprint.

    Raises:
        FileNotFoundError: It is a folder that does not exist, or is not prepared.
        ValueError: What was downloaded is not what was pushed.
        HubError: The hub cannot be reached, or refuses.
    """
    if Path(name).is_dir():
        return load_prepared(name, verify=verify)
    downloaded = fetch_folder(name, revision=revision, token=token, kind="dataset")
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "bert4rec_hf"
    folder = cache / downloaded.parents[1].name / downloaded.name  # repository, commit
    if not folder.is_dir():
        rebuild(downloaded, folder)
    return load_prepared(folder)


def rebuild(downloaded: Path, folder: Path) -> None:
    """Make the folder that was pushed from what a repository of it holds.

    Args:
        downloaded: With `data/*.parquet`, the vocabulary and the statistics.
        folder: Appears only when everything is in it.

    Raises:
        ValueError: It is no repository of a prepared dataset, or its content has changed.
    """
    statistics = downloaded / "statistics.json"
    if not statistics.is_file():
        raise ValueError(
            f"{downloaded} is not a prepared dataset: it has no statistics.json; download it, and "
            "prepare it by `bert4rec prepare`"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as workplace:
        stage = Path(workplace) / folder.name
        parts = {name: read_part(downloaded, name) for name in SPLIT_NAMES}
        datasets.DatasetDict(parts).save_to_disk(stage)
        for name in (*BESIDE, "README.md"):
            if (downloaded / name).is_file():
                shutil.copyfile(downloaded / name, stage / name)
        try:
            load_prepared(stage, verify=True)
        except ValueError as error:
            raise ValueError(
                f"{downloaded} holds other histories than its statistics.json was written for "
                f"({error}); contact its owner"
            ) from error
        stage.rename(folder)


def read_part(downloaded: Path, name: str) -> datasets.Dataset:
    """Read a split; the targets of training are none."""
    paths = sorted(downloaded.glob(f"data/{name}-*.parquet"))
    if not paths:
        raise ValueError(f"{downloaded} is not a prepared dataset: it has no data/{name}-*.parquet")
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    if name == "train":
        targets = {field.name for field in TARGETS}
        table = table.drop_columns([each for each in table.column_names if each in targets])
    return datasets.Dataset(datasets.table.InMemoryTable(table))
