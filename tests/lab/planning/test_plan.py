import json
from pathlib import Path

import pytest
import torch

from bert4rec_hf.commands import plan as command
from bert4rec_hf.experiment.build import build_model
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.lab.planning.plan import Size, count_passes, imagine_dataset, make_plan
from bert4rec_hf.lab.planning.report import render_comparison, render_plan

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "beauty" / "bert4rec.yaml"
BEAUTY = Size(num_items=12_101, num_users=22_363, num_interactions=153_776)
ASKED = ["--items", "12101", "--users", "22363", "--interactions", "153776"]


@pytest.fixture(scope="module")
def plan():
    return make_plan(load_experiment(CONFIG, ["--training.trackers=[]"]), BEAUTY, "cpu1")


def test_imagined_histories_are_as_long_as_asked_and_items_as_many():
    dataset = imagine_dataset(BEAUTY)
    assert dataset.train.lengths.mean() == pytest.approx(153_776 / 22_363, rel=0.05)
    assert dataset.train.values.max() < dataset.vocab_size == 12_103
    assert len(imagine_dataset(Size(num_items=30, num_users=7, num_interactions=21)).train) == 7


def test_a_plan_counts_what_the_settings_ask_for(plan):
    experiment = load_experiment(CONFIG)
    with torch.device("meta"):
        model = build_model(experiment, 12_103)
    size = 4 * sum(weight.numel() for weight in model.parameters())
    assert (plan.memory.parameters, plan.memory.optimizer_state) == (size, 2 * size)
    assert plan.checkpoint_bytes == 3 * size
    training = plan.training_stages()
    assert training["all 2,500 steps"].operations == pytest.approx(2_500 * plan.step.operations)
    (epoch,) = (work for name, work in training.items() if name.startswith("an epoch"))
    assert epoch.operations == pytest.approx(22_363 / 64 * plan.step.operations)
    ranking = plan.ranking_stages()
    once = ranking["evaluating all users once"]
    assert once.operations == pytest.approx(22_363 * plan.ranking.operations)
    assert ranking["4 validations of 22,363 users"].operations == pytest.approx(4 * once.operations)
    assert plan.start_bytes > 4 * 12_103 * 128


def test_the_memory_of_a_measured_training_is_what_its_run_estimated(plan):
    results = json.loads((ROOT / "model_cards/results/beauty-bert4rec.json").read_text())
    estimated = sum(results["memory"]["estimated_bytes"].values())
    assert plan.memory.total == pytest.approx(estimated, rel=0.2)


def test_a_catalog_whose_scores_are_not_kept_is_scored_twice():
    experiment = load_experiment(CONFIG, ["--evaluation.chunk_size", "500"])
    assert count_passes(experiment, BEAUTY) == 2
    assert count_passes(load_experiment(CONFIG), BEAUTY) == 1


def test_a_measured_device_says_how_far_its_times_were_off(plan):
    text = render_plan(plan, "cpu1", "no", 0.3)
    assert "by rates fitted to" in text
    assert "times what the others predict" in text
    assert "assumed" not in text


def test_of_a_device_that_was_not_measured_there_are_bounds_and_the_share_is_named(plan):
    text = render_plan(plan, "a100", "bf16", 0.25)
    assert "nothing was measured on NVIDIA A100 80GB SXM: these are bounds by the public" in text
    assert "312.0 TFLOP/s (bf16; ranking computes in float32, 19.5) and 2.04 TB/s" in text
    assert "25% of either is reached, which is assumed" in text
    assert "fits into the 80 GB" in text
    assert "fitted" not in text
    stage = next(line for line in text.splitlines() if line.startswith("a training step"))
    assert " over " in stage
    assert " at 25%" in stage


def test_the_command_prints_the_plan_and_writes_its_counts(tmp_path, capsys):
    output = tmp_path / "plan.json"
    arguments = [str(CONFIG), *ASKED, "--output", str(output), "--training.batch_size", "32"]
    command.main(arguments)
    text = capsys.readouterr().out
    assert "memory of a training step" in text
    assert "an epoch (699 steps)" in text
    counts = json.loads(output.read_text())
    assert counts["size"]["num_items"] == 12_101
    assert counts["memory_bytes"]["total"] > counts["memory_bytes"]["parameters"] > 0
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert f"error: {output} exists; choose another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--device", "tpu"], "nothing was measured on the device tpu with precision no; measured"),
        (["--items", "0"], "--items must be at least 1, got 0"),
        (["--users", "153000"], "153,776 of 153,000 users are 1.0 each; there must be two or more"),
        (["--device", "l4", "--share", "1.5"], r"--share must be in (0, 1], got 1.5"),
        (["--model.hiden_size", "9"], "did you mean hidden_size"),
    ],
)
def test_a_question_without_an_answer_is_refused(changed, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([str(CONFIG), *ASKED, *changed])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_card_sets_what_was_measured_beside_what_was_predicted():
    row = {"file": "ml", "what": "a training step", "device": "cpu1", "unit": "s"}
    size = row | {"what": "memory of a step", "unit": "bytes"}
    card = render_comparison(
        {
            "rows": [
                row | {"predicted": 0.2, "measured": 0.25},
                size | {"predicted": 2e9, "measured": 1e9},
            ]
        }
    )
    assert "| ml | a training step | cpu1 | 200.0 ms | 250.0 ms | 1.25 |" in card
    assert "| ml | memory of a step | cpu1 | 2,000 MB | 1,000 MB | 0.50 |" in card
