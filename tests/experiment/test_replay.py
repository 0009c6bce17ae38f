import re

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.experiment import replay
from bert4rec_hf.experiment.build import build_accelerator, build_model
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.experiment.replay import replay_step
from bert4rec_hf.experiment.run import train_experiment

SECTIONS = {
    "model": {"hidden_size": 12, "intermediate_size": 20, "max_history_length": 9},
    "training": {
        "learning_rate": 0.01,
        "batch_size": 16,
        "max_steps": 9,
        "evaluation_steps": 9,
        "checkpoint_steps": 3,
        "keep_checkpoints": 9,
        "logging_steps": 1,
        "trackers": ["tensorboard"],
    },
    "evaluation": {"ks": [10], "num_bootstrap_samples": 50},
    "card": {"dataset_name": "generated", "dataset_license": "none"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An experiment, the folder of its run, and the losses that were logged."""
    folder = tmp_path_factory.mktemp("replayed")
    synthetic = SyntheticConfig(num_users=90, num_items=40, mean_length=8.0, max_length=20)
    prepare_dataset("synthetic", None, folder / "data", PreparationConfig(synthetic=synthetic))
    path = folder / "nine.yaml"
    path.write_text(yaml.safe_dump({"data": {"dataset": str(folder / "data")}} | SECTIONS))
    experiment = load_experiment(path)
    torch.manual_seed(0)
    accelerator = build_accelerator(experiment, folder / "run")
    train_experiment(experiment, folder / "run", accelerator)
    (path,) = (folder / "run" / "logs").glob("*/events.out.tfevents.*")
    events = EventAccumulator(str(path)).Reload().Scalars("train/loss")
    return experiment, folder / "run", [event.value for event in events]


def list_checkpoints(output):
    return {path: path.stat().st_mtime_ns for path in output.glob("checkpoints/*/*")}


def look(trained, step):
    experiment, output, _ = trained
    torch.manual_seed(0)
    return replay_step(experiment, output, build_accelerator(experiment, output), step)


@pytest.mark.parametrize(
    ("step", "begun"),
    [(8, "from step-00000006"), (7, "from step-00000006"), (2, "from the first step on")],
)
def test_a_replayed_step_has_the_loss_that_was_logged(trained, step, begun):
    before = list_checkpoints(trained[1])
    assert len(before) == 3 * 5
    first, batch, gradients = look(trained, step)
    assert first.startswith(f"step {step}, {begun}: batch {step - 1} (histories ")
    loss = float(re.search(r"loss ([\d.]+)", batch)[1])
    assert loss == pytest.approx(trained[2][step - 1], rel=1e-5)
    assert gradients.startswith("gradients: the largest finite one is ")
    assert list_checkpoints(trained[1]) == before


def test_the_module_behind_which_a_number_is_not_finite_is_named(trained, monkeypatch):
    def build_spoilt(experiment, vocab_size):
        model = build_model(experiment, vocab_size)
        model.model.layers[1].mlp.register_forward_hook(
            lambda _, inputs, output: output * torch.nan
        )
        return model

    monkeypatch.setattr(replay, "build_model", build_spoilt)
    _, batch, gradients = look(trained, 1)
    assert batch.endswith("loss nan, first not finite after model.layers.1.mlp")
    assert "not finite in " in gradients


@pytest.mark.parametrize("step", [0, 10])
def test_a_step_that_the_run_does_not_have_is_refused(trained, step):
    message = f"--replay-step must be between 1 and training.max_steps, 9, got {step}"
    with pytest.raises(ValueError, match=message):
        look(trained, step)
