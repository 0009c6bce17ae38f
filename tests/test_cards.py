from pathlib import Path

import pytest
import yaml

from bert4rec_hf.config import read_yaml
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.hub.card import render_card
from bert4rec_hf.hub.results import read_results
from bert4rec_hf.lab.cards import render
from bert4rec_hf.lab.cards.ablation_card import render_ablation_card
from bert4rec_hf.lab.cards.changes import find_changes
from bert4rec_hf.lab.cards.comparison_card import (
    render_comparison_card,
    split_comparisons,
)
from bert4rec_hf.lab.cards.overview import render_overview
from bert4rec_hf.lab.cards.report import KINDS, is_drawn
from bert4rec_hf.lab.cards.scaling_card import render_scaling_card
from bert4rec_hf.lab.cards.study_card import render_study_card
from bert4rec_hf.lab.studies.ablation import load_ablation
from bert4rec_hf.lab.studies.scaling import load_scaling
from bert4rec_hf.lab.studies.tuning import load_search

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted((ROOT / "model_cards" / "results" / "benchmarks").glob("*.json"))
COMPARISONS = sorted((ROOT / "model_cards" / "results" / "comparisons").glob("*.json"))
RECIPES, ADAPTERS = split_comparisons({path.stem: read_results(path) for path in COMPARISONS})
STUDIES = sorted((ROOT / "model_cards" / "results" / "studies").glob("*.json"))
SCALINGS = sorted((ROOT / "model_cards" / "results" / "scaling").glob("*.json"))
ABLATIONS = sorted((ROOT / "model_cards" / "results" / "ablations").glob("*.json"))
RESULTS = sorted((ROOT / "model_cards" / "results").glob("*.json"))


def test_the_list_is_not_empty():
    assert ROOT / "model_cards" / "results" / "ml1m-bert4rec.json" in RESULTS
    assert ROOT / "model_cards" / "results" / "comparisons" / "beauty_later.json" in COMPARISONS
    assert BENCHMARKS
    assert ROOT / "model_cards" / "results" / "scaling" / "beauty-scaling.json" in SCALINGS
    assert ROOT / "model_cards" / "results" / "studies" / "ml100k-tune.json" in STUDIES


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_card_says_what_was_measured(path):
    card = ROOT / "model_cards" / f"{path.stem}.md"
    assert card.read_text(encoding="utf-8") == render_card(read_results(path)), (
        "run bert4rec report"
    )


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_name_what_they_depend_on(path):
    results = read_results(path)
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
    measured.write_text(yaml.safe_dump(read_results(path)["experiment"]), encoding="utf-8")
    assert load_experiment(measured).to_dict() == experiment.to_dict()


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_a_committed_comparison_is_of_committed_configs_and_says_what_was_measured(path):
    results = read_results(path)
    card = ROOT / "model_cards" / f"{path.stem}.md"
    text = card.read_text(encoding="utf-8")
    assert text == render_comparison_card(path.stem, results), "run bert4rec report"
    assert card.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    for name, runs in results["runs"].items():
        folder, _, stem = name.partition("-")
        sections = read_yaml(ROOT / "configs" / folder / f"{stem}.yaml")
        for run in [*runs, results]:
            assert not run["commit"].endswith("-dirty")
        for run in runs:
            assert find_changes(run["experiment"], sections) == {}
    if path.stem in ADAPTERS:
        stems = {name.partition("-")[2] for name in results["runs"]}
        assert {"base", "full", "lora", "constant_gate", "ilora"} <= stems
    else:
        assert results["against"].endswith(("-bert4rec", "-neighbors"))
        assert len(results["runs"][results["against"]]) >= 3


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_committed_search_is_of_a_committed_config_and_says_what_was_found(path, monkeypatch):
    results, card = read_results(path), ROOT / "model_cards" / f"{path.stem}.md"
    text = card.read_text(encoding="utf-8")
    assert text == render_study_card(path.stem, results), "run bert4rec report"
    assert card.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert not results["commit"].endswith("-dirty")
    dataset, _, name = path.stem.partition("-")
    monkeypatch.chdir(ROOT)
    search = load_search(ROOT / "configs" / dataset / f"{name}.yaml")
    assert search.describe() == results["search"]
    done = [trial for trial in results["trials"] if trial["state"] in ("complete", "pruned")]
    assert len(done) == search.study.num_trials
    complete = [trial for trial in done if trial["state"] == "complete"]
    assert results["best"] == max(complete, key=lambda trial: trial["value"])


