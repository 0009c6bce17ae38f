"""All committed cards, tables and plots, rendered from the files of `model_cards/results/`."""

import re
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

from bert4rec_hf.hub.card import render_card, render_results_table
from bert4rec_hf.hub.results import read_results
from bert4rec_hf.lab.benchmark.report import render_markdown
from bert4rec_hf.lab.cards.ablation_card import render_ablation_card
from bert4rec_hf.lab.cards.changes import find_study_changes
from bert4rec_hf.lab.cards.comparison_card import (
    render_comparison_card,
    render_comparisons,
    render_seeds,
    split_comparisons,
)
from bert4rec_hf.lab.cards.overview import render_overview
from bert4rec_hf.lab.cards.plots import (
    plot_comparison,
    plot_configurations,
    plot_scaling,
    plot_study,
)
from bert4rec_hf.lab.cards.reliability_card import render_reliability
from bert4rec_hf.lab.cards.report import KINDS, is_drawn, render_report
from bert4rec_hf.lab.cards.scaling_card import render_scaling_card
from bert4rec_hf.lab.cards.study_card import render_study_card
from bert4rec_hf.lab.planning.report import render_comparison as render_planning
from bert4rec_hf.lab.studies.ablation import load_ablation
from bert4rec_hf.lab.studies.scaling import load_scaling

Results = dict[str, dict[str, Any]]
"""Contents of results files by name."""

ROOT = Path(__file__).parents[3]
"""The checkout; an installed package has no cards of its own."""

CARDS = ROOT / "model_cards"
TRIALS = CARDS / "results" / "reliability"
PLANNING = CARDS / "results" / "planning" / "predicted.json"

BENCHMARKS_HEADING = """# Benchmarks

What `bert4rec benchmark` measured: medians over rounds in which the contestants take turns, lower
and upper quartile in brackets, ratios round by round. `x NAME` is how many times as many histories
per second a contestant does as NAME, `of its MB` the share of its memory at an equal batch, and
`step/floor` its time over that of the unavoidable matrix products alone, measured in the same run.
"""


def render_readme(readme: str, name: str, text: str) -> str:
    """Put a text between the README's marks of a name."""
    marks = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(marks, lambda found: f"{found[1]}{text}\n{found[2]}", readme, flags=re.DOTALL)


def read_folder(folder: Path) -> Results:
    """Read results files, in the order of their names."""
    return {path.stem: read_results(path) for path in sorted(folder.glob("*.json"))}


def render_benchmarks(benchmarks: Results) -> str:
    """Put all benchmarks one below the other."""
    sections = [render_markdown(name, results) for name, results in benchmarks.items()]
    return "\n".join([BENCHMARKS_HEADING, *sections])


def read_all() -> dict[str, Results]:
    """Read all results files, by the kind they are of; studies with what has changed since."""
    folder = ROOT / "model_cards" / "results"
    kinds = [kind for kind in KINDS if kind != "runs"]
    results = {"runs": read_folder(folder)} | {kind: read_folder(folder / kind) for kind in kinds}
    for kind, load in {"scaling": load_scaling, "ablations": load_ablation}.items():
        for name, study in results[kind].items():
            dataset, _, stem = name.partition("-")
            with chdir(ROOT):  # as configs name one another from there
                now = load(Path("configs") / dataset / f"{stem}.yaml")
                study["changed_since"] = find_study_changes(now, study["points"])
    return results


def write_cards(
    results: Results,
    render: Callable[[str, dict[str, Any]], str],
    plot: Callable[[dict[str, Any], Path], None] | None = None,
) -> Iterator[Path]:
    """Write a card for each results file, and its plot; yields the cards."""
    for name, content in results.items():
        card = CARDS / f"{name}.md"
        card.write_text(render(name, content), encoding="utf-8")
        if plot:
            plot(content, card.with_suffix(".png"))
        yield card


def render_tables(results: dict[str, Results]) -> dict[Path, dict[str, str]]:
    """Tables by the file that has them, and by their marks there."""
    recipes, adapters = split_comparisons(results["comparisons"])
    return {
        ROOT / "README.md": {"results": render_overview(recipes, results["runs"])},
        CARDS / "README.md": {
            "seeds": render_seeds(recipes),
            "results": render_results_table(list(results["runs"].values())),
            "comparisons": render_comparisons(adapters),
        },
    }


def render_all() -> Iterator[Path]:
    """Read results, write cards, report and tables; yields what was written.

    Raises:
        FileNotFoundError: The package does not lie in a checkout.
    """
    if not CARDS.is_dir():
        raise FileNotFoundError(
            f"{CARDS} does not exist; cards are rendered in a checkout, after pip install -e ."
        )
    results = read_all()
    yield from write_cards(results["runs"], lambda _, run: render_card(run))
    yield from write_cards(results["comparisons"], render_comparison_card, plot_comparison)
    yield from write_cards(results["studies"], render_study_card, plot_study)
    yield from write_cards(results["ablations"], render_ablation_card)
    yield from write_cards(results["scaling"], render_scaling_card, plot_scaling)
    for name, benchmark in results["benchmarks"].items():
        if is_drawn(benchmark):
            plot_configurations(benchmark, CARDS / f"benchmark-{name}.png")
    tables = {
        CARDS / "benchmarks.md": render_benchmarks(results["benchmarks"]),
        CARDS / "report.md": render_report(results),
        CARDS / "reliability.md": render_reliability(read_folder(TRIALS)),
        CARDS / "planning.md": render_planning(read_results(PLANNING)),
    }
    for readme, marked in render_tables(results).items():
        text = readme.read_text(encoding="utf-8")
        for name, table in marked.items():
            text = render_readme(text, name, table)
        tables[readme] = text
    for path, text in tables.items():
        path.write_text(text, encoding="utf-8")
        yield path
