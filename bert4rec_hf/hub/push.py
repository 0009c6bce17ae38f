"""A folder of a model or an adapter to a hub, under a card that names no folder of this disk."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, constants
from peft import PeftConfig

from bert4rec_hf.modeling import BERT4RecConfig
from bert4rec_hf.modeling.publishing import CARD_NAME, EMPTY_CARD, TAGS, complete_folder
from bert4rec_hf.modeling.repository import open_repository, push_folder

from .adapter_base import fingerprint_weights
from .card import render_card
from .dataset_repository import push_dataset
from .errors import explaining_hub
from .finish import finish_card, read_record, write_record
from .model_folder import BASE_CLASS, check_model_folder
from .pull import is_repository
from .results import read_results


def push(  # noqa: PLR0913 - what people expect of a push
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    base: str | None = None,
) -> str:
    """Publish a folder of a model, an adapter, a prepared dataset or a Space.

    Args:
        folder: As training, `save_pretrained`, `prepare` or `demo --space` left it.
        repo_id: `user/name`, or `name` for one of one's own; made where there is none.
        private: Whether a repository that is made now is.
        revision: The branch, made where there is none; `main` when None.
        token: The one of `hf auth login` when None.
        base: Repository of the base model of an adapter; known where it was pushed from here, or
            came from a hub.

    Returns:
        Address of the commit.

    Raises:
        ValueError: It is no such folder, or the base model of an adapter is on no hub.
        HubError: The hub cannot be reached, or refuses.
    """
    folder = find_learned(folder)
    if (folder / "statistics.json").is_file():
        return push_dataset(folder, repo_id, private=private, revision=revision, token=token)
    if (folder / "app.py").is_file():
        with explaining_hub(repo_id, revision):
            where = {"kind": "space", "revision": revision, "token": token}
            return push_folder(folder, open_repository(repo_id, private=private, **where), **where)
    check_model_folder(folder)
    with TemporaryDirectory() as name:
        stage = Path(name)
        for path in folder.iterdir():
            (stage / path.name).symlink_to(path.resolve())
        if (folder / "adapter_config.json").is_file():
            name_base(stage, base)
        elif not has_card(folder):
            complete_folder(stage, "", BERT4RecConfig.from_pretrained(folder))
        with explaining_hub(repo_id, revision):
            repo_id = open_repository(repo_id, private=private, revision=revision, token=token)
            finish_card(stage, repo_id, read_run(folder))
            address = push_folder(stage, repo_id, revision=revision, token=token)
    record = {"repository": repo_id, "revision": revision, "weights": fingerprint_weights(folder)}
    write_record(folder, record)
    return address


def find_learned(folder: Path) -> Path:
    """What to push of a folder: of that of a run, what was learned."""
    learned = [folder / name for name in ("model", "adapter") if (folder / name).is_dir()]
    return learned[0] if len(learned) == 1 and (folder / "run.json").is_file() else folder


def read_run(folder: Path) -> dict[str, Any]:
    """Read the results of the run that a folder lies in, if the folder's card tells of them."""
    path, card = folder.parent / "results.json", folder / CARD_NAME
    if not (path.is_file() and card.is_file()):
        return {}
    results = read_results(path)
    return results if render_card(results) == card.read_text(encoding="utf-8") else {}


def prepare_push(repo_id: str, *, private: bool | None = None, base: str | None = None) -> None:
    """Make the repository that something long will be pushed to, so that a refusal shows now.

    Args:
        repo_id: `user/name`, or `name` for one of one's own.
        private: Whether a repository that is made now is.
        base: The base model, if what will be pushed is an adapter.

    Raises:
        ValueError: The base model is on no hub.
        HubError: The hub cannot be reached, or refuses.
    """
    if base is not None:
        find_repository(base)
    with explaining_hub(repo_id):
        open_repository(repo_id, private=private)


def name_base(stage: Path, base: str | None) -> None:
    """Let an adapter and its card name the base model by its repository.

    Args:
        stage: Links to the files of an adapter folder; those that change become files.
        base: The repository, where it is known.

    Raises:
        ValueError: It is not known, or is none.
    """
    config = PeftConfig.from_pretrained(stage)
    local = config.base_model_name_or_path
    config.base_model_name_or_path = base or find_repository(local)
    if not is_repository(config.base_model_name_or_path):
        raise ValueError(
            f"base must be a repository such as user/shop, got {config.base_model_name_or_path!r}"
        )
    config.auto_mapping = BASE_CLASS
    (stage / "adapter_config.json").unlink()
    config.save_pretrained(stage)
    path = stage / CARD_NAME
    text = path.read_text(encoding="utf-8") if has_card(stage) else render_adapter_card(config)
    card = ModelCard(text.replace(str(local), config.base_model_name_or_path))
    card.data.base_model = config.base_model_name_or_path
    card.data.base_model_relation = "adapter"
    path.unlink(missing_ok=True)
    card.save(path)


def has_card(folder: Path) -> bool:
    """Whether a folder has a card that says something; PEFT writes one that does not."""
    path = folder / CARD_NAME
    return path.is_file() and EMPTY_CARD not in path.read_text(encoding="utf-8")


def render_adapter_card(config: PeftConfig) -> str:
    """Describe an adapter of which nothing was measured.

    Args:
        config: Names the base model by its repository.
    """
    tuner = str(config.peft_type.value).lower()
    data = ModelCardData(library_name="peft", tags=[*TAGS, tuner])
    return ADAPTER_CARD.format(
        metadata=data.to_yaml(), tuner=tuner, base=config.base_model_name_or_path
    )


ADAPTER_CARD = """---
{metadata}
---

# An adapter for {base}

An adapter ({tuner}) for the frozen BERT4Rec [{base}](https://huggingface.co/{base}). It was pushed
without figures: evaluate it before you use it.

## Use

With `bert4rec_hf` installed, from its checkout by `pip install .`:

```python
from bert4rec_hf import Recommender

Recommender.from_pretrained("path/or/name").recommend(["an item", "a newer item"], k=10)
```
"""


def find_repository(name: str) -> str:
    """Find where on a hub the model of a folder is.

    Args:
        name: A repository; a folder in the cache of huggingface_hub; or one that was pushed.

    Raises:
        ValueError: It is on none, or changed since it was pushed.
    """
    folder, cache = Path(name), Path(constants.HF_HUB_CACHE)
    if not folder.is_dir() and is_repository(name):
        return name
    if folder.resolve().is_relative_to(cache.resolve()):
        kind, _, repository = folder.resolve().relative_to(cache.resolve()).parts[0].partition("--")
        if kind == "models":
            return repository.replace("--", "/", 1)
    way_out = f"push it first, bert4rec push {name} user/name, or give its repository as base"
    record = read_record(folder)
    if not record:
        raise ValueError(
            f"the base model of this adapter is the local folder {name}, which others cannot load; "
            f"{way_out}"
        )
    if record["weights"] != fingerprint_weights(folder):
        raise ValueError(
            f"the base model {name} has changed since it was pushed to {record['repository']}; "
            f"{way_out}"
        )
    return record["repository"]
