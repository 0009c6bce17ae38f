import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.experiment import run as run_module
from bert4rec_hf.experiment.build import build_accelerator, build_model, initialize
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.experiment.measurement import evaluate_folder, validate_model
from bert4rec_hf.experiment.run import run_experiment
from bert4rec_hf.training.checksums import digest_file
from bert4rec_hf.training.neighbors import count_neighbors

ROOT = Path(__file__).parents[2]
SECTIONS = {
    "data": {"dataset": "", "mask_ratio": 0.4},
    "model": {"hidden_size": 12, "intermediate_size": 20, "max_history_length": 9},
    "training": {
        "learning_rate": 0.01,
        "batch_size": 32,
        "max_steps": 8,
        "evaluation_steps": 4,
        "checkpoint_steps": 4,
        "trackers": ["tensorboard"],
    },
    "evaluation": {"ks": [3, 10], "num_bootstrap_samples": 50},
    "card": {"dataset_name": "generated", "dataset_license": "none"},
}


def read_losses(output):
    """The loss of each step that was logged."""
    (path,) = (output / "logs").glob("*/events.out.tfevents.*")
    events = EventAccumulator(str(path)).Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def make_dataset(folder, num_items=60, seed=0):
    synthetic = SyntheticConfig(
        num_users=150, num_items=num_items, mean_length=8.0, max_length=20, seed=seed
    )
    prepare_dataset("synthetic", None, folder, PreparationConfig(synthetic=synthetic))
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "generated")


