"""FSDP2 over gloo. accelerate shards over GPUs only, so the worker here tells it that it does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForMaskedLM

from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.launch import check_sharding
from bert4rec_hf.training.sharding import find_units, outline

ROOT = Path(__file__).parents[2]
BATCHES = 6
"""Batches of a step, which 1, 2 and 3 processes can share."""

SETTINGS = {
    "model.hidden_dropout": 0,
    "model.attention_dropout": 0,
    "training.batch_size": 8,
    "training.max_steps": 6,
    "training.evaluation_steps": 3,
    "training.checkpoint_steps": 3,
    "training.logging_steps": 1,
    "training.max_grad_norm": 0.3,
}

LARGE = {
    "model.num_hidden_layers": 2,
    "data.num_workers": 0,
    "training.max_steps": 2,
    "training.batch_size": 2,
    "evaluation.num_bootstrap_samples": 50,
}

KINDS = {
    "tied": ("base", {}),
    "untied": ("base", {"model.tie_word_embeddings": "false"}),
    "sampled": ("base", {"model.objective": "sampled_softmax", "data.num_negatives": 50}),
    "checkpointed": ("base", {"training.gradient_checkpointing": "true"}),
    "half": ("base", {"training.gradient_checkpointing": "true"}),
    "430m": ("430m", LARGE),
    "full": ("full", {}),
    "lora": ("lora", {}),
    "lora and items": ("lora", {"adapter.trainable_token_indices": "[5, 9, 40]"}),
    "ilora": ("ilora", {}),
    "ia3": ("ia3", {}),
}
"""Experiments, each with settings of its own; `half` in bf16."""


PRETEND = """
import gc, json, logging, os, sys
from pathlib import Path
import numpy as np, torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, set_seed
from torch.distributed.tensor import DTensor
from bert4rec_hf.experiment import build, run as running
from bert4rec_hf.experiment.load import load_experiment

check_launch = build.check_launch

def pretend(accelerator):
    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    check_launch(accelerator)
"""

WORKER = """
class Watched(running.TrainingRun):
    def train(self, *arguments):
        state = super().train(*arguments)
        weights = list(self.unwrapped.parameters())
        moments = [self.optimizer.state[w]["exp_avg"] for w in weights if w.requires_grad]
        counts = {
            "units": sum(hasattr(each, "unshard") for each in self.unwrapped.modules()),
            "is_sharded": all(isinstance(each, DTensor) for each in weights + moments),
            "weights": sum(weight.to_local().numel() for weight in weights),
            "moments": sum(moment.to_local().numel() for moment in moments),
        }
        path = self.folder.parent / f"shares-{self.accelerator.process_index}.json"
        path.write_text(json.dumps(counts))
        return state

logging.basicConfig(level=logging.INFO)
build.check_launch, running.TrainingRun = pretend, Watched
PartialState.destroy_process_group = lambda self, group: None  # one run comes after the other
for run in json.loads(Path(sys.argv[1]).read_text()):
    os.environ["ACCELERATE_MIXED_PRECISION"] = run["precision"]
    settings = load_experiment(Path(run["config"]), run["arguments"])
    accelerator = build.build_accelerator(settings, Path(run["output"]))
    set_seed(settings.training.seed, device_specific=True)
    running.run_experiment(
        settings, Path(run["output"]), accelerator, is_resumed=run["is_resumed"]
    )
    AcceleratorState._reset_state()
"""

MEASURE = """
from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.loop import TrainingRun
from bert4rec_hf.training.memory import estimate_memory

def make_model(num_items, hidden_size):
    return BERT4RecForMaskedItemModeling(BERT4RecConfig(
        vocab_size=num_items + 2, hidden_size=hidden_size, intermediate_size=4 * hidden_size,
        attention_dropout=0.0))

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

torch.set_num_threads(1)
accelerator, collator = Accelerator(cpu=True), MaskedItemCollator(max_history_length=50)
pretend(accelerator)
rng = np.random.default_rng(0)
batches = [collator([{"items": rng.integers(2, 9, length)} for length in rng.integers(5, 40, 37)])
           for _ in range(3)]

def train(model):
    run = TrainingRun(model, TrainingConfig(learning_rate=1e-3), accelerator, Path())
    del model
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # what is needed to begin is not looked at
    for batch in batches:
        run.learn(batch)
    return run

train(make_model(7, 16))
gc.collect()
with torch.device("meta"):
    model = make_model(60_011, 128)
estimate = estimate_memory(model, batches[0], accelerator, 2**26)
before = status("VmRSS")
run = train(make_model(60_011, 128))
Path(f"ratio-{accelerator.process_index}").write_text(
    str(estimate.total / (status("VmHWM") - before)))
