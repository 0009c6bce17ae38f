import json
import signal

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.training import loop
from bert4rec_hf.training.checkpoint import find_checkpoints
from bert4rec_hf.training.interruption import Interrupted


def test_the_loop_takes_the_steps_of_a_plain_loop(small, tmp_path):
    config = small.make_config(
        schedule="constant", warmup_ratio=0, weight_decay=0.1, max_grad_norm=0.5
    )
    run = small.make_run(tmp_path, config, hidden_dropout=0, attention_dropout=0)
    run.train(small.make_loader(config), small.constant, small.ignore)

    model = small.make_model(hidden_dropout=0, attention_dropout=0)
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    spared = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for batch in small.make_loader(config):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(small.weights(run), dict(model.named_parameters()))


def test_accumulating_two_batches_is_a_step_on_their_mean_gradient(small, tmp_path):
    config = small.make_config(max_steps=1, gradient_accumulation_steps=2, warmup_ratio=0)
    run = small.make_run(tmp_path, config, hidden_dropout=0, attention_dropout=0)
    run.train(small.make_loader(config), small.constant, small.ignore)

    model = small.make_model(hidden_dropout=0, attention_dropout=0)
    first, second = small.make_loader(config)
    ((model(**first).loss + model(**second).loss) / 2).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    before = model.model.embed_tokens.weight.detach().clone()
    torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01).step()
    after = model.model.embed_tokens.weight.detach()
    assert (after - before).abs().max() > 0.005
    torch.testing.assert_close(small.weights(run)["model.embed_tokens.weight"], after)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(small, tmp_path, accumulation):
    settings = {"gradient_accumulation_steps": accumulation}
    config = small.make_config(**settings)
    whole = small.make_run(tmp_path / "whole", config)
    whole.train(small.make_loader(config), small.constant, small.ignore)

    # Stops at the second validation, which is no better.
    shorter = small.make_config(**settings, patience=1)
    broken = small.make_run(tmp_path / "broken", shorter)
    assert broken.train(small.make_loader(shorter), small.constant, small.ignore).step == 6

    torch.manual_seed(99)
    resumed = small.make_run(tmp_path / "broken", config)
    resumed.resume(find_checkpoints(tmp_path / "broken")[-1])
    assert (resumed.state.step, resumed.state.best_step) == (6, 3)
    resumed.train(small.make_loader(config, first_step=6), small.constant, small.ignore)
    assert (resumed.state.step, resumed.state.histories) == (12, 12 * 4 * accumulation)
    torch.testing.assert_close(small.weights(resumed), small.weights(whole), rtol=0, atol=0)


def test_any_number_of_loader_workers_leads_to_the_same_weights(small, tmp_path):
    config, learned = small.make_config(), []
    for workers in (0, 1, 3):
        run = small.make_run(tmp_path / str(workers), config)
        loader = small.make_loader(config, num_workers=workers)
        run.train(loader, small.constant, small.ignore)
        learned.append(small.weights(run))
    for other in learned[1:]:
        torch.testing.assert_close(other, learned[0], rtol=0, atol=0)


def test_a_run_stopped_between_a_step_and_its_validation_makes_up_for_it(small, tmp_path):
    config, asked = small.make_config(), []

    def stop_at_step_6(model):
        asked.append(model)
        if len(asked) == 2:
            raise Interrupted(signal.SIGTERM)
        return small.constant(model)

    run = small.make_run(tmp_path, config)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 6"):
        run.train(small.make_loader(config), stop_at_step_6, small.ignore)
    resumed = small.make_run(tmp_path, config)
    resumed.resume(find_checkpoints(tmp_path)[-1])
    assert [each["step"] for each in resumed.state.validations] == [3]
    state = resumed.train(small.make_loader(config, first_step=6), small.constant, small.ignore)
    assert [each["step"] for each in state.validations] == [3, 6, 9, 12]


def test_a_checkpoint_without_room_is_tried_again_and_the_last_one_is_needed(
    small, tmp_path, monkeypatch, caplog
):
    save, failing = loop.save_checkpoint, {3, 9}

    def save_unless_full(folder, model, optimizer, state, *rest):
        if state.step in failing:
            raise OSError(28, "No space left on device")
        save(folder, model, optimizer, state, *rest)

    monkeypatch.setattr(loop, "save_checkpoint", save_unless_full)
    config = small.make_config()
    run = small.make_run(tmp_path, config)
    run.train(small.make_loader(config), small.constant, small.ignore)
    assert [path.name[-2:] for path in find_checkpoints(tmp_path)] == ["06", "12"]
    assert "the checkpoint of step 9 could not be written: No space left on device" in caplog.text
    failing.add(12)
    message = "the checkpoint of step 12 could not be written: No space.*continue with --resume"
    with pytest.raises(OSError, match=message):
        small.make_run(tmp_path / "last", config).train(
            small.make_loader(config), small.constant, small.ignore
        )