@pytest.fixture(scope="module")
def config(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    sections = SECTIONS | {"data": SECTIONS["data"] | {"dataset": str(dataset)}}
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A run's folder and what it returned."""
    output = tmp_path_factory.mktemp("runs") / "tiny"
    experiment = load_experiment(config)
    torch.manual_seed(0)
    return output, run_experiment(experiment, output, build_accelerator(experiment, output))


def test_a_run_leaves_a_model_folder_that_transformers_loads(run, dataset):
    output, results = run
    model = AutoModelForMaskedLM.from_pretrained(output / "model")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert len(tokenizer) == model.config.vocab_size == load_prepared(dataset).vocab_size
    assert model.num_parameters() == results["parameters"]["total"]
    assert results["parameters"]["item_embeddings"] == model.config.vocab_size * 12


def test_results_state_what_the_numbers_depend_on(run, dataset):
    output, results = run
    assert json.loads((output / "results.json").read_text()) == json.loads(json.dumps(results))
    prepared = load_prepared(dataset)
    assert results["dataset"]["fingerprint"] == prepared.fingerprint
    assert results["experiment"]["training"]["seed"] == 0
    assert results["test"]["protocol"]["num_items"] == prepared.num_items
    assert results["versions"]["torch"] == torch.__version__
    assert results["device"]["name"]
    assert results["commit"]
    assert results["training"]["step"] == 8
    assert results["training"]["histories"] == 8 * 32


def test_the_best_model_is_measured_and_saved(run, config, dataset):
    output, results = run
    assert results["validation"]["metrics"]["ndcg@10"] == pytest.approx(
        results["training"]["best_metric"], abs=1e-12
    )
    again = evaluate_folder(
        output / "model", dataset, ["--evaluation.ks", "[3, 10]"], Accelerator(cpu=True)
    )
    assert again["test"]["metrics"] == results["test"]["metrics"]


def test_the_model_is_measured_on_the_last_items_with_everything_before_them(run, dataset):
    output, results = run
    model, prepared = AutoModelForMaskedLM.from_pretrained(output / "model"), load_prepared(dataset)
    hits = 0
    for row in range(len(prepared.test)):
        history, target = prepared.test[row].astype(np.int64), prepared.test.targets[row]
        logits = model(torch.tensor([[*history[-8:].tolist(), 1]])).logits[0, -1]
        logits[torch.from_numpy(history[history != target])] = -torch.inf
        hits += int((logits >= logits[target]).sum() <= 10)
    assert results["test"]["metrics"]["hit_rate@10"] == pytest.approx(hits / len(prepared.test))


def test_popularity_counts_training_interactions_only(dataset):
    prepared = load_prepared(dataset)
    counts = prepared.popularity
    expected = np.zeros(prepared.vocab_size, dtype=int)
    for row in range(len(prepared.train)):
        for item in prepared.train[row]:
            expected[item] += 1
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() == load_prepared(dataset).statistics["after"]["interactions"] - 300


def test_the_share_of_the_best_possible_is_reported(run):
    _, results = run
    best = results["dataset"]["best_possible"]["hit_rate@10"]
    assert results["share_of_best"]["hit_rate@10"] == pytest.approx(
        results["test"]["metrics"]["hit_rate@10"] / best
    )


def test_training_is_tracked(run):
    output, _ = run
    assert list((output / "logs").rglob("events.out.tfevents.*"))


def test_an_existing_output_is_refused_and_left_alone(run, config):
    output, _ = run
    before = sorted(path.stat().st_mtime_ns for path in output.rglob("*"))
    experiment = load_experiment(config)
    with pytest.raises(ValueError, match="tiny exists; choose another --output"):
        run_experiment(experiment, output, build_accelerator(experiment, output))
    assert sorted(path.stat().st_mtime_ns for path in output.rglob("*")) == before


def test_resuming_with_other_settings_is_refused(run, config):
    output, _ = run
    experiment = load_experiment(config, ["--training.learning_rate", "0.5"])
    with pytest.raises(ValueError, match="training.learning_rate was 0.01 and is 0.5; restore"):
        run_experiment(experiment, output, build_accelerator(experiment, output), is_resumed=True)


def test_a_resumed_run_ends_like_an_undisturbed_one(run, config, tmp_path):
    output, results = run
    broken = tmp_path / "tiny"
    shutil.copytree(output, broken)
    shutil.rmtree(broken / "checkpoints" / "step-00000008")
    (broken / "results.json").unlink()
    experiment = load_experiment(config)
    torch.manual_seed(99)
    again = run_experiment(
        experiment, broken, build_accelerator(experiment, broken), is_resumed=True
    )
    for part in ("test", "validation", "baselines"):
        assert again[part] == results[part]
    timeless = [key for key in results["training"] if key != "train_seconds"]
    assert {key: again["training"][key] for key in timeless} == {
        key: results["training"][key] for key in timeless
    }
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (output, broken)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_checkpointing_activations_changes_no_result(run, config, tmp_path):
    _, results = run
    experiment = load_experiment(config, ["--training.gradient_checkpointing", "true"])
    torch.manual_seed(0)
    output = tmp_path / "checkpointed"
    again = run_experiment(experiment, output, build_accelerator(experiment, output))
    assert again["test"]["metrics"] == pytest.approx(results["test"]["metrics"])
    less, more = (each["memory"]["estimated_bytes"] for each in (again, results))
    assert less["activations"] < more["activations"]
    assert less["parameters"] == more["parameters"]


def test_resuming_a_run_that_is_over_takes_no_step(run, config):
    output, results = run
    experiment = load_experiment(config)
    again = run_experiment(
        experiment, output, build_accelerator(experiment, output), is_resumed=True
    )
    assert again["training"]["step"] == results["training"]["step"]
    assert again["test"] == results["test"]


def copy_run(output, folder):
    shutil.copytree(output, folder)
    (folder / ".lock").unlink(missing_ok=True)
    return folder


def test_a_run_is_extended_and_its_card_says_so(run, config, tmp_path):
    output, _ = run
    longer = copy_run(output, tmp_path / "tiny")
    settings = ["--training.max_steps", "12", "--card.dataset_name", "mended"]
    experiment = load_experiment(config, settings)
    results = run_experiment(
        experiment, longer, build_accelerator(experiment, longer), is_resumed=True
    )
    assert results["training"]["step"] == 12
    assert [each["step"] for each in results["training"]["validations"]] == [4, 8, 12]
    card = (longer / "model" / "README.md").read_text()
    assert "| changed on the way | training.max_steps from 8 to 12 |" in card
    assert "mended" in card


def test_a_run_is_not_made_shorter_than_it_is(run, config, tmp_path):
    output, _ = run
    shorter = copy_run(output, tmp_path / "tiny")
    experiment = load_experiment(config, ["--training.max_steps", "5"])
    with pytest.raises(ValueError, match="max_steps is 5 and the run is at step 8; give it at l"):
        run_experiment(experiment, shorter, build_accelerator(experiment, shorter), is_resumed=True)


def test_a_card_that_cannot_be_rendered_costs_no_run(run, config, tmp_path, monkeypatch, caplog):
    output, results = run
    again = copy_run(output, tmp_path / "tiny")
    (again / "results.json").unlink()

    def fail(results, path):
        raise TypeError("can't multiply by a text")

    monkeypatch.setattr("bert4rec_hf.experiment.run.write_card", fail)
    experiment = load_experiment(config)
    run_experiment(experiment, again, build_accelerator(experiment, again), is_resumed=True)
    saved = json.loads((again / "results.json").read_text())
    assert saved["test"]["metrics"] == results["test"]["metrics"]
    assert "README.md could not be written: TypeError: can't multiply by a text" in caplog.text


def test_what_a_run_says_at_its_end_outlives_a_kill_before_it(run, config, tmp_path, caplog):
    """Killed after the last checkpoint and before the results, it is judged when it goes on."""
    output, _ = run
    again = copy_run(output, tmp_path / "tiny")
    (again / "results.json").unlink()
    checkpoint = again / "checkpoints" / "step-00000008"
    saved = json.loads((checkpoint / "state.json").read_text())
    values = [0.1, 0.2]
    for validation, value in zip(saved["state"]["validations"], values, strict=True):
        validation["ndcg@10"] = value
    (checkpoint / "state.json").write_text(json.dumps(saved))
    sums = json.loads((checkpoint / "checksums.json").read_text())
    sums["state.json"] = digest_file(checkpoint / "state.json")
    (checkpoint / "checksums.json").write_text(json.dumps(sums))
    experiment = load_experiment(config)
    results = run_experiment(
        experiment, again, build_accelerator(experiment, again), is_resumed=True
    )
    assert results["training"]["still_improving"] == 0.5
    assert "ndcg@10 gained 50.0 % in the last fifth" in caplog.text
    assert (
        "| still improving | ndcg@10 was best at the end, and 50.0 %"
        in (again / "model" / "README.md").read_text()
    )


def test_resuming_with_another_number_of_batches_in_a_step_is_refused(run, config):
    output, _ = run
    experiment = load_experiment(config, ["--training.gradient_accumulation_steps", "3"])
    product = "num_processes x experiment.training.gradient_accumulation_steps was 1 and is 3"
    with pytest.raises(ValueError, match=f"tiny cannot be resumed: {product}; restore"):
        run_experiment(experiment, output, build_accelerator(experiment, output), is_resumed=True)


def test_resuming_on_another_dataset_is_refused(run, dataset, config, tmp_path):
    output, _ = run
    broken, moved = tmp_path / "tiny", tmp_path / "moved"
    shutil.copytree(output, broken)
    dataset.rename(moved)
    try:
        make_dataset(dataset, seed=5)
        experiment = load_experiment(config)
        with pytest.raises(ValueError, match="cannot be resumed: dataset_fingerprint was "):
            run_experiment(
                experiment, broken, build_accelerator(experiment, broken), is_resumed=True
            )
    finally:
        shutil.rmtree(dataset)
        moved.rename(dataset)


def test_resuming_what_was_never_begun_is_refused(config, tmp_path):
    experiment = load_experiment(config)
    accelerator = build_accelerator(experiment, tmp_path)
    with pytest.raises(ValueError, match="holds no run to resume: run.json is missing"):
        run_experiment(experiment, tmp_path, accelerator, is_resumed=True)


def test_a_dataset_with_another_vocabulary_is_refused(run, tmp_path):
    output, _ = run
    other = make_dataset(tmp_path / "other", num_items=61)
    with pytest.raises(
        ValueError, match="was trained with another vocabulary than that of .*other"
    ):
        evaluate_folder(output / "model", other, [], Accelerator(cpu=True))


def test_a_missing_dataset_is_refused(config, tmp_path):
    experiment = load_experiment(config, ["--data.dataset", str(tmp_path / "none")])
    with pytest.raises(FileNotFoundError, match="there is no folder .*none; name one"):
        run_experiment(
            experiment, tmp_path / "out", build_accelerator(experiment, tmp_path / "out")
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.hiden_size", "8"],
            "model.hiden_size is not a setting of BERT4RecConfig; did you",
        ),
        (["--model.vocab_size", "8"], "model.vocab_size is not a setting of BERT4RecConfig"),
        (
            ["--modle.hidden_size", "8"],
            "modle is not a setting of an experiment; did you mean model",
        ),
        (["--training.max_steps", "many"], "training: .*max_steps.*many"),
        (["--data.mask_ratio", "2"], r"mask_ratio must be in \(0, 1\], got 2"),
        (["--model.num_attention_heads", "5"], "hidden_size must be a multiple .* got 12 and 5"),
        (["--evaluation.candidates", "some"], "candidates must be full or sampled, got 'some'"),
        (["--training.trackers", "[paper]"], "training.trackers must be of .*wandb.*, got 'paper'"),
        (["--training.max_grad_norm", "-1"], "max_grad_norm must be positive, got -1"),
        (["--training.weight_decay", "-1"], "weight_decay must be 0 or more, got -1"),
        (["--training.weight_decay", ".nan"], "training.weight_decay is nan, and settings are fi"),
        (["--training.max_grad_norm", ".inf"], "training.max_grad_norm is inf, and settings are"),
        (["--training.learning_rate", "1e999"], "training.learning_rate is inf, and settings"),
        (["--model.initializer_range", "-.inf"], "model.initializer_range is -inf, and sett"),
        (["--data.mask_ratio", ".nan"], "data.mask_ratio is nan, and settings are finite"),
        (
            ["--training.on_bad_step", "hope"],
            "'on_bad_step' expected one of .*'skip'.*, got hope",
        ),
        (["--data.num_workers", "-1"], "num_workers must be 0 or more, got -1"),
        (["--model.hidden_act", "gelo"], "hidden_act must be an activation .*, got 'gelo'"),
        (["--model.objective", "bpr"], "objective must be one of full_softmax.*, got 'bpr'"),
        (["--model.hidden_size", "-64"], "hidden_size must be at least 1, got -64"),
        (["--evaluation.ks", "[3]"], r"evaluation.ks must contain 10, .* got \[3\]"),
        (["--card.published", "[{model: X}]"], "published entry 0 must have .*, got model"),
        (
            ["--data.prefix_view_ratio", "0.5", "--model.position_origin", "newest"],
            "data.prefix_view_ratio is 0.5, .*set model.position_origin to oldest",
        ),
        (
            ["--card.published", "[{model: X, hit_rate@10: '0.1', ndcg@10: 0.2, source: Y}]"],
            "published entry 0: hit_rate@10 must be a number, got '0.1'",
        ),
        (
            ["--card.published", "[{model: 3, hit_rate@10: 0.1, ndcg@10: 0.2, source: Y}]"],
            "published entry 0: model must be text, got 3",
        ),
        (["--training.metric", "ndcg@7"], "training.metric must be one of .*, got 'ndcg@7'"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_done(config, arguments, message):
    with pytest.raises(ValueError, match=f"(?s)tiny.yaml: .*{message}"):
        load_experiment(config, arguments)


@pytest.mark.parametrize(
    "other", [["--model.position_type", "rotary"], ["--model.is_causal", "true"]]
)
def test_prefix_views_are_refused_only_where_positions_count_from_the_newest(config, other):
    prefixes = ["--data.prefix_view_ratio", "0.5", "--model.position_origin", "newest"]
    assert load_experiment(config, [*prefixes, *other]).data.prefix_view_ratio == 0.5


def test_training_validates_on_a_sample_and_the_results_are_of_all(config, tmp_path, monkeypatch):
    sizes = []

    def count(model, split, *rest):
        sizes.append((len(split), len(split.targets)))
        return validate_model(model, split, *rest)

    monkeypatch.setattr(run_module, "validate_model", count)
    experiment = load_experiment(config, ["--training.validation_histories", "7"])
    accelerator = build_accelerator(experiment, tmp_path / "run")
    results = run_experiment(experiment, tmp_path / "run", accelerator)
    assert sizes == [(7, 7)] * len(results["training"]["validations"])
    assert sizes
    assert results["validation"]["protocol"]["num_histories"] > 7


def test_a_start_that_does_not_fit_is_refused(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_module, "host_memory", lambda accelerator: 10_000)
    experiment = load_experiment(config, ["--training.item_initialization", "co_occurrence"])
    options = {"accelerator": build_accelerator(experiment, tmp_path / "run")}
    message = "start from co-occurrence needs 0.00 GB .* training.item_initialization to random"
    with pytest.raises(ValueError, match=message):
        run_experiment(experiment, tmp_path / "run", **options)
    run_module.estimate_run(
        experiment,
        load_prepared(Path(experiment.data.dataset)),
        options["accelerator"],
        ignores_memory=True,
    )
    assert "continuing anyway: the start from co-occurrence needs" in caplog.text
    random = load_experiment(config)
    run_module.estimate_run(random, load_prepared(Path(random.data.dataset)), **options)


def test_a_step_that_does_not_fit_is_refused_unless_the_estimate_is_to_be_ignored(
    config, tmp_path, monkeypatch, caplog
):
    experiment = load_experiment(config)
    monkeypatch.setattr(run_module, "available_memory", lambda accelerator: 5)
    options = {"accelerator": build_accelerator(experiment, tmp_path / "run")}
    with pytest.raises(ValueError, match="0.00 GB are available; .* --ignore-memory-estimate"):
        run_experiment(experiment, tmp_path / "run", **options)
    assert not (tmp_path / "run" / "model").exists()
    results = run_experiment(experiment, tmp_path / "run", **options, ignores_memory=True)
    assert results["training"]["step"] == 8
    assert "continuing anyway: a training step needs" in caplog.text


def test_a_value_that_is_not_yaml_is_named(config):
    with pytest.raises(ValueError, match="value of --evaluation.ks is not valid YAML, line 1"):
        load_experiment(config, ["--evaluation.ks", "[5, 10"])


def test_sampled_ranking_claims_no_share_of_the_best_possible(run, dataset):
    output, _ = run
    settings = ["--evaluation.candidates=sampled", "--evaluation.num_negatives=20"]
    results = evaluate_folder(output / "model", dataset, settings, Accelerator(cpu=True))
    assert results["test"]["protocol"]["is_sampled"]
    assert results["share_of_best"] == {}


def test_a_tracker_that_is_not_installed_is_refused(config, monkeypatch):
    monkeypatch.setattr(
        "bert4rec_hf.experiment.spec.get_available_trackers", lambda: ["tensorboard"]
    )
    with pytest.raises(ValueError, match="names wandb, which is not installed; pip install wandb"):
        load_experiment(config, ["--training.trackers", "[tensorboard, wandb]"])


def test_sharding_that_accelerate_would_leave_out_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="fsdp_version is 1, which is accelerate's default, and m"):
        build_accelerator(load_experiment(config), tmp_path)
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="FSDP was asked for, and accelerate runs NO on cpu"):
        build_accelerator(load_experiment(config), tmp_path)


