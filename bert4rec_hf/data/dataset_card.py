"""The card of a prepared dataset: every figure in it stands in `statistics.json`."""

import json
from collections.abc import Iterable
from typing import Any

from huggingface_hub import DatasetCardData

from .markdown import escape, escape_all, fence


def render_card(statistics: dict[str, Any], repository: str = "") -> str:
    """Tell in Markdown what the folder holds, with the metadata that a hub reads.

    Args:
        statistics: As `prepare_dataset` returns them.
        repository: Name of the dataset on a hub; empty for a folder.
    """
    before, after, lengths = (statistics[key] for key in ("before", "after", "lengths"))
    ties, seen = statistics["tied_timestamps"], statistics["repeated"]["test targets seen before"]
    tested = max(1, statistics["splits"]["test"]["histories"])
    facts = {
        "items per user, mean": f"{lengths['mean']:.1f}",
        "items per user, median": f"{lengths['median']:g}",
        "items per user, at most": f"{lengths['max']:,}",
        "sparsity": f"{statistics['sparsity']:.4%}",
        "next to each other with the same timestamp": "unknown" if ties is None else f"{ties:.1%}",
        "targets of the test that repeat an item of their history": f"{seen / tested:.1%}",
        "items that never occur in training": f"{statistics['items_not_in_train']:,}",
        "items with a title": f"{statistics['titles']:,}",
    }
    parts = statistics["splits"]
    columns = list(parts["test"])
    name, origin = statistics["file"] or statistics["source"], ""
    if hub := statistics.get("hub"):
        name = f"{hub['repository']} {hub['config']}".strip()
        origin = f" of the dataset `{hub['repository']}` at revision `{hub['revision']}`"
    title = f"{name}, prepared for sequential recommendation"
    tags = ["recommendation", "sequential-recommendation", "recsys", "next-item-prediction"]
    return CARD.format(
        metadata=DatasetCardData(pretty_name=title, tags=tags).to_yaml(),
        title=escape(title),
        counts=_table(["", *after], [["source", *before.values()], ["kept", *after.values()]]),
        facts=_table(["", ""], facts.items()),
        dropped=_table(["interactions dropped by", ""], statistics["dropped"].items()),
        left_out=_table(["users not held out", ""], statistics["left_out"].items()),
        parts=_table(["", *columns], [[key, *map(parts[key].get, columns)] for key in parts]),
        use=(USE_OF_REPOSITORY if repository else USE).format(repository=repository),
        origin=origin,
        sets=SETS if "targets in sets" in columns else "",
        settings=fence(json.dumps(statistics["settings"], indent=2)),
        **{key: statistics[key] for key in ("source", "fingerprint", "vocabulary_fingerprint")},
    )


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Write a Markdown table; numbers get separators, what is missing a dash."""
    lines = [list(header), ["---"] * len(header)]
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else cell for cell in map(escape_all, row))
        lines.append(["–" if cell is None else cell for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


CARD = """---
{metadata}
---

# {title}

Histories of items, oldest first, read from the source `{source}`{origin}. Ids are those of
`tokenizer.json`: 0 is padding, 1 the mask, items begin at 2.

{counts}

{facts}

## Split

Validation and test rank the held-out `target`, which follows the history `items`.{sets}

{parts}

{left_out}

## What was dropped

{dropped}

## How it was prepared

```json
{settings}
```

Fingerprint `{fingerprint}`, of the vocabulary alone `{vocabulary_fingerprint}`.

## Use

```python
{use}```
"""

SETS = " Their `targets` are all\nitems of the user in that part, each once."

USE = """from datasets import load_from_disk
from transformers import AutoTokenizer

histories = load_from_disk("this folder")["train"]
tokenizer = AutoTokenizer.from_pretrained("this folder")
tokenizer.convert_ids_to_tokens(histories[0]["items"])
"""

USE_OF_REPOSITORY = """from datasets import load_dataset
from huggingface_hub import hf_hub_download
from transformers import PreTrainedTokenizerFast

histories = load_dataset("{repository}")["train"]
vocabulary = hf_hub_download("{repository}", "tokenizer.json", repo_type="dataset")
tokenizer = PreTrainedTokenizerFast(tokenizer_file=vocabulary)
tokenizer.convert_ids_to_tokens(histories[0]["items"])
"""
