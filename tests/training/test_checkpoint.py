import json
import random
import shutil

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.data.negatives import NegativeSampler
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.checkpoint import (
    find_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from bert4rec_hf.training.checksums import find_damage
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
    assert "step-00000000 was written by 2 processes and is resumed by 1" in caplog.text


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


def save(run, folder, step, keep=9):
    run.state.step = step
    save_checkpoint(folder, run.unwrapped, run.optimizer, run.state, run.accelerator, keep)
    return folder / f"step-{step:08d}"


@pytest.fixture
def saved_twice(tmp_path):
    """A run's folder of checkpoints after its steps 4 and 8."""
    run = make_run()
    for batch in make_batches(2):
        run.learn(batch)
    return [save(run, tmp_path, step) for step in (4, 8)]


FILES = [
    "checksums.json",
    "model-0.safetensors",
    "optimizer-0.safetensors",
    "random-0.safetensors",
    "state.json",
]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(saved_twice, name):
    """Of each file the first, the last, and some bytes in between."""
    path = saved_twice[-1] / name
    whole = path.read_bytes()
    assert find_damage(saved_twice[-1]) == ""
    places = {0, len(whole) - 2, *random.Random(0).sample(range(len(whole)), 20)}
    for place in sorted(places):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 7]) + whole[place + 1 :]
        )
        assert find_damage(saved_twice[-1]), (name, place)
    path.write_bytes(whole)
    assert find_damage(saved_twice[-1]) == ""


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut_or_lost_is_named(saved_twice, name):
    path = saved_twice[-1] / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    expected = f"{name} has {size - 5:,} bytes instead of {size:,}"
    if name == "checksums.json":
        expected = "checksums.json is not what was written"
    assert find_damage(saved_twice[-1]) == expected
    path.unlink()
    assert find_damage(saved_twice[-1]) == f"{name} is missing"


def test_the_newest_whole_checkpoint_is_taken_and_damaged_ones_are_put_aside(saved_twice, caplog):
    older, newer = saved_twice
    folder = older.parent
    shutil.copytree(older, folder / "step-99999999")  # stray
    (newer / "random-0.safetensors").unlink()
    (folder / "step-notes").mkdir()
    assert newest_checkpoint(folder, Accelerator(cpu=True)) == older
    assert "step-00000008 is damaged: random-0.safetensors is missing" in caplog.text
    assert "step-99999999 is damaged: it is a copy of step-00000004" in caplog.text
    names = ["damaged-step-00000008", "damaged-step-99999999", "step-00000004", "step-notes"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in find_checkpoints(folder)] == ["step-00000004"]


def test_checkpoints_of_which_none_is_whole_are_refused_and_left(saved_twice):
    for checkpoint in saved_twice:
        (checkpoint / "checksums.json").unlink()
    message = (
        "no complete checkpoint to resume from .step-00000008: checksums.json is missing; "
        "step-00000004: checksums.json is missing.; put a copy of one there"
    )
    with pytest.raises(ValueError, match=message):
        newest_checkpoint(saved_twice[0].parent, Accelerator(cpu=True))
    assert find_checkpoints(saved_twice[0].parent) == saved_twice


def test_where_nothing_was_saved_there_is_no_newest(tmp_path):
    assert newest_checkpoint(tmp_path / "none", Accelerator(cpu=True)) is None


def test_pruning_leaves_what_is_beyond_the_step_alone(tmp_path):
    """A stray folder with a large number must not count as the newest."""
    run = make_run()
    for batch in make_batches(1):
        run.learn(batch)
    (tmp_path / "step-99999999").mkdir(parents=True)
    for step in (3, 6, 9):
        save(run, tmp_path, step, keep=2)
    names = ["step-00000006", "step-00000009", "step-99999999"]
    assert [path.name for path in find_checkpoints(tmp_path)] == names


@pytest.mark.parametrize("where", ["weight", "moment"])
def test_what_is_not_finite_is_not_saved_in_place_of_what_is(saved_twice, tmp_path, where):
    run = make_run()
    for batch in make_batches(1):
        run.learn(batch)
    weight = run.unwrapped.model.embed_tokens.weight
    with torch.no_grad():
        (weight if where == "weight" else run.optimizer.state[weight]["exp_avg"])[5, 2] = -torch.inf
    name = "model.embed_tokens.weight" + ("" if where == "weight" else "/exp_avg")
    with pytest.raises(ValueError, match=f"{name} is not finite after step 12"):
        save(run, tmp_path, 12, keep=1)
    assert find_checkpoints(tmp_path) == saved_twice
    assert not any(map(find_damage, saved_twice))


def test_a_checkpoint_that_cannot_be_written_leaves_the_others_and_no_rest(saved_twice, tmp_path):
    run = make_run()
    for batch in make_batches(1):
        run.learn(batch)
    (tmp_path / ".unfinished-step-00000012").write_text("a file where a folder is to be")
    with pytest.raises(OSError, match="unfinished-step-00000012: File exists"):
        save(run, tmp_path, 12, keep=1)
    assert find_checkpoints(tmp_path) == saved_twice