def test_processes_that_accelerate_would_leave_out_are_refused(config, tmp_path):
    """`--cpu` starts one process, however many are asked for."""
    flags = ["--quiet", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags]
    command += [str(ROOT / "scripts" / "train.py"), str(config), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "--num_processes 2 was asked for, and accelerate started one" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["full_softmax", "sampled_softmax"])
def test_two_processes_learn_and_measure_what_one_does(config, tmp_path, objective, launch):
    """Two processes take at once the two batches that one process accumulates."""
    for processes in (1, 2):
        settings = {
            "model.objective": objective,
            "data.num_negatives": 50,
            "model.hidden_dropout": 0,
            "model.attention_dropout": 0,
            "training.batch_size": 16,
            "training.gradient_accumulation_steps": 2 // processes,
            "training.logging_steps": 1,
        }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        done = launch(
            config, "--output", tmp_path / str(processes), *arguments, processes=processes
        )
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / n / "results.json").read_text()) for n in "12")
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    curves = [read_losses(tmp_path / n) for n in "12"]
    assert list(curves[0]) == list(range(1, 9))
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    for ours, theirs in zip(
        two["training"]["validations"], one["training"]["validations"], strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert two["test"]["metrics"] == pytest.approx(one["test"]["metrics"], abs=1e-6)
    for name, baseline in one["baselines"].items():
        assert two["baselines"][name]["metrics"] == baseline["metrics"]
    weights = [load_file(tmp_path / n / "model" / "model.safetensors") for n in "12"]
    torch.testing.assert_close(*weights)


@pytest.mark.slow
def test_precision_and_compilation_are_flags_of_the_launcher(config, tmp_path, launch):
    done = launch(config, "--output", tmp_path / "out", precision="bf16", backend="aot_eager")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["mixed_precision"], results["dynamo_backend"]) == ("bf16", "aot_eager")
    weights = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert not any("_orig_mod" in name for name in weights)


