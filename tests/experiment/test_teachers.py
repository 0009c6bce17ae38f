"""Teachers of an experiment: what is refused, what is written, what a launcher changes."""

import json
import logging
import shutil

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.experiment.run import estimate_run, identify_run


@pytest.fixture(scope="module")
def config(root):
    """The base model of the story as the teacher of a narrower one."""
    sections = yaml.safe_load((root / "base.yaml").read_text())
    sections["model"]["hidden_size"] = 8
    sections["training"]["teachers"] = [str(root / "base" / "model")]
    path = root / "student.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def test_a_student_is_trained_measured_and_resumed(config, root, run, tmp_path):
    before = (root / "base" / "model" / "model.safetensors").read_bytes()
    output = tmp_path / "student"
    results = run(config, output)
    assert results["teacher_weights"] == identify(config, root)["teacher_weights"]
    assert "| teachers | " in (output / "model" / "README.md").read_text()
    assert (root / "base" / "model" / "model.safetensors").read_bytes() == before
    weights = load_file(output / "model" / "model.safetensors")
    shutil.rmtree(output / "checkpoints" / "step-00000008")
    (output / "results.json").unlink()
    assert run(config, output, is_resumed=True)["test"] == results["test"]
    again = load_file(output / "model" / "model.safetensors")
    torch.testing.assert_close(again, weights, rtol=0, atol=0)
    alone = run(config, tmp_path / "alone", "--training.teachers", "[]")
    assert "teacher_weights" not in alone
    assert alone["test"]["metrics"] != results["test"]["metrics"]


def identify(config, root, *arguments):
    """What a run of these settings is known by."""
    accelerator = Accelerator(cpu=True)
    dataset = load_prepared(root / "past")
    return identify_run(load_experiment(config, arguments), dataset, accelerator)


def test_a_run_is_resumed_with_the_same_teachers_only(config, root, run, tmp_path):
    shutil.copytree(root / "base", tmp_path / "base")
    teacher = tmp_path / "base" / "model"
    given = ["--training.teachers", f"[{teacher}]", "--training.max_steps", "4"]
    run(config, tmp_path / "student", *given)
    weights = load_file(teacher / "model.safetensors")
    weights["model.embed_tokens.weight"] += 1
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="teacher_weights was"):
        run(config, tmp_path / "student", *given, is_resumed=True)


def test_memory_counts_teachers(config, root):
    def estimate(*arguments):
        experiment = load_experiment(config, arguments)
        return estimate_run(experiment, load_prepared(root / "past"), Accelerator(cpu=True))

    weights = load_file(root / "base" / "model" / "model.safetensors")
    size = sum(weight.nbytes for weight in weights.values())
    alone = estimate("--training.teachers", "[]")
    assert estimate().parameters - alone.parameters == size
    # One row of 8 numbers for each of 60 items, padding and mask.
    assert estimate().gradients - alone.gradients == 62 * 8 * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--model.objective", "gbce"], "need model.objective full_softmax, .* got gbce; change"),
        (["--model.num_neighbors", "4"], "got model.num_neighbors = 4; set training.added_neigh"),
        (["--training.teacher_weight", "1.5"], r"teacher_weight must be in \[0, 1\], got 1.5"),
    ],
)
def test_a_model_that_cannot_be_taught_is_refused(config, settings, message):
    with pytest.raises(ValueError, match=message):
        load_experiment(config, settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--training.teachers", "[runs/no/model]"], "there is no folder runs/no/model; name"),
        (["--model.is_causal", "true"], "whose is_causal is False, .* is True: they answer at"),
        (["--model.max_history_length", "12"], "which reads 9 items .* student reads 12; lower"),
    ],
)
def test_a_teacher_that_cannot_be_one_is_refused(config, root, settings, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        identify(config, root, *settings)


def test_a_teacher_that_cannot_read_prefix_views_is_refused(config, root, tmp_path):
    shutil.copytree(root / "base" / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    settings = json.loads(path.read_text())
    del settings["settings_fingerprint"]
    path.write_text(json.dumps(settings | {"position_origin": "newest"}))
    given = ["--training.teachers", f"[{tmp_path / 'model'}]", "--data.prefix_view_ratio", "0.5"]
    with pytest.raises(ValueError, match=r"model, and data.prefix_view_ratio is 0.5, and such"):
        identify(config, root, *given)


def test_a_teacher_of_other_interactions_is_refused(config, root, run, tmp_path):
    settings = ["--training.teachers", "[]", "--training.max_steps", "1"]
    run(config, tmp_path / "later", f"--data.dataset={root / 'later'}", *settings)
    teacher = tmp_path / "later" / "model"
    learned, own = (load_prepared(root / name).fingerprint for name in ("later", "past"))
    with pytest.raises(ValueError, match=f"fingerprints {learned} and {own}. and may know items"):
        identify(config, root, "--training.teachers", f"[{teacher}]")


def test_an_adapter_is_no_teacher(config, root, run, tmp_path):
    run(root / "lora.yaml", tmp_path / "lora", "--training.max_steps", "1")
    with pytest.raises(ValueError, match="which is an adapter; name folders of models"):
        identify(config, root, "--training.teachers", f"[{tmp_path / 'lora' / 'adapter'}]")


def test_a_teacher_of_unknown_interactions_is_warned_of(config, root, tmp_path, caplog):
    shutil.copytree(root / "base" / "model", tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        identify(config, root, "--training.teachers", f"[{tmp_path / 'model'}]")
    assert f"{tmp_path / 'model'}, beside which no run.json says" in caplog.text


@pytest.mark.slow
def test_two_processes_learn_from_teachers_what_one_does(config, tmp_path, launch):
    settings = ["--model.hidden_dropout=0", "--model.attention_dropout=0"]
    for processes in (1, 2):
        sizes = {"batch_size": 16, "gradient_accumulation_steps": 2 // processes}
        given = [f"--training.{name}={value}" for name, value in sizes.items()]
        output = tmp_path / str(processes)
        done = launch(config, "--output", output, *settings, *given, processes=processes)
        assert done.returncode == 0, done.stderr
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in "12"]
    torch.testing.assert_close(*weights)


@pytest.mark.slow
def test_teachers_go_with_mixed_precision_and_a_compiler(config, tmp_path, launch):
    settings = ["--data.pad_to_multiple_of", "64"]
    given = {"precision": "bf16", "backend": "aot_eager"}
    done = launch(config, "--output", tmp_path / "out", *settings, **given)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["mixed_precision"], results["dynamo_backend"]) == ("bf16", "aot_eager")
    assert results["teacher_weights"]
