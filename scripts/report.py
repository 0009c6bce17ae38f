"""Render the committed cards, tables and plots anew from the files of model_cards/results/.

pip install -e ".[plots]" && python scripts/report.py
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from bert4rec_hf.benchmark.report import render_markdown
from bert4rec_hf.hub.card import render_card, render_results_table
from bert4rec_hf.hub.comparison_card import render_comparison_card, render_comparisons
from bert4rec_hf.hub.study_card import render_study_card
from bert4rec_hf.plots import plot_comparison, plot_study

ROOT = Path(__file__).parents[1]

BENCHMARKS_HEADING = """# Benchmarks

What `scripts/benchmark.py` measured: medians over rounds in which the contestants take turns, lower
and upper quartile in brackets, ratios round by round. `x NAME` is how many times as many histories
per second a contestant does as NAME, `of its MB` the share of its memory at an equal batch, and
`step/floor` its time over that of the unavoidable matrix products alone, measured in the same run.
"""


def render_readme(readme: str, name: str, text: str) -> str:
    """Put a text between the README's marks of a name."""
    marks = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(marks, lambda found: f"{found[1]}{text}\n{found[2]}", readme, flags=re.DOTALL)


def read_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Read results files, in the order of their names."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    }


def render_benchmarks(folder: Path) -> str:
    """Put all benchmarks of a folder one below the other."""
    sections = [render_markdown(name, results) for name, results in read_folder(folder).items()]
    return "\n".join([BENCHMARKS_HEADING, *sections])


def main() -> None:
    """Read results, write cards and tables."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    runs = read_folder(ROOT / "model_cards" / "results")
    for name, results in runs.items():
        card = ROOT / "model_cards" / f"{name}.md"
        card.write_text(render_card(results), encoding="utf-8")
        print(card.relative_to(ROOT))
    comparisons = read_folder(ROOT / "model_cards" / "results" / "comparisons")
    for name, comparison in comparisons.items():
        card = ROOT / "model_cards" / f"{name}.md"
        card.write_text(render_comparison_card(name, comparison), encoding="utf-8")
        plot_comparison(comparison, card.with_suffix(".png"))
        print(card.relative_to(ROOT))
    for name, study in read_folder(ROOT / "model_cards" / "results" / "studies").items():
        card = ROOT / "model_cards" / f"{name}.md"
        card.write_text(render_study_card(name, study), encoding="utf-8")
        plot_study(study, card.with_suffix(".png"))
        print(card.relative_to(ROOT))
    benchmarks = ROOT / "model_cards" / "benchmarks.md"
    benchmarks.write_text(render_benchmarks(ROOT / "model_cards" / "results" / "benchmarks"))
    print(benchmarks.relative_to(ROOT))
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = render_readme(text, "results", render_results_table(list(runs.values())))
    text = render_readme(text, "comparisons", render_comparisons(comparisons))
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
