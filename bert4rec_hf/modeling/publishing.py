"""A model to a repository of a hub, in one commit and with all that belongs to it."""

import filecmp
import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError

from .configuration_bert4rec import BERT4RecConfig
from .pipeline_bert4rec import TASK, NextItemRecommendationPipeline
from .repository import REPOSITORY, find_beside
from .tokenization_bert4rec import BERT4RecTokenizer

COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "titles.json", "handler.py")
"""What belongs to the weights and is not in them."""

CARD_NAME = "README.md"
TAGS = ["recommendation", "sequential-recommendation", "recsys", "next-item-prediction", "bert4rec"]
PIPELINES = {TASK: NextItemRecommendationPipeline}
EMPTY_CARD = "[More Information Needed]"


def name_in_config(kind: type) -> str:
    """Name a class as config.json does, by the file that lies beside it.

    >>> name_in_config(BERT4RecTokenizer)
    'tokenization_bert4rec.BERT4RecTokenizer'
    """
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def name_pipelines(config: BERT4RecConfig) -> None:
    """Let a configuration say which pipelines travel with the model."""
    config.custom_pipelines = {
        task: {"impl": name_in_config(kind), "pt": ["AutoModelForMaskedLM"]}
        for task, kind in PIPELINES.items()
    }


def copy_handler(folder: Path) -> None:
    """Put what Inference Endpoints run into a model folder, where it is at hand."""
    path = Path(__file__).with_name("handler.py")
    if path.is_file():
        shutil.copyfile(path, folder / path.name)


def set_tokenizer_class(folder: Path, max_history_length: int) -> None:
    """Let the vocabulary of a model folder be loaded as BERT4RecTokenizer, and know its length."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {
        "tokenizer_class": BERT4RecTokenizer.__name__,
        "auto_map": {"AutoTokenizer": [None, name_in_config(BERT4RecTokenizer)]},
        "model_max_length": max_history_length,
    }
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


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
    copy_companions(folder, source, revision)
    weights = folder / "model.safetensors"
    before = find_beside(source, weights.name, revision) if weights.is_file() else None
    card = None
    if before is not None and filecmp.cmp(before, weights, shallow=False):
        card = find_beside(source, CARD_NAME, revision)
    if card is None:
        (folder / CARD_NAME).write_text(render_plain_card(config, source), encoding="utf-8")
    elif card.parent.resolve() != folder.resolve():
        shutil.copyfile(card, folder / CARD_NAME)
    return [name for name in COMPANIONS[:1] if not (folder / name).exists()]


def copy_companions(folder: Path, source: str, revision: str | None = None) -> None:
    """Put vocabulary, titles and handler beside saved weights, where the source has them."""
    for name in COMPANIONS:
        if not (folder / name).exists() and (path := find_beside(source, name, revision)):
            shutil.copyfile(path, folder / name)


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