"""


def describe(root, kind, output, processes, is_resumed=False):
    """A run as the worker takes it."""
    name, settings = KINDS[kind]
    settings = SETTINGS | settings
    settings["training.gradient_accumulation_steps"] = BATCHES // processes
    config = root / f"{name}.yaml"
    if name == "430m":
        config = ROOT / "configs" / "electronics" / "bert4rec_430m.yaml"
        settings["data.dataset"] = root / "past"
    return {
        "config": str(config),
        "output": str(output / kind),
        "arguments": [f"--{name}={value}" for name, value in settings.items()],
        "precision": "bf16" if kind == "half" else "no",
        "is_resumed": is_resumed,
    }


def shard(folder, runs, processes, worker=WORKER):
    """Run one after the other on processes that shard, launched as `accelerate launch` does it."""
    (folder / "worker.py").write_text(PRETEND + worker)
    (folder / "runs.json").write_text(json.dumps(runs))
    flags = {
        "VERSION": "2",
        "AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "RESHARD_AFTER_FORWARD": "true",
        "CPU_RAM_EFFICIENT_LOADING": "true",
    }
    environment = {f"FSDP_{name}": value for name, value in flags.items()}
    environment |= {name: "true" for name in ("ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["MALLOC_MMAP_THRESHOLD_"] = "100000"  # so that what is freed is given back
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), "worker.py", "runs.json"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stderr


def copy_halfway(run, folder):
    """A run's folder as it was after its first checkpoint."""
    shutil.copytree(run, folder / run.name)
    (newest,) = (folder / run.name / "checkpoints").glob("step-*6")
    shutil.rmtree(newest)
    (folder / run.name / "results.json").unlink()
    shutil.rmtree(folder / run.name / "logs")


@pytest.fixture(scope="module")
def whole(root, run, tmp_path_factory):
    """The folder of runs on one process that shards nothing."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in KINDS:
        each = describe(root, kind, folder, processes=1)
        with patch_environment(accelerate_mixed_precision=each["precision"]):
            AcceleratorState._reset_state(reset_partial_state=True)
            run(Path(each["config"]), Path(each["output"]), *each["arguments"])
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


@pytest.fixture(scope="module")
def sharded(root, whole, tmp_path_factory):
    """The folder of runs on two processes that shard; the last goes on with one of `whole`."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "resumed").mkdir()
    copy_halfway(whole / "tied", folder / "resumed")
    runs = [describe(root, kind, folder, processes=2) for kind in KINDS]
    runs.append(describe(root, "tied", folder / "resumed", processes=2, is_resumed=True))
    (folder / "log.txt").write_text(shard(folder, runs, processes=2))
    return folder


def losses(run):
    (path,) = (run / "logs").glob("*/events.out.tfevents.*")
    events = EventAccumulator(str(path)).Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def assert_same_results(ours, theirs):
    ours, theirs = (json.loads((run / "results.json").read_text()) for run in (ours, theirs))
    assert ours["parameters"] == theirs["parameters"]
    validations = [each["training"]["validations"] for each in (ours, theirs)]
    for our, their in zip(*validations, strict=True):
        assert our == pytest.approx(their, abs=1e-6)
    for split in ("validation", "test"):
        assert ours[split]["metrics"] == pytest.approx(theirs[split]["metrics"], abs=1e-6)


