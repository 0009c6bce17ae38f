"""Neighbors mixed into a trained model, from the regression to the command."""

import json
import math

import numpy as np
import pytest
import torch

from bert4rec_hf.commands import neighbors as command
from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.evaluation.evaluator import EvaluationConfig, evaluate
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.experiment import neighbors as adding
from bert4rec_hf.experiment.neighbors import (
    WEIGHTS,
    add_neighbors,
    predict_log_sums,
    repeat_choice,
)
from bert4rec_hf.hub.model_folder import load_weights, save_model_folder
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.neighbors import count_neighbors


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "generated"
    synthetic = SyntheticConfig(num_users=150, num_items=60, mean_length=8.0, max_length=20)
    prepare_dataset("synthetic", None, folder, PreparationConfig(synthetic=synthetic))
    return load_prepared(folder)


def make_model(dataset):
    """Drawn at random: a network that knows nothing, so that any neighbors help."""
    torch.manual_seed(0)
    shape = {"hidden_size": 12, "intermediate_size": 20, "max_history_length": 9}
    config = BERT4RecConfig(vocab_size=dataset.vocab_size, initializer_range=0.3, **shape)
    return BERT4RecForMaskedItemModeling(config).eval()


@torch.no_grad()
def test_the_regression_predicts_what_the_exponentials_add_up_to(dataset):
    model = make_model(dataset)
    histories = [dataset.validation[row] for row in range(150)]
    slope, offset = predict_log_sums(model, histories, batch_size=64)
    sums, predicted = [], []
    for history in histories:
        inputs = torch.tensor([[*history[-8:].tolist(), 1]])
        sums.append(model(inputs).logits[0, -1, 2:].logsumexp(dim=0).item())
        predicted.append((model.next_item_states(inputs).double() @ slope.T + offset).item())
    sums, errors = np.array(sums), np.array(sums) - predicted
    assert abs(errors.mean()) < 1e-6
    assert errors.std() < 0.7 * sums.std()


def test_the_best_weight_on_validation_is_kept(dataset):
    model, config = make_model(dataset), EvaluationConfig(ks=[10])
    found = add_neighbors(model, dataset, 5, config)
    assert list(found) == ["0", *map(str, WEIGHTS)]
    best = max(found, key=found.get)
    assert best != "0"
    rows = dataset.validation
    assert evaluate(ModelScorer(model), rows, rows.targets, config)["ndcg@10"] == found[best]
    table = count_neighbors(dataset.train, dataset.vocab_size, 5)
    assert torch.equal(model.neighbors.ids, table.ids)
    state = model.next_item_states(torch.tensor([[5, 9, 1]]))
    weight = float(best)
    slope, offset = predict_log_sums(make_model(dataset), [rows[row] for row in range(len(rows))])
    expected = (state.double() @ slope.T + offset).item() + math.log(weight / (1 - weight))
    assert model.neighbors.gate(state).item() == pytest.approx(expected, rel=1e-4)


def test_neighbors_that_do_not_help_are_left_out(dataset, monkeypatch):
    model = make_model(dataset)
    nothing = count_neighbors([np.array([2, 3])], dataset.vocab_size, 5)
    monkeypatch.setattr(adding, "count_neighbors", lambda *_, **__: nothing)
    found = add_neighbors(model, dataset, 5, EvaluationConfig(ks=[10]))
    assert max(found.values()) == found["0"]
    assert model.neighbors is None
    assert model.config.num_neighbors == 0


def test_a_choice_is_repeated_for_another_model(dataset):
    model = make_model(dataset)
    found = repeat_choice(model, dataset, 5, {"0": 0.1, "0.35": 0.3, "0.8": 0.2})
    assert found == {"0": 0.1, "0.35": 0.3, "0.8": 0.2}
    assert model.neighbors.similarities.any()
    slope, offset = predict_log_sums(
        make_model(dataset), [dataset.train[row] for row in range(len(dataset.train))]
    )
    bias = offset.item() + math.log(0.35 / 0.65)
    assert model.neighbors.gate.bias.item() == pytest.approx(bias, rel=1e-5)
    repeat_choice(model, dataset, 5, {"0": 0.4, "0.35": 0.3})
    assert model.neighbors is None


@pytest.fixture
def folder(dataset, tmp_path):
    save_model_folder(make_model(dataset), dataset.folder, tmp_path / "model")
    return tmp_path / "model"


def test_the_command_writes_a_folder_that_scores_with_neighbors(folder, dataset, tmp_path, capsys):
    output = tmp_path / "with-neighbors"
    options = ["--dataset", dataset.folder, "--output", output, "--num-neighbors", 7]
    command.main([str(folder), *map(str, options)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["weight", "ndcg@10", "on", "validation"]
    assert len(printed) == 1 + 1 + len(WEIGHTS) + 1
    assert load_weights(output).neighbors.ids.shape == (dataset.vocab_size, 7)
    assert json.loads((output / "config.json").read_text())["num_neighbors"] == 7
    assert (output / "tokenizer.json").is_file()
    assert load_weights(folder).neighbors is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-neighbors", "0"], "num_neighbors must be at least 1, got 0"),
        (["--evaluation.k", "3"], "evaluation.k is not a setting"),
    ],
)
def test_wrong_options_are_refused(folder, dataset, tmp_path, capsys, options, message):
    given = ["--dataset", str(dataset.folder), "--output", str(tmp_path / "new"), *options]
    with pytest.raises(SystemExit):
        command.main([str(folder), *given])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_output_that_exists_is_left_alone(folder, dataset, capsys):
    with pytest.raises(SystemExit):
        command.main([str(folder), "--dataset", str(dataset.folder), "--output", str(folder)])
    assert f"{folder} exists; choose another --output" in capsys.readouterr().err
