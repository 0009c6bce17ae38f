"""Checkpointing, precision, compilers and processes change nothing."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling import OBJECTIVES


def checkpoint(model, use_reentrant):
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    return model.train()


@pytest.mark.parametrize("layout", ["padded", "packed", "filled"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_no_gradient(
    adapted, batches, use_reentrant, layout, loss_and_gradients
):
    expected = loss_and_gradients(adapted.train(), batches[layout])
    checkpoint(adapted, use_reentrant)
    torch.testing.assert_close(loss_and_gradients(adapted, batches[layout]), expected)


@pytest.mark.parametrize("use_reentrant", [True, False, None])
def test_two_passes_before_one_backward_pass_give_the_sum_of_their_gradients(
    adapted, packed, use_reentrant, loss_and_gradients
):
    other = packed | {"input_ids": (packed["input_ids"] + 5) % 37}
    alone = [loss_and_gradients(adapted, batch) for batch in (packed, other)]
    if use_reentrant is not None:
        checkpoint(adapted, use_reentrant)
    adapted.zero_grad()
    (adapted(**packed).loss + 3 * adapted(**other).loss).backward()
    for name, grad in alone[0].items():
        if name != "loss":
            expected = grad + 3 * alone[1][name]
            torch.testing.assert_close(adapted.get_parameter(name).grad, expected)


def test_checkpointing_may_come_first_and_end_again(base, adapt, packed, loss_and_gradients):
    base.gradient_checkpointing_enable()
    model = adapt(base)
    actual = loss_and_gradients(model.train(), packed)
    base.gradient_checkpointing_disable()
    torch.testing.assert_close(loss_and_gradients(model, packed), actual)
    base.gradient_checkpointing_enable()
    torch.testing.assert_close(loss_and_gradients(model, packed), actual)
    torch.testing.assert_close(loss_and_gradients(copy.deepcopy(model), packed), actual)
    restored = model.unload()
    functions = [layer._gradient_checkpointing_func for layer in restored.model.layers]
    assert all(function.func is torch.utils.checkpoint.checkpoint for function in functions)


@pytest.mark.parametrize("gate", ["instance", "constant", "uniform"])
def test_mixed_precision_stays_close(base, adapt, packed, gate, loss_and_gradients):
    model = adapt(base, gate=gate)
    expected = loss_and_gradients(model, packed)
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss_and_gradients(model, packed)
        weights = model.base_model.gate_weights(**packed)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(5))
    for name, each in expected.items():
        assert actual[name].dtype == torch.float32
        assert (actual[name] - each).norm() < 0.2 * each.norm()


def batch_of(count, seed):
    """A packed batch of some histories, of lengths and masks of its own."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 11, (count,), generator=generator).sort().values
    ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    ids = torch.randint(2, 37, (1, int(ends[-1])), generator=generator)
    is_masked = torch.rand(ids.shape, generator=generator) < 0.4
    is_masked[0, 0] = True
    return {
        "input_ids": ids.masked_fill(is_masked, 1),
        "labels": ids.masked_fill(~is_masked, -100),
        "cu_seq_lens_q": ends,
        "max_length_q": int(lengths.max()),
        "masked_positions": is_masked[0].nonzero()[:, 0],
    }


def prefix_batch_of(count, seed):
    """A packed batch of some histories, each read as several of its prefixes at once."""
    collator = MaskedItemCollator(max_history_length=11, prefix_view_ratio=0.9)
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, 11, count)
    return collator(
        [{"items": generator.integers(2, 37, length), "view": seed} for length in lengths]
    )


@pytest.mark.parametrize("tuner", ["lora", "ilora"])
@pytest.mark.parametrize(
    ("make_batch", "is_causal"), [(batch_of, False), (batch_of, True), (prefix_batch_of, False)]
)
def test_a_training_step_compiles_to_one_graph_whatever_the_lengths(
    make_base, adapt, tuner, make_batch, is_causal
):
    base = make_base(is_causal=is_causal)
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = adapt(base) if tuner == "ilora" else get_peft_model(base, LoraConfig())
    compiled = torch.compile(model.train(), backend=count, fullgraph=True, dynamic=True)
    for seed in range(7):
        compiled(**make_batch(7, seed)).loss.backward()
    assert len(graphs) == 1


def check_compiled(compiled, model, batch, loss_and_gradients):
    expected = loss_and_gradients(model, batch)
    model.zero_grad()
    loss = compiled(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.pop("loss"))
    for name, grad in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_compiled_step_is_the_eager_one(make_base, adapt, batches, objective, loss_and_gradients):
    torch._dynamo.reset()
    drawn = {"negatives": torch.tensor([3, 8, 31]), "negative_log_counts": torch.zeros(3)}
    model = adapt(make_base(objective=objective))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (batches["packed"], batches["filled"], batch_of(9, seed=1)):
        check_compiled(compiled, model, batch | drawn, loss_and_gradients)


@pytest.mark.slow
def test_a_compiled_step_is_the_eager_one_with_as_many_kept_as_there_are(
    adapted, packed, loss_and_gradients
):
    torch._dynamo.reset()
    compiled = torch.compile(adapted, backend="aot_eager", fullgraph=True, dynamic=True)
    labels = torch.arange(2, 15).unsqueeze(0)
    for kept in (torch.arange(12, -1, -1), torch.arange(12)):
        batch = packed | {"labels": labels, "masked_positions": kept}
        check_compiled(compiled, adapted, batch, loss_and_gradients)


@pytest.mark.slow
def test_a_compiled_step_is_the_eager_one_under_checkpointing(adapted, packed, loss_and_gradients):
    torch._dynamo.reset()
    checkpoint(adapted, use_reentrant=False)
    # A hook of transformers, which only reentrant checkpoints need, and no compiler takes.
    adapted.base_model.model.disable_input_require_grads()
    compiled = torch.compile(adapted, backend="aot_eager", fullgraph=True, dynamic=False)
    check_compiled(compiled, adapted, packed, loss_and_gradients)


ONE_OF_TWO = """
import sys, torch
import torch.distributed as dist
from peft import PeftModel
from torch.nn.parallel import DistributedDataParallel
from bert4rec_hf.modeling import BERT4RecForMaskedItemModeling
import bert4rec_hf.tuners

dist.init_process_group("gloo")
rank = dist.get_rank()
base = BERT4RecForMaskedItemModeling.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, sys.argv[2], is_trainable=True).eval()
batch = torch.load(f"{sys.argv[1]}/{rank}.pt")
parallel = DistributedDataParallel(model)
parallel(**batch).loss.backward()
grads = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
torch.save(grads, f"{sys.argv[2]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_have_the_mean_of_the_gradients(base, adapt, tmp_path, loss_and_gradients):
    base.save_pretrained(tmp_path / "base")
    model = adapt(base)
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "one_of_two.py").write_text(ONE_OF_TWO)
    sides = []
    for rank in range(2):
        batch = batch_of(5 + rank, seed=rank)
        torch.save(batch, tmp_path / "base" / f"{rank}.pt")
        sides.append(loss_and_gradients(model, batch))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--standalone", tmp_path / "one_of_two.py", tmp_path / "base"]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, tmp_path / "adapter"], check=True, env=environment, timeout=120)
    for rank in range(2):
        actual = torch.load(tmp_path / "adapter" / f"{rank}.pt")
        assert len(actual) == len(sides[0]) - 1
        for name, grad in actual.items():
            torch.testing.assert_close(grad, (sides[0][name] + sides[1][name]) / 2)
