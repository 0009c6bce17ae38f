import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.evaluation.evaluator import EvaluationConfig
from bert4rec_hf.evaluation.metrics import compute_metrics
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.shared_ranking import rank_histories
from bert4rec_hf.experiment.measurement import read_gates
from bert4rec_hf.hub.model_folder import load_model
from bert4rec_hf.lab.cards.comparison_card import render_comparison, render_comparison_card
from bert4rec_hf.lab.cards.plots import plot_comparison
from bert4rec_hf.lab.studies.comparison import compare_folders, group_runs

SETTINGS = ["--evaluation.ks", "[10]", "--evaluation.num_bootstrap_samples", "20"]


@pytest.fixture(scope="module")
def folders(root, run, tmp_path_factory):
    """Adapters of two experiments with two seeds each, the later seed first."""
    runs = tmp_path_factory.mktemp("runs")
    for tuner in ("lora", "ilora"):
        for seed in (1, 0):
            run(root / f"{tuner}.yaml", runs / f"{tuner}-{seed}", f"--training.seed={seed}")
    return [runs / f"{tuner}-{seed}" / "adapter" for tuner in ("lora", "ilora") for seed in (1, 0)]


@pytest.fixture(scope="module")
def segments(root, tmp_path_factory):
    """A file that deals the users of the test out to two segments, in turn."""
    path = tmp_path_factory.mktemp("segments") / "segments.csv"
    users = datasets.load_from_disk(str(root / "later"))["test"]["user"]
    rows = [f"{user},{('even', 'odd')[place % 2]}" for place, user in enumerate(users)]
    path.write_text("\n".join(["user,segment", *rows]))
    return path


@pytest.fixture(scope="module")
def comparison(root, folders, segments):
    name = "lora"
    return compare_folders(
        folders, root / "later", SETTINGS, Accelerator(cpu=True), against=name, segments=segments
    )


def results_of(folder):
    return json.loads((folder.parent / "results.json").read_text())


def test_runs_are_put_together_by_experiment_in_the_order_of_seeds(root, folders, comparison):
    assert list(comparison["runs"]) == ["lora", "ilora"]
    for name, places in zip(comparison["runs"], (folders[1::-1], folders[:1:-1]), strict=True):
        for seed, (run, folder) in enumerate(zip(comparison["runs"][name], places, strict=True)):
            alone = results_of(folder)
            assert run["seed"] == seed == alone["experiment"]["training"]["seed"]
            assert run["metrics"] == alone["test"]["metrics"]
            assert run["parameters"] == alone["parameters"]


def test_differences_are_those_of_the_means(root, comparison):
    ours, theirs = (
        np.mean([run["metrics"]["ndcg@10"] for run in comparison["runs"][f"{tuner}"]])
        for tuner in ("ilora", "lora")
    )
    (found,) = comparison["differences"].values()
    assert found["ndcg@10"]["difference"] == pytest.approx(ours - theirs)
    low, high = found["ndcg@10"]["interval"]
    assert low <= ours - theirs <= high
    assert 0 < found["ndcg@10"]["p_value"] <= 1


def test_segments_and_gates_are_told_apart(root, folders, comparison):
    (run, _) = comparison["runs"]["ilora"]
    assert comparison["segments"] == {"even": 75, "odd": 75}
    assert np.mean(list(run["segments"].values())) == pytest.approx(run["metrics"]["ndcg@10"])
    gates = read_gates(load_model(folders[3]).eval(), load_prepared(root / "later").test)
    expected = gates[torch.arange(len(gates)) % 2 == 1].mean(dim=0).tolist()
    assert run["gates"]["odd"] == pytest.approx(expected)


def test_what_the_gate_adds_is_told_by_a_merge_under_its_mean(root, folders, comparison):
    (run, _) = comparison["runs"]["ilora"]
    test = load_prepared(root / "later").test
    model = load_model(folders[3]).eval()
    mean = read_gates(model, test).mean(dim=0)
    # The same without a merge: the gate outputs the mean whatever it sees.
    gate = model.base_model.encoder.history_gates.ilora_gate["default"]
    torch.nn.init.zeros_(gate.weight)
    gate.bias.data = mean.log()
    ranking = rank_histories(ModelScorer(model), test, test.targets, EvaluationConfig(ks=[10]))
    expected = compute_metrics(ranking.ranks, [10])
    assert run["mean_gate_metrics"]["ndcg@10"] == pytest.approx(expected["ndcg@10"])


def test_the_card_tells_all_experiments_and_how_sure_the_differences_are(root, comparison):
    card = render_comparison_card("later", comparison)
    table = render_comparison(comparison).splitlines()
    assert all(line in card for line in table)
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| lora",
        "| ilora",
        "| popularity",
        "| last_item",
        "| item_knn",
    ]
    (found,) = comparison["differences"].values()
    assert f"{found['ndcg@10']['difference']:+.4f}" in table[3]
    assert "| even (75) |" in card.replace("experiment | ", "| ")
    assert "![NDCG@10 of each run; gate weights by segment](later.png)" in card


@pytest.mark.parametrize(
    ("p_value", "difference", "verdict"),
    [
        (0.2, 0.1, "not significantly different from"),
        (0.01, 0.1, "better than"),
        (0.01, -0.1, "worse than"),
    ],
)
def test_a_difference_is_claimed_only_where_it_is_more_than_luck(
    root, comparison, p_value, difference, verdict
):
    name = "ilora"
    found = {"difference": difference, "interval": (-1, 1), "p_value": p_value}
    changed = comparison | {"differences": {name: {"ndcg@10": found}}}
    assert f"{name} is {verdict} lora" in render_comparison_card("later", changed)


def test_a_plot_is_drawn(comparison, tmp_path):
    plot_comparison(comparison, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_runs_that_differ_in_more_than_the_seed_are_refused(folders, tmp_path):
    shutil.copytree(folders[0].parent, tmp_path / "other")
    results = results_of(folders[0])
    results["experiment"]["training"]["learning_rate"] = 0.5
    (tmp_path / "other" / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="differ in more than the seed, .*other/adapter has other"):
        group_runs([folders[1], tmp_path / "other" / "adapter"])
    with pytest.raises(ValueError, match="lora has seed 1 twice, the second time in"):
        group_runs([folders[0], folders[0]])


def test_a_folder_outside_of_a_run_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match="not in the folder of a finished run: results.json is"):
        group_runs([tmp_path / "adapter"])


def test_an_unknown_experiment_to_compare_with_is_refused(root, folders):
    with pytest.raises(ValueError, match="--against must be one of lora, got 'full'"):
        compare_folders(
            folders[:2], root / "later", SETTINGS, Accelerator(cpu=True), against="full"
        )


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("segment", "has no segment for 150 users of the test, the first is"),
        ("kind", "must have the columns user and segment, got"),
    ],
)
def test_segments_that_leave_users_out_are_refused(root, folders, tmp_path, column, message):
    path = tmp_path / "segments.csv"
    path.write_text(f"user,{column}\nnobody,few\n")
    with pytest.raises(ValueError, match=message):
        compare_folders(
            folders[:1],
            root / "later",
            SETTINGS,
            Accelerator(cpu=True),
            against="lora",
            segments=path,
        )
