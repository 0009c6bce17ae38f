import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.data.negatives import NegativeSampler
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.checkpoint import find_checkpoints, load_checkpoint, save_checkpoint
from bert4rec_hf.training.loop import TrainingRun

VOCAB = 17


def make_run(takes_rows=False):
    config = BERT4RecConfig(
        vocab_size=VOCAB, hidden_size=12, intermediate_size=20, objective="gbce"
    )
    model = BERT4RecForMaskedItemModeling(config)
    if takes_rows:
        model.use_row_gradients()
    return TrainingRun(model, TrainingConfig(learning_rate=0.01), Accelerator(cpu=True), None)


def make_batches(number):
    negatives = NegativeSampler(torch.ones(VOCAB).numpy(), 5, "uniform")
    collator = MaskedItemCollator(max_history_length=9, negatives=negatives)
    for view in range(number):
        yield collator([{"items": torch.arange(2, 9).numpy(), "view": view}] * 3)


@pytest.fixture
def saved(tmp_path):
    """A run after two steps, and its checkpoint."""
    run = make_run()
    for batch in make_batches(2):
        run.learn(batch)
    save_checkpoint(tmp_path, run.unwrapped, run.optimizer, run.state, run.accelerator, keep=1)
    return run, find_checkpoints(tmp_path)[-1]


def load(checkpoint, run):
    return load_checkpoint(checkpoint, run.unwrapped, run.optimizer, run.accelerator)


def tensors(run):
    weights = dict(run.unwrapped.named_parameters())
    return [weights, {name: run.optimizer.state[weight] for name, weight in weights.items()}]


def deal_out(path, number):
    """Write a file of a checkpoint anew, as so many processes that shard would have written it."""
    kind, whole = path.name.partition("-")[0], load_file(path)
    for process in range(number):
        rows, places = {}, {}
        for name, tensor in whole.items():
            is_sharded = not name.endswith("/step")
            shares = tensor.chunk(number) if is_sharded else [tensor]  # may be less than asked for
            if is_sharded or process == 0:
                share = shares[process] if process < len(shares) else tensor[:0]
                rows[name] = share.contiguous()
                places[name] = str(sum(map(len, shares[:process])))
        save_file(rows, path.with_name(f"{kind}-{process}.safetensors"), places)


@pytest.mark.parametrize("number", [1, 2, 5, 11])
def test_what_several_processes_wrote_is_put_together(saved, number):
    """Of 12 rows five processes have three, three, three, three and none at all."""
    run, checkpoint = saved
    for kind in ("model", "optimizer"):
        deal_out(checkpoint / f"{kind}-0.safetensors", number)
    again = make_run()
    load(checkpoint, again)
    torch.testing.assert_close(tensors(again), tensors(run), rtol=0, atol=0)


def test_random_state_is_restored_on_as_many_processes_only(saved, caplog):
    _, checkpoint = saved
    drawn = torch.rand(3)
    load(checkpoint, make_run())
    torch.testing.assert_close(torch.rand(3), drawn, rtol=0, atol=0)
    (checkpoint / "random-1.safetensors").write_bytes(
        (checkpoint / "random-0.safetensors").read_bytes()
    )
    with caplog.at_level("INFO"):
        load(checkpoint, make_run())
    assert not torch.equal(torch.rand(3), drawn)
    assert "step-00000000 was written by 2 processes and 1 go on with it" in caplog.text


def test_a_table_that_was_stepped_by_row_is_not_stepped_otherwise(saved, tmp_path):
    _, checkpoint = saved
    message = r"holds 1 rows of model.embed_tokens.weight/step and 17 are needed; a table with row-"
    with pytest.raises(ValueError, match=message):
        load(checkpoint, make_run(takes_rows=True))


def test_rows_that_are_missing_are_told(saved):
    _, checkpoint = saved
    deal_out(checkpoint / "model-0.safetensors", 2)
    (checkpoint / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match="holds 9 rows of model.embed_tokens.weight and 17 are"):
        load(checkpoint, make_run())


def test_all_that_is_not_a_tensor_is_json(saved):
    _, checkpoint = saved
    state = json.loads((checkpoint / "state.json").read_text())
    assert (state["state"]["step"], state["scaler"]) == (0, None)
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors"}
