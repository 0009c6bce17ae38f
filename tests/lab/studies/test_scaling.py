import json

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from torch.utils.flop_counter import FlopCounterMode

from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.experiment.build import build_collator, build_config
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.experiment.measurement import count_parameters
from bert4rec_hf.lab.cards.plots import plot_scaling
from bert4rec_hf.lab.cards.scaling_card import render_scaling_card
from bert4rec_hf.lab.studies.scaling import count_operations, count_work, load_scaling, run_scaling
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling

SIZES = {
    "small": {"model.hidden_size": 12, "training.learning_rate": 0.01},
    "large": {"model.hidden_size": 24, "training.learning_rate": 0.005},
}


@pytest.fixture
def write(root, tmp_path):
    """Write a study around the experiment `base`."""

    def make(sizes=SIZES, **study):
        sections = {
            "study": {"experiment": str(root / "base.yaml"), "seeds": [0, 1], "max_steps": [3, 6]}
            | study,
            "sizes": sizes,
            "training": {"evaluation_steps": 3, "trackers": []},
        }
        path = tmp_path / "scaling.yaml"
        path.write_text(yaml.safe_dump(sections, sort_keys=False))
        return path

    return make


def test_a_study_trains_every_size_budget_and_seed_once(write, tmp_path):
    output = tmp_path / "study"
    results = run_scaling(load_scaling(write()), output)
    points = {(p["size"], p["max_steps"], p["seed"]): p for p in results["points"]}
    assert points.keys() == {
        (s, m, seed) for s in ("small", "large") for m in (3, 6) for seed in (0, 1)
    }
    for (size, steps, seed), point in points.items():
        assert point["steps"] == steps
        assert point["experiment"]["training"]["seed"] == seed
        assert point["parameters"]["item_embeddings"] == 62 * (12 if size == "small" else 24)
        assert 0 < point["test"]["ndcg@10"] < 1
        assert 0 < point["test"]["loss"] < 10
        assert point["dataset_fingerprint"]
    assert points["large", 6, 0]["compute"] > points["small", 6, 0]["compute"]
    losses = {point["test"]["loss"] for point in points.values()}
    assert len(losses) == 8
    assert results["laws"] == []  # two sizes are too few for a law
    assert json.loads((output / "scaling.json").read_text()) == json.loads(json.dumps(results))
    card = render_scaling_card("scaling", results)
    assert f"| 6 | large | {points['large', 6, 0]['parameters']['encoder']:,} |" in card
    plot_scaling(results, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_done_or_taken_is_left_alone(write, tmp_path):
    output = tmp_path / "study"
    study = load_scaling(write(seeds=[0], max_steps=[3]))
    output.mkdir()
    with FileLock(output / ".large-3-0.lock"):
        results = run_scaling(study, output)
    assert [point["size"] for point in results["points"]] == ["small"]
    before = (output / "small-3-0" / "point.json").stat().st_mtime_ns
    results = run_scaling(study, output)
    assert [point["size"] for point in results["points"]] == ["small", "large"]
    assert (output / "small-3-0" / "point.json").stat().st_mtime_ns == before


def test_a_run_that_was_interrupted_is_gone_on_with(write, tmp_path):
    output = tmp_path / "study"
    study = load_scaling(write(seeds=[0], max_steps=[3], sizes={"small": SIZES["small"]}))
    expected = run_scaling(study, output)["points"][0]
    point = output / "small-3-0" / "point.json"
    point.unlink()
    found = run_scaling(study, output)["points"][0]
    assert found["test"] == expected["test"]


def test_the_folder_of_another_study_is_refused(write, tmp_path):
    output = tmp_path / "study"
    run_scaling(load_scaling(write(seeds=[0], max_steps=[3])), output)
    with pytest.raises(ValueError, match=r"study.seeds was \[0\] and is \[0, 1\]; choose another"):
        run_scaling(load_scaling(write(max_steps=[3])), output)


@pytest.mark.parametrize(
    ("sizes", "study", "message"),
    [
        ({}, {}, "sizes must name one size or more"),
        ({"a": {"model.hiden_size": 3}}, {}, "did you mean hidden_size"),
        (SIZES, {"seeds": [1, 1]}, r"seeds must be different numbers, one or more, got \[1, 1\]"),
        (SIZES, {"steps": [1]}, "study.steps is not a setting of ScalingConfig"),
    ],
)
def test_a_mistake_is_named_before_anything_is_trained(write, sizes, study, message):
    with pytest.raises(ValueError, match=message):
        load_scaling(write(sizes, **study))


def test_operations_are_those_that_a_counter_sees_three_times_over(root):
    config = BERT4RecConfig(
        vocab_size=41, hidden_size=64, num_hidden_layers=3, intermediate_size=256
    )
    model = BERT4RecForMaskedItemModeling(config)
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(2, 41, (5, 20)))
    seen = counter.get_flop_counts()["Global"]
    products = seen[torch.ops.aten.addmm] + seen.get(torch.ops.aten.mm, 0)
    head = 2 * 64 * 41 * 100  # the counter's head scores padding and mask, too
    work = {"items": 100, "masked_items": 0}
    experiment = load_experiment(root / "base.yaml", ["--model.hidden_size", "64"])
    counted = count_operations(count_parameters(model), experiment, work, vocab_size=41)
    # Forward once, backward twice; biases, norms and positions are counted and are no products.
    assert counted == pytest.approx(3 * (products - head), rel=0.05)
    work["masked_items"] = 7
    more = count_operations(count_parameters(model), experiment, work, vocab_size=41)
    assert more - counted == 6 * 64 * 39 * 7


@pytest.mark.parametrize("objective", ["sampled_softmax", "gbce"])
def test_a_sampled_objective_scores_the_negatives_and_the_masked_item(root, objective):
    """As many as a counter sees between two numbers of negatives."""
    arguments = ["--model.objective", objective, "--data.num_negatives"]
    seen, counted = [], []
    for num_negatives in (17, 40):
        experiment = load_experiment(root / "base.yaml", [*arguments, str(num_negatives)])
        config = build_config(experiment, 62)
        model = BERT4RecForMaskedItemModeling(config)
        examples = [{"items": items, "view": 3} for items in load_prepared(root / "past").train]
        batch = build_collator(experiment, np.ones(62))(examples)
        with FlopCounterMode(display=False) as counter:
            model(**batch).loss.backward()
        products = counter.get_flop_counts()["Global"]
        seen.append(sum(products.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm)))
        work = {"items": 0, "masked_items": len(batch["masked_positions"])}
        counted.append(count_operations(count_parameters(model), experiment, work, 62))
    assert counted[0] == 6 * 12 * 18 * work["masked_items"]
    assert counted[1] - counted[0] == seen[1] - seen[0]


def test_a_size_left_to_its_default_is_counted(root, tmp_path):
    sections = yaml.safe_load((root / "base.yaml").read_text())
    del sections["model"]["hidden_size"]
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(sections))
    work = {"items": 0, "masked_items": 5}
    counted = count_operations({"encoder": 1}, load_experiment(path), work, vocab_size=41)
    assert counted == 6 * BERT4RecConfig().hidden_size * 39 * 5


def test_the_work_is_that_of_the_batches(root):
    experiment = load_experiment(root / "base.yaml", ["--training.batch_size", "150"])
    dataset = load_prepared(root / "past")
    work = count_work(experiment, dataset, steps=2)
    # All users twice, their newest nine items.
    assert work["items"] == 2 * sum(min(len(each), 9) for each in dataset.train)
    assert 0 < work["masked_items"] < work["items"]
