import json
import runpy
from pathlib import Path

import pytest
import yaml

from bert4rec_hf.config import read_yaml
from bert4rec_hf.experiment import load_experiment
from bert4rec_hf.hub.card import render_card, render_results_table
from bert4rec_hf.hub.comparison_card import render_comparison_card, render_comparisons

ROOT = Path(__file__).parents[1]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


BENCHMARKS = sorted((ROOT / "model_cards" / "results" / "benchmarks").glob("*.json"))
COMPARISONS = sorted((ROOT / "model_cards" / "results" / "comparisons").glob("*.json"))
RESULTS = sorted((ROOT / "model_cards" / "results").glob("*.json"))


def test_the_list_is_not_empty():
    assert ROOT / "model_cards" / "results" / "ml1m-bert4rec.json" in RESULTS
    assert ROOT / "model_cards" / "results" / "comparisons" / "beauty_later.json" in COMPARISONS
    assert BENCHMARKS


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_card_says_what_was_measured(path):
    card = ROOT / "model_cards" / f"{path.stem}.md"
    assert card.read_text(encoding="utf-8") == render_card(read(path)), "run scripts/report.py"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_name_what_they_depend_on(path):
    results = read(path)
    assert results["run"] == path.stem
    assert not results["commit"].endswith("-dirty")
    for key in ("device", "versions", "num_processes"):
        assert results[key]
    assert results["dataset"]["fingerprint"]
    assert results["test"]["protocol"]["candidates"] == "full"
    assert results["experiment"]["training"]["seed"] >= 0


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_experiment_of_committed_results_is_a_committed_config(path, tmp_path):
    dataset, _, name = path.stem.partition("-")
    experiment = load_experiment(ROOT / "configs" / dataset / f"{name}.yaml")
    # Read as a config, so that settings that did not exist yet have their defaults.
    measured = tmp_path / f"{name}.yaml"
    measured.write_text(yaml.safe_dump(read(path)["experiment"]), encoding="utf-8")
    assert load_experiment(measured).to_dict() == experiment.to_dict()


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_a_committed_comparison_is_of_committed_configs_and_says_what_was_measured(path):
    results = read(path)
    card = ROOT / "model_cards" / f"{path.stem}.md"
    text = card.read_text(encoding="utf-8")
    assert text == render_comparison_card(path.stem, results), "run scripts/report.py"
    assert card.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    for name, runs in results["runs"].items():
        folder, _, stem = name.partition("-")
        sections = read_yaml(ROOT / "configs" / folder / f"{stem}.yaml")
        for run in [*runs, results]:
            assert not run["commit"].endswith("-dirty")
        for run in runs:
            for section in ("base", "adapter"):
                assert run["experiment"].get(section) == sections.get(section)
            for setting in sections["training"].keys() - {"seed"}:
                assert run["experiment"]["training"][setting] == sections["training"][setting]
    assert {"base", "full", "lora", "constant_gate", "ilora"} <= {
        name.partition("-")[2] for name in results["runs"]
    }


def test_every_committed_card_has_its_results():
    cards = {path.stem for path in (ROOT / "model_cards").glob("*.md")}
    assert cards - {"benchmarks"} == {path.stem for path in [*RESULTS, *COMPARISONS]}


def test_the_committed_benchmarks_say_what_was_measured():
    folder = ROOT / "model_cards" / "results" / "benchmarks"
    report = runpy.run_path(str(ROOT / "scripts" / "report.py"))
    expected = report["render_benchmarks"](folder)
    committed = (ROOT / "model_cards" / "benchmarks.md").read_text(encoding="utf-8")
    assert committed == expected, "run scripts/report.py"


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_committed_benchmarks_name_what_they_depend_on(path):
    results = read(path)
    assert results["kind"] == "benchmark"
    assert not results["commit"].endswith("-dirty")
    assert results["device"]["name"]
    assert all(each["versions"] for each in results["contestants"] if not each["failure"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("results", render_results_table([read(path) for path in RESULTS])),
        ("comparisons", render_comparisons({path.stem: read(path) for path in COMPARISONS})),
    ],
)
def test_the_tables_of_the_readme_say_what_was_measured(name, expected):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, rest = readme.partition(f"<!-- {name} -->\n")
    table, end, _ = rest.partition(f"\n<!-- /{name} -->")
    assert end
    assert table == expected, "run scripts/report.py"