OF_RUNS = {
    "scaling": (load_scaling, render_scaling_card, ("size", "max_steps", "seed")),
    "ablations": (load_ablation, render_ablation_card, ("change", "seed")),
}
"""Kinds of studies: how their configs are read and their cards rendered, what tells runs apart."""


@pytest.mark.parametrize("path", SCALINGS + ABLATIONS, ids=lambda path: path.stem)
def test_a_committed_study_has_all_runs_of_a_committed_config(path, monkeypatch):
    load, render_study, labels = OF_RUNS[path.parent.name]
    results = render.read_all()[path.parent.name][path.stem]
    card = ROOT / "model_cards" / f"{path.stem}.md"
    text = card.read_text(encoding="utf-8")
    assert text == render_study(path.stem, results), "run bert4rec report"
    dataset, _, name = path.stem.partition("-")
    monkeypatch.chdir(ROOT)
    study = load(ROOT / "configs" / dataset / f"{name}.yaml")
    assert {key: results[key] for key in study.description} == study.description
    points = {tuple(point[key] for key in labels): point for point in results["points"]}
    runs = {tuple(run.labels[key] for key in labels): run for run in study.runs}
    assert points.keys() == runs.keys()
    assert len({point["dataset_fingerprint"] for point in points.values()}) == 1
    changes = {}
    for key, point in points.items():
        assert not point["commit"].endswith("-dirty")
        assert point["device"]["name"]
        now = study.build(runs[key]).to_dict()
        changes |= find_changes(point["experiment"] | {"card": now["card"]}, now)
    # A study of an older recipe may stay until it is measured again, if its card says so.
    assert ("are of an older recipe and say nothing of" in text) == bool(changes)
    assert all(f"`{setting}` {was} → {now}" in text for setting, (was, now) in changes.items())


@pytest.mark.parametrize("path", SCALINGS, ids=lambda path: path.stem)
def test_a_study_of_scale_is_drawn(path):
    picture = ROOT / "model_cards" / f"{path.stem}.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_every_kind_of_results_is_known():
    folders = {path.name for path in (ROOT / "model_cards" / "results").iterdir() if path.is_dir()}
    assert "scaling" in folders
    # What preparing and serving cost, plans and trials stand in no report.
    assert folders <= {*KINDS, "planning", "preparation", "reliability", "serving"}


def test_every_committed_card_has_its_results():
    cards = {path.stem for path in (ROOT / "model_cards").glob("*.md")}
    files = [*RESULTS, *COMPARISONS, *STUDIES, *SCALINGS, *ABLATIONS]
    assert cards - {"README", "benchmarks", "planning", "reliability", "report"} == {
        path.stem for path in files
    }


@pytest.mark.parametrize("name", ["benchmarks", "planning", "reliability", "report"])
def test_the_committed_benchmarks_and_the_report_say_what_was_measured(name):
    results = render.read_all()
    expected = {
        "benchmarks": lambda: render.render_benchmarks(results["benchmarks"]),
        "planning": lambda: render.render_planning(read_results(render.PLANNING)),
        "reliability": lambda: render.render_reliability(render.read_folder(render.TRIALS)),
        "report": lambda: render.render_report(results),
    }[name]()
    committed = (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
    assert committed == expected, "run bert4rec report"


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmarks_of_configurations_are_drawn(path):
    picture = ROOT / "model_cards" / f"benchmark-{path.stem}.png"
    assert picture.exists() == is_drawn(read_results(path)), "run bert4rec report"


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_committed_benchmarks_name_what_they_depend_on(path):
    results = read_results(path)
    assert results["kind"] == "benchmark"
    assert not results["commit"].endswith("-dirty")
    assert results["device"]["name"]
    assert all(each["versions"] for each in results["contestants"] if not each["failure"])


TABLES = [
    (path, name, table)
    for path, tables in render.render_tables(render.read_all()).items()
    for name, table in tables.items()
]


@pytest.mark.parametrize(("path", "name", "expected"), TABLES)
def test_the_tables_of_the_readmes_say_what_was_measured(path, name, expected):
    _, _, rest = path.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    table, end, _ = rest.partition(f"\n<!-- /{name} -->")
    assert end
    assert table == expected, "run bert4rec report"


def test_a_model_below_item_knn_is_marked_in_the_overview():
    run = read_results(ROOT / "model_cards" / "results" / "ml100k-bert4rec.json")
    assert "(**below item-kNN**)" in render_overview({}, {"worse": run})
    run["test"]["metrics"]["ndcg@10"] = 0.0766  # item-kNN has .0765
    assert "below item-kNN" not in render_overview({}, {"better": run})
