import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bert4rec_hf.config import read_yaml
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.lab.planning.devices import Rates, peak_rates, read_measured
from bert4rec_hf.lab.planning.plan import Size, make_plan
from bert4rec_hf.recipe import choose_settings

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "model_cards" / "results").glob("*-bert4rec.json"))
SIZES = {
    "beauty": (22_363, 153_776, 12_101),
    "beauty_paper": (40_226, 273_510, 54_542),
    "electronics_gid": (9_699, 185_536, 7_679),
    "ml1m": (6_040, 987_531, 3_416),
    "ml_latest_small": (671, 98_662, 9_066),
    "ml1m_all": (6_040, 988_129, 3_706),
}
"""Histories and interactions of the training part, and items, as the datasets' cards count them."""


RECIPES = [
    path
    for path in sorted((ROOT / "configs").glob("*/*.yaml"))
    if path.stem in ("bert4rec", "neighbors") and path.parent.name in SIZES
]
"""Those called bert4rec go without the neighbors that the recipe adds at the end, to compare."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: "-".join(path.parts[-2:]))
def test_the_committed_configs_are_the_recipe(path):
    sections = read_yaml(path)
    del sections["data"]["dataset"]
    chosen = choose_settings(*SIZES[path.parent.name])
    if path.stem == "bert4rec":
        assert chosen["training"].pop("added_neighbors") == 50
    for section, settings in chosen.items():
        assert sections[section] == settings


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_sizes_are_those_of_the_datasets_that_were_measured(path):
    dataset = json.loads(path.read_text(encoding="utf-8"))["dataset"]
    train = dataset["splits"]["train"]
    sizes = (train["histories"], train["interactions"], dataset["after"]["items"])
    assert SIZES.get(path.stem.removesuffix("-bert4rec"), sizes) == sizes


COUNTS = (3, 100, 671, 943, 6_040, 22_363, 50_000, 138_493, 10**6, 5 * 10**6, 10**7, 10**8)
LENGTHS = (3, 7, 20, 48, 50, 104, 160, 800)
TABLE = {
    (histories, length): choose_settings(histories, histories * length, 20_000)
    for histories in COUNTS
    for length in LENGTHS
}


def describe(histories, length):
    """What follows from the settings of so many histories of such a mean length."""
    settings = TABLE[histories, length]
    training = settings["training"]
    batch_size = min(training["batch_size"], histories)
    items = batch_size * min(length, settings["model"]["max_history_length"])
    return {
        "histories": histories,
        "mean length": length,
        "width": settings["model"]["hidden_size"],
        "reads": settings["model"]["max_history_length"],
        "batch": training["batch_size"],
        "rate": training["learning_rate"],
        "steps": training["max_steps"],
        "epochs": round(training["max_steps"] * batch_size / histories, 2),
        "validations": training["max_steps"] // training["evaluation_steps"],
        "items a step": items,
    }


def test_at_every_size_epochs_steps_and_batches_stay_within_bounds():
    """From 3 users to 100 million; `pytest -s` prints the table."""
    rows = [describe(*size) for size in TABLE]
    lines = [rows[0], *(row.values() for row in rows)]
    print("", *(" ".join(f"{cell:>12}" for cell in line) for line in lines), sep="\n")  # noqa: T201
    for row in rows:
        assert 1.9 <= row["epochs"] <= 50
        assert row["steps"] <= 140_000
        assert row["steps"] >= 2_500 or row["epochs"] > 48
        assert 4 <= row["validations"] <= 70
        assert 64 <= row["width"] <= 128
        # Packed prefix views have up to twice as many tokens.
        assert row["items a step"] <= 600_000
        assert row["rate"] <= 0.004
    assert len(rows) == 12 * 8


PLANNED = [(n, length) for n in (671, 50_000, 10**6, 10**8) for length in (7, 160)]
"""Priced on two threads of the measured CPUs, and on an A100 at an assumed 30 % of its peaks."""


def plan_hours(histories, length, tmp_path):
    """Hours of all steps and memory, as `bert4rec plan` has them for 20,000 items."""
    card = {"dataset_name": "any", "dataset_license": "none"}
    sections = {**TABLE[histories, length], "evaluation": {"ks": [10]}, "card": card}
    sections["data"] = sections["data"] | {"dataset": "any"}
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump(sections))
    experiment = load_experiment(config, ["--training.trackers=[]"])
    size = Size(num_items=20_000, num_users=histories, num_interactions=histories * length)
    plan = make_plan(experiment, size, "cpu2")
    known = read_measured()["rates"]["cpu2"]["no"]
    names = ("seconds_per_operation", "seconds_per_byte")
    rates = Rates(**{name: known[name] for name in names})
    steps = plan.step.times(plan.max_steps)
    return {
        "histories": histories,
        "mean length": length,
        "hours cpu2": round(rates.seconds(steps) / 3_600, 2),
        "hours a100": round(peak_rates("a100", "bf16", 0.3).bound(steps) / 3_600, 3),
        "GB a step": round(plan.memory.total / 1e9, 2),
        "GB to start": round(plan.start_bytes / 1e9, 2),
    }


@pytest.mark.slow
def test_hours_and_memory_stay_within_bounds(tmp_path):
    """By the rates of measured and of unmeasured devices; `pytest -s` prints the table."""
    rows = [plan_hours(*size, tmp_path) for size in PLANNED]
    lines = [rows[0], *(row.values() for row in rows)]
    print("", *(" ".join(f"{cell:>12}" for cell in line) for line in lines), sep="\n")  # noqa: T201
    for row in rows:
        assert row["GB to start"] < 3
        assert row["GB a step"] < 24
        assert row["hours a100"] < 6
        if row["histories"] <= 50_000:
            assert row["hours cpu2"] < 6
    assert len(rows) == 8


def test_large_datasets_are_read_in_large_batches():
    million, hundred = (describe(n, 7) for n in (10**6, 10**8))
    assert million["batch"] >= 256
    assert hundred["batch"] > 4 * million["batch"]
    assert describe(5 * 10**6, 160)["epochs"] >= 2
    assert describe(138_493, 160)["epochs"] > 4  # as many users as MovieLens-20M has


@pytest.mark.parametrize("histories", COUNTS)
def test_no_mean_length_is_an_edge(histories):
    """A hundredth more of it changes no setting by more than rounding does."""
    for mean_length in (19.99, 20.0, 49.99, 50.0, 100.0, 159.99, 160.0):
        sides = [
            choose_settings(histories, int(1_000 * length * histories) // 1_000, 20_000)
            for length in (mean_length, 1.01 * mean_length)
        ]
        for section in ("data", "model", "training"):
            for name, value in sides[0][section].items():
                other = sides[1][section][name]
                if isinstance(value, float | int):
                    tolerance = {"hidden_size": 16, "intermediate_size": 64}.get(name, 10)
                    near = pytest.approx(value, rel=0.05, abs=tolerance if value >= 10 else 0.02)
                    assert other == near, (name, value, other)
                else:
                    assert other == value


def test_more_histories_are_not_read_in_fewer_steps():
    for mean_length in LENGTHS:
        steps = [TABLE[n, mean_length]["training"]["max_steps"] for n in COUNTS]
        assert steps == sorted(steps)


def test_a_large_catalog_is_learned_with_negatives():
    for num_items, objective in ((100_000, "full_softmax"), (100_001, "sampled_softmax")):
        settings = choose_settings(1_000, 9_000, num_items)
        assert settings["model"]["objective"] == objective
        distribution = settings["data"].get("negative_distribution", "uniform")
        assert distribution == ("uniform" if objective == "full_softmax" else "popularity")


def write_recipe(*arguments):
    command = [sys.executable, ROOT / "scripts" / "recipe.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_script_writes_an_experiment_that_can_be_run(root, tmp_path):
    output = tmp_path / "new" / "bert4rec.yaml"
    done = write_recipe(root / "past", "--output", output, "--name", "Bücher", "--license", "CC0")
    assert done.returncode == 0, done.stderr
    experiment = load_experiment(output)
    assert experiment.data.dataset == str(root / "past")
    assert experiment.card.dataset_name == "Bücher"
    assert experiment.training.item_initialization == "co_occurrence"

    before = output.read_bytes()
    again = write_recipe(root / "past", "--output", output)
    assert again.returncode == 2
    assert f"{output} exists; choose another --output or remove it" in again.stderr
    assert output.read_bytes() == before


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    done = write_recipe(tmp_path, "--output", tmp_path / "x.yaml")
    assert done.returncode == 2
    assert "is not a prepared dataset" in done.stderr
    assert not (tmp_path / "x.yaml").exists()