@pytest.mark.slow
def test_the_script_names_a_misspelt_setting_without_a_traceback(config, tmp_path, launch):
    done = launch(config, "--output", tmp_path / "out", "--training.max_step", 5)
    assert done.returncode != 0
    assert (
        "training.max_step is not a setting of TrainingConfig; did you mean max_steps?"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_weights_begin_as_the_settings_say(dataset, config):
    """Before the first step, as `train_experiment` has them; the rest is as it is drawn."""
    prepared = load_prepared(dataset)
    models = []
    for arguments in ([], ["--training.item_initialization", "co_occurrence"]):
        experiment = load_experiment(
            config, [*arguments, "--training.attention_initialization", "average"]
        )
        torch.manual_seed(0)
        models.append(build_model(experiment, prepared.vocab_size))
        initialize(models[-1], prepared, experiment.training)
    drawn, counted = models
    first = counted.model.layers[0].self_attn
    assert torch.equal(first.v_proj.weight, torch.eye(len(first.v_proj.weight)))
    changed = [
        name
        for name, weight in counted.named_parameters()
        if not torch.equal(weight, drawn.get_parameter(name))
    ]
    assert changed == ["model.embed_tokens.weight"]


@pytest.mark.parametrize("name", ["item_initialization", "attention_initialization"])
def test_an_unknown_beginning_is_refused(config, name):
    with pytest.raises(ValueError, match=rf"'{name}' expected one of \('random', .*\), got svd"):
        load_experiment(config, [f"--training.{name}", "svd"])


def test_a_model_with_neighbors_has_counted_the_training_part(config, dataset, tmp_path):
    settings = ["--model.num_neighbors", "5", "--training.max_steps", "4"]
    experiment = load_experiment(config, settings)
    output = tmp_path / "neighbors"
    results = run_experiment(experiment, output, build_accelerator(experiment, output))
    weights = load_file(output / "model" / "model.safetensors")
    prepared = load_prepared(dataset)
    table = count_neighbors(prepared.train, prepared.vocab_size, 5)
    for name, expected in table._asdict().items():
        assert torch.equal(weights[f"neighbors.{name}"], expected)
    assert weights["neighbors.gate.weight"].any(), "the gate is trained"
    again = evaluate_folder(
        output / "model", dataset, ["--evaluation.ks", "[3, 10]"], Accelerator(cpu=True)
    )
    assert again["test"]["metrics"] == results["test"]["metrics"]


def test_a_run_adds_neighbors_to_what_it_has_trained(config, tmp_path):
    settings = ["--training.added_neighbors", "5", "--training.max_steps", "4"]
    experiment = load_experiment(config, settings)
    output = tmp_path / "added"
    results = run_experiment(experiment, output, build_accelerator(experiment, output))
    found = results["neighbors"]
    assert found["0"] == pytest.approx(results["training"]["best_metric"], abs=1e-12)
    best = max(found.values())
    assert results["validation"]["metrics"]["ndcg@10"] == pytest.approx(best, abs=1e-12)
    has_neighbors = "neighbors.ids" in load_file(output / "model" / "model.safetensors")
    assert has_neighbors == (best > found["0"])


def test_neighbors_are_added_once(config):
    settings = ["--training.added_neighbors", "5", "--model.num_neighbors", "6"]
    with pytest.raises(ValueError, match=r"set one of the two, got 5 and 6"):
        load_experiment(config, settings)
    with pytest.raises(ValueError, match="added_neighbors must be 0 or more, got -1"):
        load_experiment(config, ["--training.added_neighbors", "-1"])
