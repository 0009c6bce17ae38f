import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.hub.model_folder import save_model_folder
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An untrained model folder and its dataset."""
    root = tmp_path_factory.mktemp("evaluate")
    synthetic = SyntheticConfig(num_users=97, num_items=60, mean_length=8.0, max_length=20)
    config = PreparationConfig(synthetic=synthetic)
    statistics = prepare_dataset("synthetic", None, root / "dataset", config)
    torch.manual_seed(0)
    shape = {"hidden_size": 12, "intermediate_size": 20, "max_history_length": 9}
    vocab_size = statistics["after"]["items"] + 2
    model = BERT4RecForMaskedItemModeling(BERT4RecConfig(vocab_size=vocab_size, **shape))
    save_model_folder(model, root / "dataset", root / "model")
    return root / "model", root / "dataset"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_a_folder_is_measured_beside_the_baselines(folders, tmp_path, monkeypatch, capsys):
    model, dataset = folders
    output = tmp_path / "results.json"
    run(monkeypatch, model, "--dataset", dataset, "--output", output)
    results = json.loads(output.read_text())
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["test", "hit_rate@10", "ndcg@10", "mrr@10", "coverage@10"]
    for line, name in zip(lines, ["model", "popularity", "last_item", "item_knn"], strict=False):
        evaluation = results["test"] if name == "model" else results["baselines"][name]
        assert line.split()[:2] == [name, f"{evaluation['metrics']['hit_rate@10']:.4f}"]
    assert results["test"]["protocol"]["num_histories"] == 97
    assert results["commit"]


def test_a_model_is_measured_at_several_lengths(folders, tmp_path, monkeypatch, capsys):
    model, dataset = folders
    output = tmp_path / "lengths.json"
    run(monkeypatch, model, "--dataset", dataset, "--lengths", 9, 3, "--output", output)
    results = json.loads(output.read_text())
    assert results["lengths"].keys() == {"9", "3"}
    run(monkeypatch, model, "--dataset", dataset, "--output", tmp_path / "whole.json")
    whole = json.loads((tmp_path / "whole.json").read_text())["test"]["metrics"]
    assert results["lengths"]["9"]["metrics"] == whole
    folder = tmp_path / "short"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_history_length": 3}))
    tensors = load_file(folder / "model.safetensors")
    positions = "model.embeddings.positions.weight"
    tensors[positions] = tensors[positions][:3].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    run(monkeypatch, folder, "--dataset", dataset, "--output", tmp_path / "short.json")
    short = json.loads((tmp_path / "short.json").read_text())["test"]["metrics"]
    assert results["lengths"]["3"]["metrics"] == short != whole
    assert results["lengths"]["3"]["histories_per_second"] > 0
    assert "| 9, as in training |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 5], "--lengths must be different numbers from 2, an item and the mask, got [1, 5]"),
        ([5, 5], "--lengths must be different numbers from 2, an item and the mask, got [5, 5]"),
        ([9, 10], "must not exceed the 9 positions that the model has learned, got 10"),
    ],
)
def test_lengths_that_cannot_be_read_are_refused(folders, monkeypatch, capsys, lengths, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, folders[0], "--dataset", folders[1], "--lengths", *lengths)
    assert message in capsys.readouterr().err


def test_sampled_ranking_is_marked(folders, monkeypatch, capsys):
    model, dataset = folders
    settings = ["--evaluation.candidates", "sampled", "--evaluation.num_negatives", "20"]
    run(monkeypatch, model, "--dataset", dataset, *settings)
    assert "sampled ranking: not comparable with full ranking" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{here}/there/x.json"], "there/x.json does not exist; create it"),
        (["--output", "{here}/taken.json"], "taken.json exists; choose another --output"),
        (["--evaluation.kss", "[1]"], "evaluation.kss is not a setting of EvaluationConfig"),
        (["--training.seed", "1"], "training is not a setting of an evaluation"),
    ],
)
def test_a_mistake_is_named_before_anything_is_measured(
    folders, tmp_path, monkeypatch, capsys, arguments, message
):
    model, dataset = folders
    (tmp_path / "taken.json").write_text("{}")
    arguments = [argument.format(here=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, model, "--dataset", dataset, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_all_of_a_large_dataset_is_checked_on_request(folders, tmp_path, monkeypatch, capsys):
    model, dataset = folders
    monkeypatch.setattr("bert4rec_hf.data.verification.QUICK_BYTES", 0)
    changed = shutil.copytree(dataset, tmp_path / "changed")
    statistics = json.loads((changed / "statistics.json").read_text())
    (changed / "statistics.json").write_text(json.dumps(statistics | {"fingerprint": "0" * 16}))
    with pytest.raises(SystemExit):
        run(monkeypatch, model, "--dataset", changed, "--verify")
    assert "statistics.json says 0000000000000000" in capsys.readouterr().err


def test_a_truncated_model_is_named(folders, tmp_path, monkeypatch, capsys):
    model, dataset = folders
    broken = tmp_path / "model"
    broken.mkdir()
    for path in model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: 200 if "safe" in path.name else None])
    with pytest.raises(SystemExit):
        run(monkeypatch, broken, "--dataset", dataset)
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/none/model", "there is no folder {here}/runs/none/model; name one, or a model"),
        ("empty", "empty is not a model folder: it has neither config.json nor "),
    ],
)
def test_what_is_no_model_folder_is_named(folders, tmp_path, monkeypatch, capsys, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / name, "--dataset", folders[1])
    assert message.format(here=tmp_path) in capsys.readouterr().err
