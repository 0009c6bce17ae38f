import subprocess
import sys
import weakref
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from accelerate.utils import DistributedType, DynamoBackend, FullyShardedDataParallelPlugin
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bert4rec_hf.data.negatives import NegativeSampler
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling import (
    SAMPLED_OBJECTIVES,
    BERT4RecConfig,
    BERT4RecForMaskedItemModeling,
)
from bert4rec_hf.training import memory
from bert4rec_hf.training.memory import (
    MemoryEstimate,
    available_memory,
    cgroup_room,
    check_memory,
    estimate_memory,
    peak_memory,
)

VOCAB, HIDDEN, HEADS, INTERMEDIATE, LAYERS = 211, 24, 3, 52, 5
BF16 = {"mixed_precision": "bf16", "autocast": partial(torch.autocast, "cpu", torch.bfloat16)}
ESTIMATE = MemoryEstimate(1_000_000_000, 2_000_000_000, 3_000_000_000, 500_000_000, 250_000_000)


def make_model(**settings):
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "norm_first": True,
        "output_transform": False,
        "output_bias": False,
        "attention_dropout": 0.0,
    }
    return BERT4RecForMaskedItemModeling(BERT4RecConfig(**shape | settings))


def make_batch(num_negatives=0):
    negatives = NegativeSampler(np.ones(VOCAB), num_negatives, "uniform") if num_negatives else None
    collator = MaskedItemCollator(max_history_length=50, negatives=negatives)
    lengths = np.random.default_rng(0).integers(3, 40, 67)
    return collator([{"items": np.arange(2, 2 + n), "view": n} for n in lengths.tolist()])


def launched(**settings):
    """What the estimate asks of an accelerator."""
    defaults = {
        "device": torch.device("cpu"),
        "mixed_precision": "no",
        "autocast": nullcontext,
        "num_processes": 1,
        "gradient_accumulation_steps": 1,
        "distributed_type": DistributedType.NO,
        "state": SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.NO)),
    }
    return SimpleNamespace(**defaults | settings)


def estimate(model=None, batch=None, max_scores=2**26, **settings):
    return estimate_memory(
        model or make_model(), batch or make_batch(), launched(**settings), max_scores
    )


def weight_bytes(model):
    return 4 * sum(weight.numel() for weight in model.parameters())


def test_weights_gradients_and_two_moments_take_four_bytes_a_number_and_tied_tables_count_once():
    found, expected = estimate(), weight_bytes(make_model())
    assert (found.parameters, found.gradients) == (expected, expected)
    assert found.optimizer_state == 2 * expected
    untied = estimate(make_model(tie_word_embeddings=False))
    assert untied.parameters == expected + 4 * VOCAB * HIDDEN


def test_activations_are_what_each_layer_saves_by_hand():
    batch = make_batch()
    items, masked = batch["input_ids"].numel(), len(batch["masked_positions"])
    # A norm (in, out and two statistics), query, key, value, output and log-sum-exp of attention.
    attention = 2 * HIDDEN + 2 + 4 * HIDDEN + HEADS
    # Two dropout masks, a norm, and both sides of the activation.
    rest = 2 * HIDDEN + 2 * HIDDEN + 2 + 2 * INTERMEDIATE
    # From its attention on, the last layer has masked items only; it sets them apart for that.
    last = rest + HIDDEN + 2 * HIDDEN + 2
    embedding = HIDDEN  # a dropout mask
    by_hand = items * (embedding + LAYERS * attention + (LAYERS - 1) * rest) + masked * last
    assert estimate(batch=batch).activations == pytest.approx(2 * 4 * by_hand, rel=0.02)


def test_on_cpu_small_blocks_are_resident_twice(monkeypatch):
    batch = make_batch()
    twice = estimate(batch=batch).activations
    monkeypatch.setattr(memory, "HEAP_BYTES", 0)
    assert 2 * estimate(batch=batch).activations == twice


