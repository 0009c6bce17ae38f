"""What a card can say only when it is pushed: the names that things have on the hub."""

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, ModelCard, eval_result_entries_to_yaml

from bert4rec_hf.modeling.publishing import CARD_NAME

from .card import FOLDER
from .pull import is_repository

RECORD = ".hub.json"
"""Where a folder remembers what repository it was pushed to; it is not pushed itself."""


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Let a folder remember where it was pushed to."""
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Where a folder was pushed to; empty if it was not."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def finish_card(stage: Path, repo_id: str, results: dict[str, Any]) -> None:
    """Let the card load the repository, and name dataset and base model by theirs.

    Where the dataset is on the hub, the metrics go to `.eval_results`, too.

    Args:
        stage: What will be pushed.
        repo_id: Where to.
        results: Of the run that trained it; empty if that is not known.
    """
    path = stage / CARD_NAME
    card = ModelCard(path.read_text(encoding="utf-8").replace(FOLDER, repo_id))
    experiment = results.get("experiment", {})
    dataset = find_name(experiment.get("data", {}).get("dataset", ""))
    if dataset:
        card.data.datasets = [dataset]
        write_eval_results(stage, dataset, results)
    base = find_name((experiment.get("base") or {}).get("model", ""))
    if base and not experiment.get("adapter"):
        card.data.base_model = base
        card.data.base_model_relation = "finetune"
    path.unlink()
    card.save(path)


def find_name(folder: str) -> str:
    """Name a folder, or a repository, as the hub does; empty if it is not known there."""
    if not folder or Path(folder).is_dir():
        return read_record(Path(folder)).get("repository", "") if folder else ""
    name = folder.partition("@")[0]
    return name if is_repository(name) else ""


def write_eval_results(stage: Path, dataset: str, results: dict[str, Any]) -> None:
    """Write the metrics on test as a hub reads them."""
    protocol = results["test"]["protocol"]
    seen = "left out" if protocol["exclude_seen"] else "ranked"
    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=name,
            value=round(value, 6),
            notes=f"{protocol['candidates']} ranking, items of the history {seen}",
        )
        for name, value in sorted(results["test"]["metrics"].items())
        if name.endswith("@10")
    ]
    folder = stage / ".eval_results"
    folder.mkdir(exist_ok=True)
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    (folder / "test.yaml").write_text(text, encoding="utf-8")
