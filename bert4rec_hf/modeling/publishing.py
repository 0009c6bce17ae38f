"""A model to a repository of a hub, in one commit and with all that belongs to it."""

import filecmp
import re
import shutil
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    hf_hub_download,
)
from huggingface_hub.errors import EntryNotFoundError

from .configuration_bert4rec import BERT4RecConfig

COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "titles.json", "handler.py")
"""What belongs to the weights and is not in them."""

CARD_NAME = "README.md"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""How a hub names what it holds."""

TAGS = ["recommendation", "sequential-recommendation", "recsys", "next-item-prediction", "bert4rec"]
REPLACED = re.compile(
    r"(model|adapter_model)[\w.-]*\.safetensors(\.index\.json)?|titles\.json|\.eval_results/.+"
)
"""Files that belong to what was pushed before, and mislead beside what is pushed now."""

EMPTY_CARD = "[More Information Needed]"


def find_beside(source: str, name: str, revision: str | None = None) -> Path | None:
    """Find a file in the folder, or the repository of a hub, that a model was loaded from.

    Args:
        source: What `from_pretrained` was given; empty for a model that was not loaded.
        name: Of the file.
        revision: Of the repository.
    """
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    if not REPOSITORY.fullmatch(source):
        return None
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except EntryNotFoundError:
        return None


def complete_folder(folder: Path, source: str, config: BERT4RecConfig) -> list[str]:
    """Put beside saved weights what the folder has that they came from, and a card.

    The card of that folder comes along where the weights are the very same. Where they are not, its
    figures are those of another model, and a card without figures takes its place.

    Args:
        folder: As `save_pretrained` left it; what it has already stays.
        source: What the model was loaded from.
        config: Of the model.

    Returns:
        Names of the files that a user of the repository will miss.
    """
    revision = getattr(config, "_commit_hash", None)
    for name in COMPANIONS:
        if not (folder / name).exists() and (path := find_beside(source, name, revision)):
            shutil.copyfile(path, folder / name)
    weights = folder / "model.safetensors"
    before = find_beside(source, weights.name, revision) if weights.is_file() else None
    card = None
    if before is not None and filecmp.cmp(before, weights, shallow=False):
        card = find_beside(source, CARD_NAME, revision)
    if card is None:
        (folder / CARD_NAME).write_text(render_plain_card(config, source), encoding="utf-8")
    else:
        shutil.copyfile(card, folder / CARD_NAME)
    return [name for name in COMPANIONS[:1] if not (folder / name).exists()]


def render_plain_card(config: BERT4RecConfig, source: str = "") -> str:
    """Describe a model of which nothing was measured.

    Args:
        config: Of the model.
        source: What it was trained on from; named where it is a repository of a hub.
    """
    is_derived = REPOSITORY.fullmatch(source) and not Path(source).is_dir()
    data = ModelCardData(
        library_name="transformers",
        tags=TAGS,
        base_model=source if is_derived else None,
        base_model_relation="finetune" if is_derived else None,
    )
    return PLAIN_CARD.format(metadata=data.to_yaml(), config=config)


def keep_written_card(folder: Path, repo_id: str, token: str | bool | None) -> None:
    """Leave the card of a repository as somebody wrote it.

    Not one that says nothing, nor one with figures, which are those of the weights before.
    """
    try:
        card = ModelCard.load(repo_id, token=token, ignore_metadata_errors=True)
    except EntryNotFoundError:
        return
    ours = ModelCard.load(folder / CARD_NAME)
    has_figures = any(each.data.eval_results for each in (card, ours))
    if EMPTY_CARD not in card.content and not has_figures:
        (folder / CARD_NAME).unlink()


def open_repository(
    repo_id: str,
    *,
    kind: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Make a repository where there is none, and a branch.

    Args:
        repo_id: `user/name`, or `name` for one of one's own.
        kind: `model`, `dataset` or `space`.
        private: Whether a repository that is made now is.
        revision: The branch; `main` when None.
        token: The one of `hf auth login` when None.

    Returns:
        `user/name`.
    """
    api = HfApi(token=token)
    sdk = "gradio" if kind == "space" else None
    made = api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
    if revision is not None:
        api.create_branch(made.repo_id, branch=revision, repo_type=kind, exist_ok=True)
    return made.repo_id


def push_folder(  # noqa: PLR0913 - what people expect of a push
    folder: Path,
    repo_id: str,
    *,
    kind: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
    message: str = "",
    create_pr: bool = False,
) -> str:
    """Upload a folder in one commit; none is made where the repository holds the same already.

    Large files that arrived stay there when a push breaks off, and the next one goes on from them.

    Args:
        folder: Hidden files of it are left out, but for `.eval_results`.
        repo_id: As `open_repository` returns it.
        kind: `model`, `dataset` or `space`.
        revision: The branch; `main` when None.
        token: The one of `hf auth login` when None.
        message: Of the commit.
        create_pr: Ask for the change to be merged and do not make it.

    Returns:
        Address of the commit that holds the folder.
    """
    api = HfApi(token=token)
    paths = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    paths = {name: path for name, path in paths.items() if is_published(name)}
    there = api.list_repo_files(repo_id, repo_type=kind, revision=revision)
    operations = [CommitOperationAdd(name, path) for name, path in paths.items()]
    operations += [
        CommitOperationDelete(name)
        for name in there
        if name not in paths and REPLACED.fullmatch(name)
    ]
    done = api.create_commit(
        repo_id,
        operations,
        commit_message=message or f"Upload {kind}",
        repo_type=kind,
        revision=revision,
        create_pr=create_pr,
    )
    return str(done.pr_url or done.commit_url)


def is_published(name: str) -> bool:
    """Leave hidden files out, but for the results that a hub reads.

    >>> is_published(".eval_results/ndcg.yaml"), is_published(".cache/lock")
    (True, False)
    """
    return not name.startswith(".") or name.startswith(".eval_results/")


PLAIN_CARD = """---
{metadata}
---

# BERT4Rec for {config.num_items:,} items

BERT4Rec ([Sun et al., 2019](https://arxiv.org/abs/1904.06690)), a bidirectional transformer that
reads a user's history and scores every item of the catalog as the next one. It was pushed from
Python, and no figures were measured with these weights: evaluate them before you use them.

| | |
|---|---|
| items | {config.num_items:,} |
| read of a history | the newest {config.max_history_length} positions |
| hidden size, layers, heads | {config.hidden_size}, {config.num_hidden_layers}, \
{config.num_attention_heads} |

## Use

```sh
pip install torch "transformers>=5.17"
```

```python
from transformers import pipeline

recommend = pipeline("next-item-recommendation", "path/or/name", trust_remote_code=True)
recommend(["an item", "a newer item"], top_k=10)
```

## Limits

The model knows the items of its catalog only; it has learned the taste, and the prejudice, of the
users in its data.
"""