def test_the_full_softmax_holds_no_more_scores_than_it_may():
    batch = make_batch()
    masked = len(batch["masked_positions"])
    assert estimate(batch=batch).scores == 4 * masked * VOCAB
    assert estimate(batch=batch, max_scores=7 * VOCAB + 5).scores == 4 * 7 * VOCAB
    assert estimate(batch=batch, max_scores=5).scores == 4 * VOCAB


def test_row_gradients_count_by_the_rows_of_a_step():
    batch, model = make_batch(num_negatives=31), make_model(objective="sampled_softmax")
    dense = estimate(model, batch).gradients
    model.use_row_gradients()
    rows = batch["input_ids"].numel() + len(batch["masked_positions"]) + 31
    by_row = dense - 4 * VOCAB * HIDDEN + 4 * rows * HIDDEN
    assert estimate(model, batch).gradients == by_row
    compiled = SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.INDUCTOR))
    assert estimate(model, batch, state=compiled).gradients == dense


class LiveScores(TorchDispatchMode):
    """Counts the bytes of all tensors of one shape that exist at the same time."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.known, self.now, self.peak = shape, set(), 0, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        outputs = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and tensor.shape == self.shape:
                self.count(tensor.untyped_storage())
        return outputs

    def count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize("objective", SAMPLED_OBJECTIVES)
def test_scores_of_negatives_are_those_that_exist_at_once_in_a_step(objective):
    model, batch = make_model(objective=objective), make_batch(num_negatives=31)
    with LiveScores((len(batch["masked_positions"]), 31)) as live:
        model.train()(**batch).loss.backward()
    found = estimate(model, batch)
    assert found.scores == live.peak > 0
    assert found.activations == pytest.approx(estimate().activations, rel=0.05)


def test_what_is_frozen_has_neither_gradient_nor_moments():
    model = make_model().requires_grad_(False)
    model.model.norm.requires_grad_(True)
    found = estimate(model)
    assert (found.gradients, found.optimizer_state) == (4 * 2 * HIDDEN, 8 * 2 * HIDDEN)


def test_processes_sum_copies_of_gradients_and_accumulation_adds_the_largest_once_more():
    expected = weight_bytes(make_model())
    assert estimate(num_processes=2).gradients == 2 * expected
    accumulated = estimate(gradient_accumulation_steps=3).gradients
    assert accumulated == expected + 4 * VOCAB * HIDDEN


def test_an_item_table_that_is_dealt_out_takes_its_share_and_the_rows_of_a_step_twice_more():
    batch, model = make_batch(num_negatives=31), make_model(objective="gbce", output_bias=True)
    model.use_row_gradients()
    several = launched(num_processes=3)
    whole = estimate_memory(model, batch, several, 2**26)
    found = estimate_memory(model, batch, several, 2**26, shards_items=True)
    items = 4 * VOCAB * (HIDDEN + 1)
    fetched = 4 * (batch["input_ids"].numel() + len(batch["masked_positions"]) + 31) * (HIDDEN + 1)
    assert found.parameters == whole.parameters - (items - items // 3) + fetched
    assert found.gradients == whole.gradients + fetched
    assert found.optimizer_state == whole.optimizer_state - 2 * (items - items // 3)
    assert (found.activations, found.scores) == (whole.activations, whole.scores)


@pytest.mark.parametrize(("processes", "total"), [(1, 52.0e9), (8, 9.0e9)])
def test_32_million_items_fit_a_device_of_80_gb(processes, total):
    """The lines in configs/README.md: 12 bytes a number, and 1024 histories of 50 items."""
    num_items, hidden = 32_000_000, 128
    with torch.device("meta"):
        model = make_model(
            vocab_size=num_items + 2,
            hidden_size=hidden,
            num_attention_heads=2,
            intermediate_size=512,
            num_hidden_layers=2,
            objective="sampled_softmax",
            attention_dropout=0.1,
        )
    model.use_row_gradients()
    collator = MaskedItemCollator(max_history_length=50)
    batch = collator([{"items": np.arange(2, 52), "view": view} for view in range(1024)])
    batch["negatives"], batch["negative_log_counts"] = torch.ones(8192).long(), torch.zeros(8192)
    several = launched(num_processes=processes)
    found = estimate_memory(model, batch, several, 2**27, shards_items=processes > 1)
    table = 12 * num_items * hidden / processes
    assert found.parameters + found.optimizer_state == pytest.approx(table, rel=0.02)
    assert found.total == pytest.approx(total, rel=0.01)


def estimate_sharded(processes=4, policy="transformer_based_wrap", reshard=True, **settings):
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy=policy, reshard_after_forward=reshard
    )
    state = SimpleNamespace(
        dynamo_plugin=SimpleNamespace(backend=DynamoBackend.NO), fsdp_plugin=plugin
    )
    kind = DistributedType.FSDP
    return estimate(num_processes=processes, distributed_type=kind, state=state, **settings)


ROOT = 4 * (VOCAB * HIDDEN + 2 * HIDDEN)  # the item table and the last norm
LAYER = 4 * (4 * HIDDEN * (HIDDEN + 1) + INTERMEDIATE * (2 * HIDDEN + 1) + HIDDEN + 4 * HIDDEN)


def test_sharding_divides_what_it_shards_and_gathers_the_table_for_the_whole_step():
    whole, found = estimate(), estimate_sharded()
    assert found.parameters == whole.parameters // 4 + ROOT + 2 * LAYER
    assert found.optimizer_state == whole.optimizer_state // 4
    assert (found.activations, found.scores) == (whole.activations, whole.scores)


def test_sharded_gradients_are_whole_before_they_are_dealt_out():
    weights = weight_bytes(make_model())
    assert estimate_sharded().gradients == weights // 4 + ROOT + 2 * LAYER
    accumulated = estimate_sharded(gradient_accumulation_steps=3).gradients
    assert accumulated == weights // 4 + weights + LAYER


def test_without_units_a_sharded_model_is_gathered_whole():
    weights = weight_bytes(make_model())
    found = estimate_sharded(processes=3, policy="no_wrap")
    assert found.parameters == weights // 3 + weights
    assert found.gradients == weights // 3 + weights


def test_units_that_stay_gathered_are_all_there_at_once():
    weights = weight_bytes(make_model())
    assert estimate_sharded(reshard=False).parameters == weights // 4 + weights


def test_under_sharding_the_gradient_of_a_table_is_dense():
    model = make_model(objective="gbce")
    model.use_row_gradients()
    found = estimate_sharded(model=model, batch=make_batch(num_negatives=31))
    assert found.gradients == estimate_sharded().gradients


def test_half_precision_saves_activations_in_half():
    batch = make_batch()
    half, single = estimate(batch=batch, **BF16), estimate(batch=batch)
    assert 0.5 < half.activations / single.activations < 0.8
    assert half.parameters == single.parameters
    assert half.scores == 6 * len(batch["masked_positions"]) * VOCAB + 4 * VOCAB * HIDDEN


def test_a_model_without_weights_is_estimated_alike_and_nothing_is_drawn():
    batch, model = make_batch(), make_model()
    before = torch.get_rng_state()
    with torch.device("meta"):
        blueprint = make_model()
    assert estimate(blueprint, batch) == estimate(model, batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_that_run_again_keep_what_enters_them_and_one_all_it_makes():
    model, batch = make_model(), make_batch()
    kept = estimate(model, batch).activations
    model.gradient_checkpointing_enable()
    inputs = LAYERS * batch["input_ids"].numel() * HIDDEN * 4
    assert estimate(model, batch).activations == inputs + kept // LAYERS < kept / 2
    assert model.model.layers[0].gradient_checkpointing


def test_too_much_is_refused_with_advice():
    check_memory(ESTIMATE, 6_750_000_000)
    expected = (
        "^a training step needs 6.75 GB \\(parameters 1.00, gradients 2.00, optimizer state 3.00, "
        "activations 0.50, scores 0.25\\) and 6.74 GB are available; the largest part is "
        "optimizer state: to shrink it, lower model.hidden_size, or set "
        "model.tie_word_embeddings to true, or train on several processes and set "
        "training.item_table to sharded; if the estimate is wrong, train with "
        "--ignore-memory-estimate$"
    )
    with pytest.raises(ValueError, match=expected):
        check_memory(ESTIMATE, 6_740_000_000)


def test_each_part_has_advice_of_its_own():
    assert memory.ADVICE.keys() == vars(ESTIMATE).keys()
    for part in vars(ESTIMATE):
        largest = MemoryEstimate(**dict.fromkeys(vars(ESTIMATE), 1) | {part: 2})
        with pytest.raises(ValueError, match=memory.ADVICE[part]):
            check_memory(largest, 5)


def write_group(folder, limit, usage, stat):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit[0]).write_text(f"{limit[1]}\n")
    (folder / usage[0]).write_text(f"{usage[1]}\n")
    (folder / "memory.stat").write_text(stat)


def test_limits_of_all_groups_above_count_and_cached_files_do_not(tmp_path):
    for path, limit, usage in (("a", "max", 7), ("a/b", 1_000, 600), ("a/b/c", 800, 450)):
        stat = "anon 3\nactive_file 20\ninactive_file 100\n"
        write_group(tmp_path / path, ("memory.max", limit), ("memory.current", usage), stat)
    (tmp_path / "membership").write_text("1:cpu,cpuacct:/elsewhere\n0::/a/b/c\n")
    assert list(cgroup_room(tmp_path / "membership", tmp_path)) == [520, 470]


def test_limits_of_version_1_are_found_where_the_path_is_that_of_outside(tmp_path):
    names = ("memory.limit_in_bytes", 900), ("memory.usage_in_bytes", 500)
    stat = "active_file 1\ninactive_file 2\ntotal_active_file 30\ntotal_inactive_file 40\n"
    write_group(tmp_path / "memory", *names, stat)
    (tmp_path / "membership").write_text("4:memory:/docker/0a1b\n")
    assert list(cgroup_room(tmp_path / "membership", tmp_path)) == [470]
    assert list(cgroup_room(tmp_path / "none", tmp_path)) == []


def test_processes_of_a_machine_share_what_the_tightest_limit_leaves(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1_200))
    monkeypatch.setattr(memory, "cgroup_room", lambda: iter([3_000, 900]))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert available_memory(launched(num_processes=6)) == 150
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert available_memory(launched(num_processes=6)) == 300


def test_the_peak_holds_what_is_resident_now():
    assert peak_memory(torch.device("cpu")) >= 0.9 * psutil.Process().memory_info().rss


MEASURE = """
import gc, sys
from pathlib import Path
import numpy as np, torch
from accelerate import Accelerator
from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.loop import TrainingRun
from bert4rec_hf.training.memory import estimate_memory

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

def train(num_items, hidden_size, batches):
    config = BERT4RecConfig(vocab_size=num_items + 2, hidden_size=hidden_size,
                            intermediate_size=4 * hidden_size, attention_dropout=0.0)
    run = TrainingRun(BERT4RecForMaskedItemModeling(config),
                      TrainingConfig(learning_rate=1e-3), accelerator, Path())
    for batch in batches:
        run.learn(batch)
    return run

torch.set_num_threads(1)
accelerator, collator = Accelerator(cpu=True), MaskedItemCollator(max_history_length=50)
rng = np.random.default_rng(0)
batches = [collator([{"items": rng.integers(2, 9, length)} for length in rng.integers(5, 40, 97)])
           for _ in range(4)]
train(7, 16, batches[:1])
gc.collect()
with torch.device("meta"):
    config = BERT4RecConfig(vocab_size=60_013, hidden_size=128, intermediate_size=512,
                            attention_dropout=0.0)
    model = BERT4RecForMaskedItemModeling(config)
estimate = estimate_memory(model, batches[0], accelerator, 2**26)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
run = train(60_011, 128, batches)
print(estimate.total / (status("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_the_estimate_is_near_what_some_steps_take():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    assert 0.7 < float(done.stdout) < 1.4
