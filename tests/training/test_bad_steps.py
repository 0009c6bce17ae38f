import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from bert4rec_hf.training import bad_steps
from bert4rec_hf.training.checkpoint import find_checkpoints
from bert4rec_hf.training.checksums import find_damage
from bert4rec_hf.training.loop import TrainingRun


def spoil(model, factors):
    """Multiply the losses of some batches, counted from 1."""
    batches = iter(range(1, 1_000))

    def change(module, inputs, output):
        output.loss = output.loss * factors.get(next(batches), 1.0)
        return output

    model.register_forward_hook(change)


def start(small, folder, factors, **settings):
    """Train with such losses."""
    config = small.make_config(**settings)
    run = small.make_run(folder, config, hidden_dropout=0, attention_dropout=0)
    spoil(run.unwrapped, factors)
    run.train(small.make_loader(config), small.constant, small.ignore)
    return run


def describe_checkpoints(folder):
    """Names of whole checkpoints, all of whose numbers are finite."""
    return [
        path.name
        for path in find_checkpoints(folder)
        if not find_damage(path)
        and all(
            tensor.isfinite().all()
            for kind in ("model", "optimizer")
            for tensor in load_file(path / f"{kind}-0.safetensors").values()
        )
    ]


def test_one_nan_stops_within_its_step_and_is_told_with_its_batch(small, tmp_path):
    expected = small.make_loader(small.make_config()).batch_sampler.batch(6)["row"].tolist()
    assert len(set(expected)) == 4
    message = (
        rf"step 7 is not finite: loss nan, length of the gradient nan; it read batch 6 \(histories "
        rf"{', '.join(map(str, expected))}\); not finite in \d+ weights, the first is model.*"
        r"Look at it with --replay-step 7 instead of --resume"
    )
    with pytest.raises(ValueError, match=message):
        start(small, tmp_path, {7: torch.nan})
    assert describe_checkpoints(tmp_path) == ["step-00000003", "step-00000006"]


def test_a_loss_that_is_infinite_though_its_gradients_are_not_stops(small, tmp_path):
    config = small.make_config()
    run = small.make_run(tmp_path, config)

    def add_infinity(module, inputs, output):
        output.loss = output.loss + torch.inf
        return output

    run.unwrapped.register_forward_hook(add_infinity)
    with pytest.raises(ValueError, match="step 1 is not finite: loss inf, length of the gradient"):
        run.train(small.make_loader(config), small.constant, small.ignore)


def test_the_largest_finite_gradient_is_told(small):
    model = small.make_model()
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    model.model.embed_tokens.weight.grad[3, 1] = -8.5
    model.model.layers[0].self_attn.q_proj.weight.grad[0, 2] = torch.nan
    text = bad_steps.describe_gradients(model)
    assert "not finite in 1 weights, the first is model.layers.0.self_attn.q_proj.weight" in text
    assert "the largest finite one is 8.5 in model.embed_tokens.weight" in text


@pytest.mark.parametrize("on_bad_step", ["stop", "skip"])
def test_an_absurd_learning_rate_leaves_finite_checkpoints_only(small, tmp_path, on_bad_step):
    settings = {"learning_rate": 1e38, "warmup_ratio": 0.5, "max_steps": 60, "schedule": "constant"}
    with pytest.raises(ValueError, match="not finite"):
        start(small, tmp_path, {}, on_bad_step=on_bad_step, **settings, checkpoint_steps=1)
    assert describe_checkpoints(tmp_path) == [p.name for p in find_checkpoints(tmp_path)]


@pytest.mark.parametrize("on_bad_step", ["stop", "skip"])
def test_weights_that_are_not_finite_stop_the_first_step(small, tmp_path, on_bad_step):
    config = small.make_config(on_bad_step=on_bad_step)
    run = small.make_run(tmp_path, config)
    with torch.no_grad():
        run.unwrapped.model.layers[1].mlp.up_proj.weight[2, 1] = torch.nan
    message = "step 1 is not finite.*model.layers.1.mlp.up_proj.weight itself is not finite"
    with pytest.raises(ValueError, match=message):
        run.train(small.make_loader(config), small.constant, small.ignore)
    assert not tmp_path.joinpath("step-00000003").exists()


