import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.experiment.measurement import evaluate_folder, read_gates
from bert4rec_hf.hub.model_folder import load_model
from bert4rec_hf.serving.recommender import Recommender


@pytest.fixture(scope="module")
def adapted(root, run):
    """What a run with iLoRA returned; its folder is `ilora`."""
    return run(root / "ilora.yaml", root / "ilora")


def test_an_adapter_is_learned_saved_and_measured_beside_its_base_model(root, adapted):
    folder = root / "ilora" / "adapter"
    assert not (root / "ilora" / "model").exists()
    base = AutoModelForMaskedLM.from_pretrained(root / "base" / "model")
    model = PeftModel.from_pretrained(base, folder)
    assert sum("ilora_B" in name and bool(w.any()) for name, w in model.named_parameters()) == 4
    again = evaluate_folder(
        folder, root / "later", ["--evaluation.ks", "[10]"], Accelerator(cpu=True)
    )
    assert again["test"]["metrics"] == adapted["test"]["metrics"]
    assert again["experts"] == adapted["experts"]
    alone = evaluate_folder(
        root / "base" / "model", root / "later", ["--evaluation.ks", "[10]"], Accelerator(cpu=True)
    )
    assert adapted["baselines"]["base_model"]["metrics"] == alone["test"]["metrics"]
    assert adapted["test"]["metrics"] != alone["test"]["metrics"]


def test_only_the_adapter_is_trained_and_kept_in_checkpoints(root, adapted):
    trainable = 2 * 2 * (4 * 12 + 4 * 12) + 12 * 2 + 2  # two layers of q and v, and a gate
    assert adapted["parameters"]["trainable"] == trainable
    (checkpoint,) = (root / "ilora" / "checkpoints").glob("*8")
    saved = load_file(checkpoint / "model-0.safetensors")
    assert sum(weight.numel() for weight in saved.values()) == trainable


def test_the_spread_over_experts_is_that_of_the_test_histories(root, adapted):
    model, dataset = load_model(root / "ilora" / "adapter"), load_prepared(root / "later")
    weights = read_gates(model.eval(), dataset.test)
    history = [*dataset.test[3][-8:].tolist(), 1]
    alone = model.base_model.gate_weights(input_ids=torch.tensor([history]))
    torch.testing.assert_close(weights[3:4], alone)
    assert adapted["experts"]["mean"] == pytest.approx(weights.mean(dim=0).tolist())
    assert adapted["experts"]["information_bits"] > 0


def test_a_recommender_takes_an_adapter_folder(root, adapted):
    recommender = Recommender.from_pretrained(root / "ilora" / "adapter")
    alone = Recommender.from_pretrained(root / "base" / "model")
    history = alone.catalog[:3]
    scores = [
        dict((r.item, r.score) for r in each.recommend(history)) for each in (recommender, alone)
    ]
    assert len(scores[0]) == 10
    assert scores[0] != scores[1]


def test_the_card_of_an_adapter_names_its_base_and_what_was_trained(root, adapted):
    card = (root / "ilora" / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card
    assert f"base model `{root / 'base' / 'model'}`" in card
    share = adapted["parameters"]["trainable"] / adapted["parameters"]["total"]
    assert f"trained were 410, {100 * share:.2f} %" in card
    assert "| base_model (baseline) |" in card
    assert "## Experts" in card


@pytest.mark.parametrize("tuner", ["lora", "ia3"])
def test_adapters_of_peft_are_trained_by_the_same_loop(root, tmp_path, tuner, run):
    results = run(root / f"{tuner}.yaml", tmp_path / tuner)
    assert results["training"]["step"] == 8
    assert 0 < results["parameters"]["trainable"] < 500
    assert "experts" not in results
    assert (
        load_model(tmp_path / tuner / "adapter").peft_config["default"].peft_type == tuner.upper()
    )


@pytest.mark.parametrize("tuner", ["lora", "ilora"])
@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        (["--adapter.trainable_token_indices=[5, 7]"], [5, 7]),
        (
            ["--adapter.modules_to_save=[embed_tokens]", "--adapter.ensure_weight_tying=true"],
            range(1, 62),  # all but padding
        ),
    ],
)
def test_an_adapter_carries_rows_of_the_item_table(root, tmp_path, run, tuner, settings, rows):
    results = run(root / f"{tuner}.yaml", tmp_path / "rows", *settings)
    assert results["validation"]["metrics"]["ndcg@10"] == pytest.approx(
        results["training"]["best_metric"], abs=1e-12
    )
    adapted = load_model(tmp_path / "rows" / "adapter")
    base = load_model(root / "base" / "model")
    changed = (adapted.read_head()[0] != base.read_head()[0]).any(dim=1).nonzero()[:, 0]
    assert set(changed.tolist()) == set(rows)
    looked_up = [model.get_input_embeddings()(torch.arange(62)) for model in (adapted, base)]
    assert set((looked_up[0] != looked_up[1]).any(dim=1).nonzero()[:, 0].tolist()) == set(rows)


def test_full_fine_tuning_begins_with_the_base_model(root, tmp_path, run):
    results = run(root / "full.yaml", tmp_path / "full", "--training.learning_rate=1e-12")
    base = load_file(root / "base" / "model" / "model.safetensors")
    tuned = load_file(tmp_path / "full" / "model" / "model.safetensors")
    torch.testing.assert_close(tuned, base)
    base_metrics = results["baselines"]["base_model"]["metrics"]
    assert results["test"]["metrics"] == pytest.approx(base_metrics)
    assert results["parameters"]["trainable"] == results["parameters"]["total"]