def test_the_logged_loss_is_the_mean_since_the_last_one(small, tmp_path, monkeypatch):
    config = small.make_config(max_steps=7, gradient_accumulation_steps=2)
    run, losses, logged = small.make_run(tmp_path, config), [], {}
    learn = run.learn

    def note_loss(batch):
        losses.append(learn(batch))
        return losses[-1]

    def note_log(values, step):
        logged.update({step: values["train/loss"]} if "train/loss" in values else {})

    monkeypatch.setattr(run, "learn", note_loss)
    monkeypatch.setattr(run.accelerator, "log", note_log)
    run.train(small.make_loader(config), small.constant, small.ignore)
    first, rest = torch.stack(losses[:10]), torch.stack(losses[10:])
    assert logged == {5: pytest.approx(first.mean().item()), 7: pytest.approx(rest.mean().item())}


def test_the_best_model_is_kept_and_patience_ends_the_run(small, tmp_path):
    values, kept = iter([0.1, 0.3, 0.2, 0.25, 0.29, 0.9]), []
    config = small.make_config(max_steps=100, evaluation_steps=2, patience=3)
    run = small.make_run(tmp_path, config)
    state = run.train(
        small.make_loader(config),
        lambda model: {"ndcg@10": next(values)},
        lambda model: kept.append(run.state.step),
    )
    assert kept == [2, 4]
    assert (state.step, state.best_step, state.best_metric) == (10, 4, 0.3)
    assert state.histories == 10 * 4
    assert [each["step"] for each in state.validations] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("values", "rise"),
    [
        ([0.1, 0.2, 0.3, 0.35, 0.4], 1 / 8),  # .35 was seen at 8 of 10 steps
        ([0.1, 0.2, 0.3, 0.398, 0.4], 1 / 200),
        ([0.1, 0.5, 0.3, 0.35, 0.4], 0),
        ([0.0, 0.0, 0.0, 0.0, 0.0], 0),
    ],
)
def test_a_training_that_stopped_too_early_is_told(small, tmp_path, caplog, values, rise):
    values = iter(values)
    config = small.make_config(max_steps=10, evaluation_steps=2)
    state = small.make_run(tmp_path, config).train(
        small.make_loader(config), lambda model: {"ndcg@10": next(values)}, small.ignore
    )
    assert state.still_improving == pytest.approx(rise)
    assert ("still improving" in caplog.text) == (rise > 0.01)
    if rise > 0.01:
        assert "12.5 %" in caplog.text
        assert "raise training.max_steps (now 10)" in caplog.text


def test_only_the_newest_checkpoints_stay_and_hold_no_pickle(small, tmp_path):
    config = small.make_config(keep_checkpoints=2)
    small.make_run(tmp_path, config).train(small.make_loader(config), small.constant, small.ignore)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000009", "step-00000012"]
    files = sorted(path.name for path in (tmp_path / names[-1]).iterdir())
    tensors = [f"{kind}-0.safetensors" for kind in ("model", "optimizer", "random")]
    assert files == ["checksums.json", *tensors, "state.json"]
    assert json.loads((tmp_path / names[-1] / "state.json").read_text())["state"]["step"] == 12


def test_training_learns(small, tmp_path):
    config = small.make_config(max_steps=150, evaluation_steps=150, checkpoint_steps=150)
    run = small.make_run(tmp_path, config)
    batch = next(iter(small.make_loader(config)))
    before = run.unwrapped.eval()(**batch).loss.item()
    run.train(small.make_loader(config), small.constant, small.ignore)
    # Each item stands behind the one of the next smaller id: nothing is left to guess.
    assert run.unwrapped.eval()(**batch).loss.item() < before / 4


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trainer_of_transformers_learns_from_the_same_parts(small, tmp_path, accumulation):
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=60,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.01,
        logging_steps=60,
        remove_unused_columns=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    trainer = Trainer(
        model=small.make_model(),
        args=arguments,
        train_dataset=[{"items": history} for history in small.histories],
        data_collator=MaskedItemCollator(max_history_length=8, mask_ratio=0.4),
    )
    untrained = np.log(15)
    # A mean over 60 steps: below that of guessing, and not a multiple of it by accumulation.
    assert untrained / 3 < trainer.train().training_loss < untrained