def test_a_skipped_step_changes_nothing_and_is_counted(small, tmp_path, caplog):
    """The witness is a plain loop that leaves the batch out."""
    settings = {"schedule": "constant", "warmup_ratio": 0, "on_bad_step": "skip"}
    run = start(small, tmp_path, {7: torch.nan}, **settings)
    assert (run.state.step, run.state.skipped_steps) == (12, [7])
    assert "step 7 is not finite: loss nan" in caplog.text

    model = small.make_model(hidden_dropout=0, attention_dropout=0)
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    spared = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for number, batch in enumerate(small.make_loader(small.make_config(**settings)), start=1):
        if number != 7:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
    actual, expected = small.weights(run), dict(model.named_parameters())
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        # Adam makes steps of the noise in the gradient of k_proj.bias, 0 in exact arithmetic.
        tolerance = {"rtol": 0, "atol": 1e-4} if name.endswith("k_proj.bias") else {}
        torch.testing.assert_close(actual[name], weight, **tolerance)


def test_skipping_ends_after_a_few_in_a_row(small, tmp_path):
    factors = dict.fromkeys([2, 4, *range(6, 13)], torch.inf)
    message = "step 11 is not finite: loss inf.*; the 5 steps before were skipped"
    with pytest.raises(ValueError, match=message):
        start(small, tmp_path, factors, on_bad_step="skip")
    assert describe_checkpoints(tmp_path)[-1] == "step-00000009"


def test_all_losses_of_an_accumulated_step_are_told(small, tmp_path):
    message = r"step 2 is not finite: loss [\d.]+, nan, .*it read batches 2 \(hist.*, 3 \(histories"
    with pytest.raises(ValueError, match=message):
        start(small, tmp_path, {4: torch.nan}, gradient_accumulation_steps=2)


def make_scaled_run(small, folder, init_scale):
    """A run in half precision, as far as its scaler goes."""
    config = small.make_config()
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return config, TrainingRun(small.make_model(), config, accelerator, folder)


def test_a_scaler_that_looks_for_its_scale_is_no_bad_step(small, tmp_path):
    """Gradients overflow until the scale has been halved a few times."""
    config, run = make_scaled_run(small, tmp_path, init_scale=2.0**127)
    before = small.weights(run)
    run.learn(next(iter(small.make_loader(config))))
    torch.testing.assert_close(small.weights(run), before, rtol=0, atol=0)
    run.train(small.make_loader(config), small.constant, small.ignore)
    assert run.accelerator.scaler.get_scale() < 2.0**126
    assert run.state.skipped_steps == []
    assert not torch.equal(
        small.weights(run)["model.embed_tokens.weight"], before["model.embed_tokens.weight"]
    )


def test_a_bad_loss_is_one_in_half_precision_too(small, tmp_path):
    config, run = make_scaled_run(small, tmp_path, init_scale=2.0**10)
    spoil(run.unwrapped, {2: torch.nan})
    with pytest.raises(ValueError, match="step 2 is not finite: loss nan"):
        run.train(small.make_loader(config), small.constant, small.ignore)


def test_an_overflow_without_any_scale_left_is_a_bad_step(small, tmp_path):
    config, run = make_scaled_run(small, tmp_path, init_scale=0.5)

    def overflow(grad):
        return torch.full_like(grad, torch.inf)

    run.unwrapped.model.embed_tokens.weight.register_hook(overflow)
    with pytest.raises(ValueError, match=r"step 1 is not finite: loss \d"):
        run.train(small.make_loader(config), small.constant, small.ignore)


class Arrived:
    def synchronize(self):
        pass


@pytest.mark.parametrize(("bad", "last"), [(7, "step-00000006"), (9, "step-00000006")])
def test_on_a_gpu_a_bad_step_is_told_by_the_next_and_before_anything_is_saved(
    small, tmp_path, monkeypatch, bad, last
):
    """What leaves a GPU late is sent here at once."""

    def send(step, norm, losses):
        return bad_steps._Pending(step, norm.clone(), losses, Arrived())

    monkeypatch.setattr(bad_steps, "is_far", lambda tensor: True)
    monkeypatch.setattr(bad_steps, "_send", send)
    with pytest.raises(
        ValueError, match=rf"step {bad} is not finite: loss nan.*read batch {bad - 1} "
    ):
        start(small, tmp_path, {bad: torch.nan})
    assert [path.name for path in find_checkpoints(tmp_path)][-1] == last


def test_an_unknown_way_with_bad_steps_is_refused(small):
    with pytest.raises(Exception, match="'on_bad_step' expected one of .*, got ignore"):
        small.make_config(on_bad_step="ignore")
