import json
import subprocess
import sys
from pathlib import Path

import pytest

from bert4rec_hf.config import read_yaml
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.recipe import choose_settings

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "model_cards" / "results").glob("*-bert4rec.json"))
SIZES = {
    "beauty": (22_363, 153_776, 12_101),
    "beauty_paper": (40_226, 273_510, 54_542),
    "electronics_gid": (9_699, 185_536, 7_679),
    "ml1m": (6_040, 987_531, 3_416),
    "ml1m_all": (6_040, 988_129, 3_706),
}
"""Histories and interactions of the training part, and items, as the datasets' cards count them."""


@pytest.mark.parametrize("name", SIZES)
def test_the_committed_configs_are_the_recipe(name):
    sections = read_yaml(ROOT / "configs" / name / "bert4rec.yaml")
    del sections["data"]["dataset"]
    for section, settings in choose_settings(*SIZES[name]).items():
        assert sections[section] == settings


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_sizes_are_those_of_the_datasets_that_were_measured(path):
    dataset = json.loads(path.read_text(encoding="utf-8"))["dataset"]
    train = dataset["splits"]["train"]
    sizes = (train["histories"], train["interactions"], dataset["after"]["items"])
    assert SIZES.get(path.stem.removesuffix("-bert4rec"), sizes) == sizes


def test_what_hangs_on_the_dataset_is_what_the_readme_says():
    short, long = choose_settings(1_000, 49_999, 500), choose_settings(1_000, 50_000, 500)
    assert short["model"]["max_history_length"] == 50
    assert long["model"]["max_history_length"] == 200
    assert short["training"]["max_steps"] == 2_500
    many = choose_settings(1_000_000, 9_000_000, 100_001)
    assert many["training"]["max_steps"] == 109_300  # seven times a million by 64, in hundreds
    assert many["model"]["objective"] == "sampled_softmax"


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
