import json
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml

from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.lab.cards.plots import plot_study
from bert4rec_hf.lab.cards.study_card import render_study_card
from bert4rec_hf.lab.studies import tuning
from bert4rec_hf.lab.studies.tuning import load_search, open_study, run_search

ROOT = Path(__file__).parents[3]
RANGES = {
    "training.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "model.num_hidden_layers": {"low": 1, "high": 2},
    "data.mask_ratio": {"choices": [0.2, 0.5]},
}


@pytest.fixture
def write(root, tmp_path):
    """Write a search around the experiment `base`."""

    def make(ranges=RANGES, fixed=None, **study):
        sections = {
            "study": {"experiment": str(root / "base.yaml"), "num_trials": 6} | study,
            "search": ranges,
            "training": {"evaluation_steps": 2} | (fixed or {}),
        }
        path = tmp_path / "tune.yaml"
        path.write_text(yaml.safe_dump(sections))
        return path

    return make


def test_a_range_that_begins_at_zero_is_described_whole(write):
    ranges = {"data.last_item_ratio": {"low": 0.0, "high": 0.5}}
    assert load_search(write(ranges)).describe()["ranges"] == ranges


def test_a_study_tries_keeps_the_best_and_says_what_matters(write, tmp_path, root):
    output = tmp_path / "study"
    results = run_search(load_search(write(num_startup_trials=6)), output)
    trials = results["trials"]
    assert [trial["number"] for trial in trials] == list(range(6))
    assert {trial["state"] for trial in trials} == {"complete"}
    for trial in trials:
        assert 1e-4 <= trial["values"]["training.learning_rate"] <= 1e-1
        assert trial["values"]["model.num_hidden_layers"] in (1, 2)
        assert trial["values"]["data.mask_ratio"] in (0.2, 0.5)
    assert results["best"] == max(trials, key=lambda trial: trial["value"])
    assert results["importances"].keys() == RANGES.keys()
    assert results["dataset_fingerprint"]
    assert results["commit"]
    assert json.loads((output / "study.json").read_text()) == json.loads(json.dumps(results))
    card = render_study_card("tune", results)
    assert (
        f"the best, trial {results['best']['number']}, has {results['best']['value']:.4f}" in card
    )
    assert "| training.learning_rate | 0.0001 to 0.1, logarithmic |" in card
    plot_study(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_the_best_settings_are_an_experiment_that_ends_where_its_trial_did(write, tmp_path, run):
    output = tmp_path / "study"
    results = run_search(load_search(write(num_trials=2)), output)
    best = load_experiment(output / "best.yaml")
    values = results["best"]["values"]
    assert best.training.learning_rate == values["training.learning_rate"]
    assert best.data.mask_ratio == values["data.mask_ratio"]
    assert best.training.evaluation_steps == 2
    again = run(output / "best.yaml", tmp_path / "again")
    assert again["training"]["best_metric"] == results["best"]["value"]
    kept = output / f"trial-{results['best']['number']:04d}"
    assert (kept / "model" / "model.safetensors").exists()


def test_a_study_goes_on_where_it_was(write, tmp_path):
    output = tmp_path / "study"
    first = run_search(load_search(write(num_trials=2)), output)
    search = load_search(write(num_trials=3))
    second = run_search(search, output)
    assert second["trials"][:2] == first["trials"]
    assert len(second["trials"]) == 3
    assert run_search(search, output)["trials"] == second["trials"]


def test_another_search_in_the_same_folder_is_refused(write, tmp_path):
    output = tmp_path / "study"
    run_search(load_search(write(num_trials=1)), output)
    narrower = RANGES | {"data.mask_ratio": {"choices": [0.2]}}
    with pytest.raises(
        ValueError, match=r"choices was \[0.2, 0.5\] and is \[0.2\]; choose another"
    ):
        run_search(load_search(write(narrower, num_trials=1)), output)


def test_a_trial_that_falls_behind_is_stopped(write, tmp_path):
    """Rates next to zero learn nothing; whoever has one after good ones is stopped."""
    rates = {"training.learning_rate": {"choices": [1e-9, 3e-2]}}
    search = load_search(write(rates, num_trials=8, num_startup_trials=3))
    results = run_search(search, tmp_path / "study")
    stopped = [trial for trial in results["trials"] if trial["state"] == "pruned"]
    assert stopped
    assert {trial["values"]["training.learning_rate"] for trial in stopped} == {1e-9}
    assert max(trial["step"] for trial in stopped) < 8
    assert not any((tmp_path / "study" / f"trial-{t['number']:04d}").exists() for t in stopped)


def test_the_trial_of_a_worker_that_died_is_tried_again(write, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "HEARTBEAT_SECONDS", 1)
    output = tmp_path / "study"
    output.mkdir()
    search = load_search(write(num_trials=1))
    study = open_study(search, output)
    died = study.ask()
    values = {name: each.suggest(name, died) for name, each in search.ranges.items()}
    study._storage.record_heartbeat(died._trial_id)
    time.sleep(3.5)  # twice the heartbeat is the grace, counted in whole seconds
    trials = run_search(search, output)["trials"]
    assert [trial["state"] for trial in trials] == ["fail", "complete"]
    assert trials[1]["values"] == values


@pytest.mark.slow
def test_two_workers_share_a_study(write, tmp_path):
    output, path = tmp_path / "study", write(num_trials=6)
    command = [sys.executable, str(ROOT / "scripts" / "tune.py"), str(path), "--output"]
    workers = [subprocess.Popen([*command, str(output)], cwd=ROOT) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    trials = json.loads((output / "study.json").read_text())["trials"]
    assert 6 <= len(trials) <= 7
    assert len({trial["values"]["training.learning_rate"] for trial in trials}) == len(trials)
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{output / 'study.db'}")
    assert len(study.trials) == len(trials)
    assert (output / "importances.png").exists()


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({}, "search is empty; name a setting and its range under it"),
        (
            {"training.learning_rat": {"low": 1, "high": 2}},
            "learning_rat is not a setting of Train",
        ),
        ({"training.learning_rate": {"low": 1}}, "has either low and high, or choices"),
        ({"training.learning_rate": {"low": 2, "high": 1}}, "low must be below high, got 2 and 1"),
        ({"training.learning_rate": {"low": 0, "high": 1, "log": True}}, "a low above 0, got 0"),
        (
            {"training.learning_rate": {"lo": 1}},
            "search.training.learning_rate.lo is not a setting",
        ),
        (
            {"data.mask_ratio": {"low": 0.5, "high": 1.5}},
            r"mask_ratio must be in \(0, 1\], got 1.5",
        ),
        ({"training.evaluation_steps": {"low": 1, "high": 2}}, "steps is both searched"),
    ],
)
def test_a_wrong_range_is_named_before_anything_is_tried(write, ranges, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_search(write(ranges))
