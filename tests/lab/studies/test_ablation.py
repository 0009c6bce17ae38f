import json
import statistics

import pytest
import yaml

from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.evaluation.evaluator import evaluate
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.hub.model_folder import load_model
from bert4rec_hf.lab.cards.ablation_card import (
    describe_possible,
    render_ablation_card,
    render_tried,
)
from bert4rec_hf.lab.studies.ablation import load_ablation, run_ablation

CHANGES = {"wider": {"model.hidden_size": 24}, "causal": {"model.is_causal": True}}


@pytest.fixture
def write(root, tmp_path):
    """Write an ablation of the experiment `base`."""

    def make(changes=CHANGES, **study):
        sections = {
            "study": {"experiment": str(root / "base.yaml"), "seeds": [0, 1]} | study,
            "changes": changes,
            "training": {"max_steps": 4, "evaluation_steps": 2, "trackers": []},
        }
        path = tmp_path / "ablation.yaml"
        path.write_text(yaml.safe_dump(sections, sort_keys=False))
        return path

    return make


def test_each_change_is_trained_beside_the_unchanged_experiment(write, root, tmp_path):
    study = load_ablation(write())
    results = run_ablation(study, tmp_path / "study")
    points = {(point["change"], point["seed"]): point for point in results["points"]}
    names = ("recipe", "wider", "causal")
    assert points.keys() == {(change, seed) for change in names for seed in (0, 1)}
    assert points["wider", 1]["experiment"]["model"]["hidden_size"] == 24
    assert points["recipe", 1]["experiment"]["training"]["seed"] == 1
    assert not any("test" in point for point in points.values())
    statistics_file = root / "past" / "statistics.json"
    known = json.loads(statistics_file.read_text()).get("best_possible", {})
    for point in points.values():
        assert point.get("best_possible", {}).items() <= known.items()
        assert point["validation"][0]["recommended_items@10"] >= 10
    assert json.loads((tmp_path / "study" / "ablation.json").read_text()) == results

    dataset = load_prepared(root / "past")  # the figures are those of the models in the folders
    for row in results["rows"]:
        measured = [
            evaluate(
                ModelScorer(load_model(tmp_path / "study" / f"{row['change']}-{seed}" / "model")),
                dataset.validation,
                dataset.validation.targets,
                study.build(study.runs[0]).evaluation,
            )["ndcg@10"]
            for seed in (0, 1)
        ]
        assert row["ndcg@10"] == pytest.approx(statistics.mean(measured))
        assert row["ndcg@10_deviation"] == pytest.approx(statistics.stdev(measured))


def test_the_card_tells_what_each_change_does():
    def run(change, ndcg):
        return {
            "change": change,
            "train_seconds": 2.0,
            "dataset_fingerprint": "f1",
            "commit": "c1",
            "device": {"name": "a core"},
            "versions": {"torch": "2.13"},
        }, {
            "change": change,
            "seeds": 1,
            "hit_rate@10": 0.2,
            "hit_rate@10_deviation": None,
            "ndcg@10": ndcg,
            "ndcg@10_deviation": 0.01,
        }

    points, rows = zip(run("recipe", 0.1), run("no_dropout", 0.08), strict=True)
    card = render_ablation_card(
        "beauty-ablation",
        {
            "study": {"experiment": "configs/beauty/bert4rec.yaml", "seeds": [0]},
            "changes": {"no_dropout": {"model.hidden_dropout": 0.0}},
            "fixed": {"training.max_steps": 9},
            "points": points,
            "rows": rows,
        },
    )
    line = "| no dropout | `model.hidden_dropout` 0.0 | 0.2000 | 0.0800 ± 0.0100 | -20.0% | 2 |"
    assert line in card
    assert "| recipe |  | 0.2000 | 0.1000 ± 0.0100 |  | 2 |" in card
    assert "All have `training.max_steps` 9." in card


def test_where_the_best_is_known_the_card_says_how_much_of_it_each_validation_reaches():
    validations = [
        {"step": step, "hit_rate@10": rate, "recommended_items@10": count}
        for step, rate, count in ((5, 0.2, 30), (9, 0.6, 4_567))
    ]
    possible = {"hit_rate@10": 0.8, "ndcg@10": 0.75}
    point = {"change": "uniform", "seed": 3, "validation": validations, "best_possible": possible}
    text = "\n".join(describe_possible([point]))
    assert "the best that any model can expect is hit_rate@10 = 0.8000 and ndcg@10 = 0.7500" in text
    assert "- uniform, seed 3: 25.0%, 75.0% of the hit rate, with 30, 4,567 different items" in text
    assert describe_possible([point | {"best_possible": None}]) == []


def test_an_idea_stands_beside_what_went_without_it():
    found = {"steps": 2_000, "hit_rate@10": 0.2, "ndcg@10": 0.09}
    row = {"idea": "ears", "with": found, "without": found | {"ndcg@10": 0.1}}
    assert "| ears | 2,000 | 0.2000 | 0.0900 | 0.1000 | -10.0% |" in render_tried({"rows": [row]})


@pytest.mark.parametrize(
    ("changes", "study", "message"),
    [
        ({}, {}, "changes must name one change or more"),
        ({"none": {}}, {}, "changes must name one change or more"),
        ({"recipe": {"model.is_causal": True}}, {}, "changes.recipe is the experiment itself"),
        ({"a": {"model.is_casual": True}}, {}, "did you mean is_causal"),
        (CHANGES, {"seeds": []}, r"seeds must be different numbers, one or more, got \[\]"),
    ],
)
def test_a_mistake_is_named_before_anything_is_trained(write, changes, study, message):
    with pytest.raises(ValueError, match=message):
        load_ablation(write(changes, **study))