def test_a_resumed_adapter_ends_like_an_undisturbed_one(root, adapted, tmp_path, run):
    broken = tmp_path / "ilora"
    shutil.copytree(root / "ilora", broken)
    shutil.rmtree(broken / "checkpoints" / "step-00000008")
    again = run(root / "ilora.yaml", broken, is_resumed=True)
    assert again["test"] == adapted["test"]
    weights = [
        load_file(folder / "adapter" / "adapter_model.safetensors")
        for folder in (root / "ilora", broken)
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("item_initialization", "co_occurrence"), ("attention_initialization", "average")],
)
def test_a_base_model_is_not_initialized_anew(root, name, value):
    message = f"training.{name} is for training from scratch, .* leave it out, got '{value}'"
    with pytest.raises(ValueError, match=message):
        load_experiment(root / "full.yaml", [f"--training.{name}", value])


def test_resuming_on_another_base_model_is_refused(root, adapted, tmp_path, run):
    moved = tmp_path / "model"
    shutil.copytree(root / "base" / "model", moved)
    output = tmp_path / "ilora"
    shutil.copytree(root / "ilora", output)
    described = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(described | {"base_weights": "other"}))
    with pytest.raises(ValueError, match="cannot be resumed: base_weights was other and is"):
        run(root / "ilora.yaml", output, is_resumed=True)


def test_a_base_model_of_another_catalog_is_refused(root, tmp_path, run):
    synthetic = SyntheticConfig(num_users=90, num_items=61, mean_length=8.0, max_length=20)
    prepare_dataset("synthetic", None, tmp_path / "d", PreparationConfig(synthetic=synthetic))
    with pytest.raises(ValueError, match="another vocabulary than that of .*prepared from the"):
        run(root / "ilora.yaml", tmp_path / "out", "--data.dataset", str(tmp_path / "d"))
    assert not (tmp_path / "out").exists()


def test_an_adapter_whose_base_model_is_gone_says_where_it_looked(root, adapted, tmp_path):
    lost = tmp_path / "adapter"
    shutil.copytree(root / "ilora" / "adapter", lost)
    config = json.loads((lost / "adapter_config.json").read_text())
    gone = str(Path("runs") / "gone" / "model")
    config["base_model_name_or_path"] = gone
    (lost / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=f"(?s)for the base model '{gone}', which cannot be loaded"
    ):
        load_model(lost)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--adapter.tuner", "lorra"],
            "adapter.tuner must be one of lora, ia3, ilora, got 'lorra'",
        ),
        (["--adapter.num_expert", "3"], "adapter.num_expert is not a setting .* mean num_experts"),
        (["--adapter.num_experts", "3"], "r must be a multiple of num_experts.* got 4 and 3"),
        (["--adapter.target_modules", "[z_proj]"], "z_proj.*not found in the base model"),
        (["--model.hidden_size", "24"], "model.hidden_size cannot be set here.*objective"),
        (["--model.hidden_dropout", "2"], r"hidden_dropout must be in \[0, 1\), got 2"),
        (["--base.model", "nowhere"], "there is no folder nowhere; name one"),
        (["--base.modell", "nowhere"], "base.modell is not a setting of BaseConfig; did you mean"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_done(root, arguments, message):
    with pytest.raises(ValueError, match=f"(?s)ilora.yaml: .*{message}"):
        load_experiment(root / "ilora.yaml", arguments)


def test_an_adapter_without_a_base_model_is_refused(root):
    with pytest.raises(ValueError, match="an adapter needs a trained model; set base"):
        load_experiment(root / "base.yaml", ["--adapter.tuner", "lora"])


def test_dropout_and_objective_may_differ_from_the_base_model(root):
    arguments = ["--model.hidden_dropout", "0.3", "--model.objective", "gbce"]
    experiment = load_experiment(root / "ilora.yaml", arguments)
    assert experiment.model == {"hidden_dropout": 0.3, "objective": "gbce"}
    assert experiment.to_dict()["base"] == {"model": str(root / "base" / "model")}


@pytest.mark.slow
def test_two_processes_adapt_as_one_does(root, tmp_path, launch):
    """Two processes take at once the two batches that one process accumulates."""
    for processes in (1, 2):
        settings = {
            "model.hidden_dropout": 0,
            "model.attention_dropout": 0,
            "training.batch_size": 16,
            "training.gradient_accumulation_steps": 2 // processes,
        }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        output = tmp_path / str(processes)
        done = launch(root / "ilora.yaml", "--output", output, *arguments, processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / n / "results.json").read_text()) for n in "12")
    assert two["test"]["metrics"] == pytest.approx(one["test"]["metrics"], abs=1e-6)
    assert two["experts"]["mean"] == pytest.approx(one["experts"]["mean"], abs=1e-6)
    weights = [load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in "12"]
    torch.testing.assert_close(*weights)


@pytest.mark.slow
def test_an_adapter_is_trained_in_half_precision_and_compiled(root, tmp_path, launch):
    output = tmp_path / "out"
    done = launch(root / "ilora.yaml", "--output", output, precision="bf16", backend="aot_eager")
    assert done.returncode == 0, done.stderr
    results = json.loads((output / "results.json").read_text())
    assert (results["mixed_precision"], results["dynamo_backend"]) == ("bf16", "aot_eager")
    weights = load_file(output / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert not any("_orig_mod" in name for name in weights)