def load_weights(run):
    """Those of the last checkpoint, the rows of all processes put together."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    shares = [load_file(path) for path in sorted(newest.glob("model-*.safetensors"))]
    return {name: torch.cat([rows[name] for rows in shares]) for name in shares[0]}


def assert_same_weights(ours, theirs, atol=1e-4):
    torch.testing.assert_close(load_weights(ours), load_weights(theirs), rtol=1e-4, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_processes_that_shard_learn_and_measure_what_one_does(kind, whole, sharded):
    curve = losses(whole / kind)
    assert list(curve) == list(range(1, 1 + len(curve)))
    assert losses(sharded / kind) == pytest.approx(curve, abs=1e-5)
    assert_same_results(sharded / kind, whole / kind)
    # The gradient of the keys' bias, which changes no attention, is rounding; and a step of AdamW
    # has the same length whatever that of the gradient is.
    assert_same_weights(sharded / kind, whole / kind, atol=1e-3 if kind == "half" else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_process_has_about_half_of_weights_and_moments(kind, sharded):
    parameters = json.loads((sharded / kind / "results.json").read_text())["parameters"]
    shares = [json.loads((sharded / kind / f"shares-{n}.json").read_text()) for n in (0, 1)]
    for name, count in (("weights", "total"), ("moments", "trainable")):
        assert sum(share[name] for share in shares) == parameters[count]
        # Of a single row one process has all.
        assert max(share[name] for share in shares) < 0.75 * parameters[count]
    for share in shares:
        assert share["is_sharded"]
        assert share["units"] == 4  # two layers, the embeddings, and the model


@pytest.mark.slow
def test_a_sharded_run_leaves_a_model_folder_that_transformers_loads(whole, sharded):
    ids = torch.tensor([[5, 3, 7, 1]])
    ours, theirs = (
        AutoModelForMaskedLM.from_pretrained(folder / "tied" / "model")(input_ids=ids).logits
        for folder in (sharded, whole)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_each_process_writes_its_shares_and_only_the_main_one_all_else(sharded):
    (checkpoint,) = (sharded / "tied" / "checkpoints").glob("step-*6")
    names = {f"{kind}-{n}.safetensors" for kind in ("model", "optimizer", "random") for n in (0, 1)}
    assert {path.name for path in checkpoint.iterdir()} == names | {"state.json"}
    model = [load_file(checkpoint / f"model-{n}.safetensors") for n in (0, 1)]
    table = "model.embed_tokens.weight"
    assert [len(rows[table]) for rows in model] == [31, 31]
    moments = [load_file(checkpoint / f"optimizer-{n}.safetensors") for n in (0, 1)]
    assert [f"{table}/step" in each for each in moments] == [True, False]
    assert [len(each[f"{table}/exp_avg"]) for each in moments] == [31, 31]
    assert "training.row_sparse is left out" in (sharded / "log.txt").read_text()
    assert len(list((sharded / "tied" / "logs").glob("*/events.out.tfevents.*"))) == 1


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_began(whole, sharded):
    assert_same_results(sharded / "resumed" / "tied", whole / "tied")
    assert_same_weights(sharded / "resumed" / "tied", whole / "tied")
    log = (sharded / "log.txt").read_text()
    assert "was written by 1 processes and is resumed by 2" in log


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_that_shard_began(root, run, whole, sharded, tmp_path):
    copy_halfway(sharded / "tied", tmp_path)
    each = describe(root, "tied", tmp_path, processes=1)
    run(Path(each["config"]), Path(each["output"]), *each["arguments"], is_resumed=True)
    assert_same_results(tmp_path / "tied", whole / "tied")
    assert_same_weights(tmp_path / "tied", whole / "tied")


@pytest.mark.slow
def test_three_processes_go_on_with_what_two_began(root, whole, sharded, tmp_path):
    kinds = ("tied", "sampled", "checkpointed")
    for kind in kinds:
        copy_halfway(sharded / kind, tmp_path)
    runs = [describe(root, kind, tmp_path, processes=3, is_resumed=True) for kind in kinds]
    # Of the weights of (IA)3, which are single rows, two processes out of three have nothing.
    log = shard(tmp_path, [*runs, describe(root, "ia3", tmp_path, processes=3)], processes=3)
    assert "was written by 2 processes and is resumed by 3" in log
    for kind in (*kinds, "ia3"):
        assert_same_results(tmp_path / kind, whole / kind)
        assert_same_weights(tmp_path / kind, whole / kind)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_the_estimate_is_near_what_some_sharded_steps_take(tmp_path):
    """Most is the item table: a half with its moments, one gathered, and its gradient."""
    shard(tmp_path, [], processes=2, worker=MEASURE)
    ratios = [float((tmp_path / f"ratio-{process}").read_text()) for process in (0, 1)]
    assert all(0.7 < ratio < 1.4 for ratio in ratios), ratios


def launched(**settings):
    """What is asked of an accelerator that shards."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **settings)
    return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))


def make_model(**settings):
    shape = {"vocab_size": 17, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3}
    return BERT4RecForMaskedItemModeling(BERT4RecConfig(**shape | settings))


def test_units_are_the_parts_that_the_model_does_not_want_split():
    units = find_units(make_model(), launched(auto_wrap_policy="transformer_based_wrap"))
    names = [type(unit).__name__ for unit in units]
    assert names == ["BERT4RecEmbeddings", *["BERT4RecLayer"] * 3]
    assert find_units(make_model(), launched(auto_wrap_policy="no_wrap")) == []


def test_a_unit_that_holds_the_item_table_is_refused():
    policy = {"auto_wrap_policy": "transformer_based_wrap"}
    accelerator = launched(transformer_cls_names_to_wrap=["BERT4RecModel"], **policy)
    with pytest.raises(ValueError, match="makes a unit of BERT4RecModel, which holds the item tab"):
        find_units(make_model(), accelerator)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_checkpointing": True}, "fsdp_activation_checkpointing is true, .* set train"),
        ({"cpu_offload": True}, "fsdp_offload_params is true, and optimizer and checkpoints"),
    ],
)
def test_kinds_of_sharding_that_training_does_not_know_are_refused(settings, message):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **settings)
    with pytest.raises(ValueError, match=f"{message}.*take configs/accelerate/fsdp.yaml"):
        check_sharding(plugin)
    check_sharding(FullyShardedDataParallelPlugin(fsdp_version=2))


def test_an_outline_has_no_weights_and_keeps_what_is_tied():
    bare = outline(make_model())
    assert {weight.device.type for weight in bare.parameters()} == {"meta"}
    assert bare.lm_head.weight is bare.model.embed_tokens.weight
