import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.data.histories import Histories
from bert4rec_hf.data.sampling import TrainingViews, ViewBatchSampler
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.checkpoint import find_checkpoints
from bert4rec_hf.training.loop import TrainingRun

LENGTHS = np.array([3, 9, 5, 7, 4, 11, 6, 8, 10, 12, 5])
HISTORIES = Histories(
    np.concatenate([np.arange(2, 2 + length, dtype=np.int32) for length in LENGTHS]),
    np.array([0, *LENGTHS.cumsum()]),
)


def make_model(**settings):
    torch.manual_seed(0)
    shape = {"vocab_size": 17, "hidden_size": 12, "intermediate_size": 20, "max_history_length": 8}
    return BERT4RecForMaskedItemModeling(BERT4RecConfig(**shape | settings))


def make_config(**settings):
    defaults = {
        "learning_rate": 0.01,
        "batch_size": 4,
        "max_steps": 12,
        "evaluation_steps": 3,
        "checkpoint_steps": 3,
        "logging_steps": 5,
        "trackers": [],
    }
    return TrainingConfig(**defaults | settings)


def make_loader(config, first_step=0):
    sampler = ViewBatchSampler(
        LENGTHS,
        batch_size=config.batch_size,
        num_batches=config.max_steps * config.gradient_accumulation_steps,
        seed=config.seed,
        first_batch=first_step * config.gradient_accumulation_steps,
    )
    return DataLoader(
        TrainingViews(HISTORIES),
        batch_sampler=sampler,
        collate_fn=MaskedItemCollator(max_history_length=8, mask_ratio=0.4),
        generator=torch.Generator(),
    )


def make_run(folder, config, **settings):
    accelerator = Accelerator(
        gradient_accumulation_steps=config.gradient_accumulation_steps, cpu=True
    )
    return TrainingRun(make_model(**settings), config, accelerator, folder)


def constant(model):
    return {"ndcg@10": 0.5}


def ignore(model):
    pass


def weights(run):
    return {name: weight.detach().clone() for name, weight in run.unwrapped.named_parameters()}


def test_the_loop_takes_the_steps_of_a_plain_loop(tmp_path):
    config = make_config(schedule="constant", warmup_ratio=0, weight_decay=0.1, max_grad_norm=0.5)
    run = make_run(tmp_path, config, hidden_dropout=0, attention_dropout=0)
    run.train(make_loader(config), constant, ignore)

    model = make_model(hidden_dropout=0, attention_dropout=0)
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    spared = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for batch in make_loader(config):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weights(run), dict(model.named_parameters()))


def test_accumulating_two_batches_is_a_step_on_their_mean_gradient(tmp_path):
    config = make_config(max_steps=1, gradient_accumulation_steps=2, warmup_ratio=0)
    run = make_run(tmp_path, config, hidden_dropout=0, attention_dropout=0)
    run.train(make_loader(config), constant, ignore)

    model = make_model(hidden_dropout=0, attention_dropout=0)
    first, second = make_loader(config)
    ((model(**first).loss + model(**second).loss) / 2).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    before = model.model.embed_tokens.weight.detach().clone()
    torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01).step()
    after = model.model.embed_tokens.weight.detach()
    assert (after - before).abs().max() > 0.005
    torch.testing.assert_close(weights(run)["model.embed_tokens.weight"], after)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(tmp_path, accumulation):
    settings = {"gradient_accumulation_steps": accumulation}
    whole = make_run(tmp_path / "whole", make_config(**settings))
    whole.train(make_loader(make_config(**settings)), constant, ignore)

    # Stops at the second validation, which is no better.
    config = make_config(patience=1, **settings)
    broken = make_run(tmp_path / "broken", config)
    assert broken.train(make_loader(config), constant, ignore).step == 6

    torch.manual_seed(99)
    resumed = make_run(tmp_path / "broken", make_config(**settings))
    resumed.resume(find_checkpoints(tmp_path / "broken")[-1])
    assert (resumed.state.step, resumed.state.best_step) == (6, 3)
    resumed.train(make_loader(make_config(**settings), first_step=6), constant, ignore)
    assert (resumed.state.step, resumed.state.histories) == (12, 12 * 4 * accumulation)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_the_logged_loss_is_the_mean_since_the_last_one(tmp_path, monkeypatch):
    config = make_config(max_steps=7, gradient_accumulation_steps=2)
    run, losses, logged = make_run(tmp_path, config), [], {}
    learn = run.learn

    def note_loss(batch):
        losses.append(learn(batch))
        return losses[-1]

    def note_log(values, step):
        logged.update({step: values["train/loss"]} if "train/loss" in values else {})

    monkeypatch.setattr(run, "learn", note_loss)
    monkeypatch.setattr(run.accelerator, "log", note_log)
    run.train(make_loader(config), constant, ignore)
    first, rest = torch.stack(losses[:10]), torch.stack(losses[10:])
    assert logged == {5: pytest.approx(first.mean().item()), 7: pytest.approx(rest.mean().item())}


def test_the_best_model_is_kept_and_patience_ends_the_run(tmp_path):
    values, kept = iter([0.1, 0.3, 0.2, 0.25, 0.29, 0.9]), []
    config = make_config(max_steps=100, evaluation_steps=2, patience=3)
    run = make_run(tmp_path, config)
    state = run.train(
        make_loader(config),
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
def test_a_training_that_stopped_too_early_is_told(tmp_path, caplog, values, rise):
    values = iter(values)
    config = make_config(max_steps=10, evaluation_steps=2)
    state = make_run(tmp_path, config).train(
        make_loader(config), lambda model: {"ndcg@10": next(values)}, ignore
    )
    assert state.still_improving == pytest.approx(rise)
    assert ("still improving" in caplog.text) == (rise > 0.01)
    if rise > 0.01:
        assert "12.5 %" in caplog.text
        assert "raise training.max_steps (now 10)" in caplog.text


def test_only_the_newest_checkpoints_stay_and_hold_no_pickle(tmp_path):
    config = make_config(keep_checkpoints=2)
    make_run(tmp_path, config).train(make_loader(config), constant, ignore)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000009", "step-00000012"]
    files = sorted(path.name for path in (tmp_path / names[-1]).iterdir())
    tensors = [f"{kind}-0.safetensors" for kind in ("model", "optimizer", "random")]
    assert files == ["checksums.json", *tensors, "state.json"]
    assert json.loads((tmp_path / names[-1] / "state.json").read_text())["state"]["step"] == 12


def test_training_learns(tmp_path):
    config = make_config(max_steps=150, evaluation_steps=150, checkpoint_steps=150)
    run = make_run(tmp_path, config)
    batch = next(iter(make_loader(config)))
    before = run.unwrapped.eval()(**batch).loss.item()
    run.train(make_loader(config), constant, ignore)
    # Each item stands behind the one of the next smaller id: nothing is left to guess.
    assert run.unwrapped.eval()(**batch).loss.item() < before / 4


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trainer_of_transformers_learns_from_the_same_parts(tmp_path, accumulation):
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
        model=make_model(),
        args=arguments,
        train_dataset=[{"items": history} for history in HISTORIES],
        data_collator=MaskedItemCollator(max_history_length=8, mask_ratio=0.4),
    )
    untrained = np.log(15)
    # A mean over 60 steps: below that of guessing, and not a multiple of it by accumulation.
    assert untrained / 3 < trainer.train().training_loss < untrained
