"""Teachers beside a plain softmax of averaged log-probabilities."""

import pytest
import torch
from torch.nn import functional as F

from bert4rec_hf.training import teachers
from bert4rec_hf.training.checkpoint import find_checkpoints
from bert4rec_hf.training.neighbors import count_neighbors
from bert4rec_hf.training.teachers import Teachers

AT_ONCE = 2**20
QUIET = {"hidden_dropout": 0, "attention_dropout": 0}


@pytest.fixture
def models(small):
    """Two teachers that differ, one with neighbors."""
    first = small.make_model(initializer_range=0.5)
    second = small.make_model(initializer_range=0.9, num_neighbors=3, neighbor_distance=2)
    second.neighbors.set_table(*count_neighbors(small.histories, 17, 3, max_distance=2))
    return [first, second]


@pytest.fixture
def batch(small):
    return next(iter(small.make_loader(small.make_config())))


def expect(batch, *read):
    """(masked, vocab) softmax of the mean of log-probabilities of items."""
    positions = batch["masked_positions"]
    targets = batch["labels"][0, positions]
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "cu_seq_lens_q")}
    logs = []
    for model in read:
        scores = model.eval().score_masked(*model.encode_masked(positions, **inputs), targets)
        logs.append(F.pad(scores[:, 2:].log_softmax(dim=1), (2, 0), value=-torch.inf))
    return torch.stack(logs).mean(dim=0).softmax(dim=1)


def spread(taught):
    """(masked, vocab) the soft weights where their items are."""
    ids, weights = taught["soft_target_ids"], taught["soft_target_weights"]
    return torch.zeros(len(ids), 17).scatter_add(1, ids, weights)


@torch.no_grad()
@pytest.mark.parametrize("at_once", [AT_ONCE, 60], ids=["one run", "runs of two"])
def test_what_is_taught_is_the_mean_of_log_probabilities(models, batch, at_once):
    taught = Teachers(models, 0.7, at_once)(batch)
    expected = expect(batch, *models)
    torch.testing.assert_close(spread(taught), 0.7 * expected)
    assert (expected - expect(batch, models[0])).abs().max() > 0.1
    assert {name: taught[name] for name in batch} == batch


@torch.no_grad()
def test_the_most_probable_items_are_kept_and_no_more(models, batch, monkeypatch):
    monkeypatch.setattr(teachers, "NUM_KEPT", 4)
    taught = Teachers(models, 1, AT_ONCE)(batch)
    best = expect(batch, *models).topk(4, dim=1)
    kept, order = taught["soft_target_weights"].sort(dim=1, descending=True)
    torch.testing.assert_close(kept, best.values)
    assert torch.equal(taught["soft_target_ids"].gather(1, order), best.indices)


@pytest.mark.parametrize("weight", [0, 0.4, 1])
def test_a_step_learns_the_cross_entropy_against_item_and_teachers(
    models, batch, small, tmp_path, weight
):
    before = [{name: each.clone() for name, each in model.state_dict().items()} for model in models]
    run = small.make_run(tmp_path, small.make_config(), Teachers(models, weight, AT_ONCE), **QUIET)
    student = small.make_model(**QUIET)
    labels = batch["labels"][0, batch["masked_positions"]]
    scores = student.eval()(**batch).logits
    expected = weight * expect(batch, *models) + (1 - weight) * F.one_hot(labels, 17)
    loss = F.cross_entropy(scores[:, 2:], expected[:, 2:])
    run.model.train()
    assert run.learn(batch).item() == pytest.approx(loss.item(), rel=1e-6)
    for model, state in zip(models, before, strict=True):
        torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
        assert all(each.grad is None for each in model.parameters())


def test_teachers_of_weight_0_change_nothing(models, small, tmp_path):
    config, learned = small.make_config(), []
    for name, given in (("with", Teachers(models, 0, AT_ONCE)), ("without", None)):
        run = small.make_run(tmp_path / name, config, given)
        run.train(small.make_loader(config), small.constant, small.ignore)
        learned.append(small.weights(run))
    torch.testing.assert_close(*learned, rtol=0, atol=0)


def test_a_resumed_run_with_teachers_equals_an_undisturbed_one(models, small, tmp_path):
    config, teaching = small.make_config(), Teachers(models, 0.5, AT_ONCE)
    whole = small.make_run(tmp_path / "whole", config, teaching)
    whole.train(small.make_loader(config), small.constant, small.ignore)
    shorter = small.make_config(patience=1)  # stops at the second validation, which is no better
    small.make_run(tmp_path / "broken", shorter, teaching).train(
        small.make_loader(shorter), small.constant, small.ignore
    )
    torch.manual_seed(99)
    resumed = small.make_run(tmp_path / "broken", config, teaching)
    resumed.resume(find_checkpoints(tmp_path / "broken")[-1])
    assert resumed.state.step == 6
    resumed.train(small.make_loader(config, first_step=6), small.constant, small.ignore)
    torch.testing.assert_close(small.weights(resumed), small.weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "sampled_softmax"}, "got sampled_softmax and num_neighbors = 0; change"),
        ({"num_neighbors": 3}, "got full_softmax and num_neighbors = 3; change"),
    ],
)
def test_a_model_that_cannot_learn_from_teachers_says_so(models, batch, small, settings, message):
    drawn = {"negatives": torch.tensor([3, 4]), "negative_log_counts": torch.zeros(2)}
    taught = Teachers(models, 0.5, AT_ONCE)(batch | drawn)
    with pytest.raises(ValueError, match=message):
        small.make_model(**settings)(**taught)
