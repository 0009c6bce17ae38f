"""The folder that an update leaves: grown vocabulary, the old titles, what was measured."""

import json
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from bert4rec_hf.data.vocabulary import build_vocabulary, vocabulary_fingerprint
from bert4rec_hf.hub.model_folder import save_model_folder


def save_updated(
    model: nn.Module, folder: Path, items: list[str], output: Path, results: dict[str, Any]
) -> None:
    """Write the model with its grown vocabulary, the old titles and card, and what was measured."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as workplace:
        vocabulary = Path(workplace) / "vocabulary"
        build_vocabulary(items).save_pretrained(vocabulary)
        fingerprint = {"vocabulary_fingerprint": vocabulary_fingerprint(items)}
        (vocabulary / "statistics.json").write_text(json.dumps(fingerprint))
        if (folder / "titles.json").exists():
            shutil.copyfile(folder / "titles.json", vocabulary / "titles.json")
        written = Path(workplace) / output.name
        save_model_folder(model, vocabulary, written)
        (written / "update.json").write_text(json.dumps(results, indent=2) + "\n")
        if (folder / "README.md").exists():
            card = (folder / "README.md").read_text(encoding="utf-8").rstrip()
            note = "All other numbers of this card are those of the model before its update."
            text = f"{card}\n\n## Update\n\n{describe(results)}\n\n{note}\n"
            (written / "README.md").write_text(text, encoding="utf-8")
        written.rename(output)


def describe(results: dict[str, Any]) -> str:
    """What an update has done, in a few lines of Markdown."""
    since = datetime.fromtimestamp(results["config"]["since"], UTC)
    lines = [
        f"Updated with what happened since {since:%Y-%m-%d %H:%M} UTC: "
        f"{results['learned_targets']:,} targets learned; {results['new_items']:,} new items join "
        f"{results['known_items']:,}, {results['new_items_from_known']:,} of them initialized from "
        f"known ones; {results['seconds']:.0f} s. On the newest interactions, which were not "
        "learned:",
        "",
        "| | targets | HR@10 before | after | NDCG@10 before | after |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in (("all", "all items"), ("new", "new items")):
        before, after = results["before"][name], results["after"][name]
        if before["targets"]:
            figures = [
                f"{each[metric]:.4f}"
                for metric in ("hit_rate@10", "ndcg@10")
                for each in (before, after)
            ]
            lines.append(f"| {label} | {before['targets']:,} | {' | '.join(figures)} |")
    return "\n".join(lines)
