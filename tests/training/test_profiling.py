import json
import logging

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.loop import TrainingRun
from bert4rec_hf.training.profiling import WARMUP_STEPS, profile_steps


def take_steps(folder, num_steps, num_profiled):
    weight = torch.randn(17, 13, requires_grad=True)
    with profile_steps(Accelerator(cpu=True), folder, num_profiled) as step:
        for _ in range(num_steps):
            (torch.randn(11, 17) @ weight).relu().sum().backward()
            step()


def test_as_many_steps_are_traced_as_asked_for(tmp_path):
    folder = tmp_path / "runs" / "profile"
    take_steps(folder, num_steps=WARMUP_STEPS + 7, num_profiled=3)
    assert sorted(path.name for path in folder.iterdir()) == [
        "process-0.json",
        "process-0.pt.trace.json",
        "process-0.txt",
    ]
    trace = json.loads((folder / "process-0.pt.trace.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    steps = {name for name in names if name.startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{WARMUP_STEPS + step}" for step in range(3)}
    assert names.count("aten::relu") == 3


def test_the_table_tells_time_and_memory_of_operations(tmp_path):
    take_steps(tmp_path, num_steps=WARMUP_STEPS + 5, num_profiled=5)
    table = (tmp_path / "process-0.txt").read_text()
    heading, lines = table.splitlines()[1], table.splitlines()
    for column in ("Name", "Self CPU", "Self CPU Mem", "# of Calls"):
        assert column in heading
    (relu,) = [line.split() for line in lines if line.split()[:1] == ["aten::relu"]]
    assert relu[-1] == "5"


def test_the_summary_says_what_the_table_says(tmp_path):
    take_steps(tmp_path, num_steps=WARMUP_STEPS + 5, num_profiled=5)
    summary = json.loads((tmp_path / "process-0.json").read_text())
    lines = [line.split() for line in (tmp_path / "process-0.txt").read_text().splitlines()]
    rows = {line[0]: line for line in lines if line and line[0].startswith("aten::")}
    shares = [operation["time_share"] for operation in summary]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1
    for operation in summary:
        if operation["name"] in rows:
            row = rows[operation["name"]]
            assert operation["calls"] == int(row[-1])
            # The table's share is of all time, that between the operations included.
            assert operation["time_share"] * 100 >= float(row[1].rstrip("%")) - 0.01
    assert "aten::mm" in {operation["name"] for operation in summary}


def test_a_profile_that_is_cut_short_holds_the_steps_there_were(tmp_path):
    take_steps(tmp_path, num_steps=WARMUP_STEPS + 2, num_profiled=9)
    trace = json.loads((tmp_path / "process-0.pt.trace.json").read_text())
    assert [event.get("name") for event in trace["traceEvents"]].count("aten::relu") == 2


def test_too_few_steps_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        take_steps(tmp_path / "profile", num_steps=2, num_profiled=3)
    message = "nothing was profiled: there were 2 steps, and the first 4 are warmup"
    assert message in caplog.messages
    assert not (tmp_path / "profile").exists()


def test_nothing_happens_where_no_step_is_to_be_profiled(tmp_path):
    take_steps(tmp_path / "profile", num_steps=WARMUP_STEPS + 3, num_profiled=0)
    assert not (tmp_path / "profile").exists()


def test_a_negative_number_of_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="steps to profile must be 0 or more, got -2"):
        take_steps(tmp_path, num_steps=1, num_profiled=-2)


def train(folder, num_profiled):
    """Weights after seven steps of two batches each."""
    torch.manual_seed(1)
    model = BERT4RecForMaskedItemModeling(BERT4RecConfig(vocab_size=11, hidden_size=12))
    config = TrainingConfig(learning_rate=0.01, max_steps=7, gradient_accumulation_steps=2)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    run = TrainingRun(model, config, accelerator, folder / "checkpoints")
    history, collator = {"items": [4, 2, 3, 5], "view": 7}, MaskedItemCollator(max_history_length=9)
    with profile_steps(accelerator, folder / "profile", num_profiled) as on_step:
        run.train(
            DataLoader([history] * 42, batch_size=3, collate_fn=collator),
            lambda model: {"ndcg@10": 0.5},
            lambda model: None,
            on_step,
        )
    return model.state_dict()


def test_training_is_profiled_by_optimizer_steps_and_not_disturbed(tmp_path):
    plain, profiled = train(tmp_path / "plain", 0), train(tmp_path / "profiled", 2)
    torch.testing.assert_close(profiled, plain, rtol=0, atol=0)
    trace = json.loads((tmp_path / "profiled" / "profile" / "process-0.pt.trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("Optimizer.step#AdamW.step") == 2
