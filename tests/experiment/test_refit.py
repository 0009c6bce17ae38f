import json

import numpy as np
import pytest
import yaml

from bert4rec_hf.commands.main import main
from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.data.synthetic import SyntheticConfig


@pytest.fixture(scope="module")
def everything(root):
    """The interactions of the base model, and nothing held out."""
    synthetic = SyntheticConfig(num_users=150, num_items=60, mean_length=8.0, max_length=20)
    config = PreparationConfig(synthetic=synthetic, split="none")
    prepare_dataset("synthetic", None, root / "everything", config)
    return root / "everything"


def test_a_refit_takes_the_steps_of_the_best_validation_scaled_to_the_data(
    root, everything, run, tmp_path
):
    twin = json.loads((root / "base" / "results.json").read_text())
    past, whole = load_prepared(root / "past"), load_prepared(everything)
    steps = round(
        twin["training"]["best_step"] * whole.train.lengths.sum() / past.train.lengths.sum()
    )
    assert steps > twin["training"]["best_step"]
    arguments = ["--data.dataset", str(everything)]
    results = run(root / "base.yaml", tmp_path / "run", *arguments, refit=root / "base")
    assert results["training"]["step"] == steps
    assert results["training"]["validations"] == []
    assert results["test"] == twin["test"]
    assert results["dataset_fingerprint"] == whole.fingerprint
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    learned = int(np.sum(past.train.lengths))
    assert "**The numbers are those of its twin**" in card
    assert f"the\n{learned:,} interactions before what is held out here" in card
    assert f"| steps | {steps:,}: the {twin['training']['best_step']:,} of the twin's best" in card
    saved = yaml.safe_load((tmp_path / "run" / "experiment.yaml").read_text())
    assert saved["training"]["max_steps"] == steps


def refuse(root, tmp_path, capsys, *arguments):
    with pytest.raises(SystemExit):
        main(["train", str(root / "base.yaml"), "--output", str(tmp_path / "run"), *arguments])
    assert not (tmp_path / "run").exists()
    return capsys.readouterr().err


def test_a_dataset_that_holds_nothing_out_needs_a_twin(root, everything, tmp_path, capsys):
    error = refuse(root, tmp_path, capsys, "--data.dataset", str(everything))
    assert "everything holds out nothing to validate; give a finished run" in error


def test_a_dataset_that_holds_something_out_is_no_refit(root, tmp_path, capsys):
    error = refuse(root, tmp_path, capsys, "--refit", str(root / "base"))
    assert "past holds out 150 histories to validate, and a refit trains on everything" in error


def test_another_experiment_is_no_twin(root, everything, tmp_path, capsys):
    arguments = ["--data.dataset", str(everything), "--model.hidden_size", "8"]
    error = refuse(root, tmp_path, capsys, "--refit", str(root / "base"), *arguments)
    assert "model.hidden_size was 12 and is 8; change only data.dataset" in error


def test_an_unfinished_run_is_no_twin(root, everything, tmp_path, capsys):
    arguments = ["--data.dataset", str(everything), "--refit", str(tmp_path)]
    assert "has no results.json; name the folder of a finished" in refuse(
        root, tmp_path, capsys, *arguments
    )
