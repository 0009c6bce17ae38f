"""An item table dealt out to processes, over gloo, beside the same training on one process."""

import inspect
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
from accelerate.utils import DistributedType, DynamoBackend
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForMaskedLM

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.item_shards import check_item_shards

ROOT = Path(__file__).parents[2]
BATCHES = 6
"""Batches of a step, which 1, 2 and 3 processes can share."""

TABLE = "model.embed_tokens.weight"

SETTINGS = {
    "training.item_table": "sharded",
    "model.hidden_dropout": 0,
    "model.attention_dropout": 0,
    "data.num_negatives": 50,
    "training.batch_size": 8,
    "training.max_steps": 6,
    "training.evaluation_steps": 3,
    "training.checkpoint_steps": 3,
    "training.logging_steps": 1,
    "training.max_grad_norm": 0.3,
}

KINDS = {
    "tied": {"model.objective": "sampled_softmax"},
    "untied": {"model.objective": "gbce", "model.tie_word_embeddings": "false"},
    "modern": {
        "model.objective": "sampled_softmax",
        "model.norm_first": "true",
        "model.output_transform": "false",
        "model.output_bias": "false",
        "data.prefix_view_ratio": 0.5,
        "data.pad_to_multiple_of": 8,
        "training.gradient_checkpointing": "true",
        "evaluation.chunk_size": 7,
    },
}
"""Settings of runs; in the last one, chunks of the catalog lie across the shards, and are scored
twice."""


def copy_halfway(run, folder):
    """A run's folder as it was after its first checkpoint."""
    folder.mkdir(exist_ok=True)
    shutil.copytree(run, folder / run.name)
    (newest,) = (folder / run.name / "checkpoints").glob("step-*6")
    shutil.rmtree(newest)
    (folder / run.name / "results.json").unlink()
    shutil.rmtree(folder / run.name / "logs")


WORKER = """
import json, logging, os, shutil, sys
from pathlib import Path
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import set_seed
import torch
from safetensors.torch import save_file
from bert4rec_hf.experiment import build, run as running
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.training.gradients import average_rows

COPY_HALFWAY
class Watched(running.TrainingRun):
    def train(self, *arguments):
        state = super().train(*arguments)
        counts = {
            "weights": [len(weight) for weight in self.items.weights],
            "moments": [len(self.optimizer.state[w]["exp_avg"]) for w in self.items.weights],
        }
        path = self.folder.parent / f"shares-{self.accelerator.process_index}.json"
        path.write_text(json.dumps(counts))
        return state

logging.basicConfig(level=logging.INFO)
running.TrainingRun = Watched
PartialState.destroy_process_group = lambda self, group: None  # one run comes after the other
for run in json.loads(Path(sys.argv[1]).read_text()):
    if run["goes_on_with"] and int(os.environ["RANK"]) == 0:
        copy_halfway(Path(run["goes_on_with"]), Path(run["output"]).parent)
    settings = load_experiment(Path(run["config"]), run["arguments"])
    accelerator = build.build_accelerator(settings, Path(run["output"]))
    set_seed(settings.training.seed, device_specific=True)
    running.run_experiment(
        settings, Path(run["output"]), accelerator, is_resumed=bool(run["goes_on_with"])
    )
    AcceleratorState._reset_state()

accelerator = build.Accelerator()
for num_rows in (9, 500):
    torch.manual_seed(accelerator.process_index)
    rows = torch.randint(num_rows, (1, 5 + accelerator.process_index))
    table = torch.nn.Parameter(torch.zeros(num_rows, 3))
    table.grad = torch.sparse_coo_tensor(rows, torch.randn(rows.shape[1], 3), table.shape)
    own = table.grad.to_dense()
    average_rows([table], accelerator)
    kind = "sparse" if table.grad.is_sparse else "dense"
    save_file({"own": own, kind: table.grad.to_dense()}, f"{num_rows}-{accelerator.process_index}")
""".replace("COPY_HALFWAY", inspect.getsource(copy_halfway))


def describe(root, kind, output, processes, goes_on_with=None):
    """A run as the worker takes it; it begins anew, or halfway through another."""
    settings = SETTINGS | KINDS[kind]
    settings["training.gradient_accumulation_steps"] = BATCHES // processes
    return {
        "config": str(root / "base.yaml"),
        "output": str(output / kind),
        "arguments": [f"--{name}={value}" for name, value in settings.items()],
        "goes_on_with": goes_on_with and str(goes_on_with),
    }


def launch_worker(folder, runs, processes):
    """Run one after the other on several processes."""
    (folder / "worker.py").write_text(WORKER)
    (folder / "runs.json").write_text(json.dumps(runs))
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), "worker.py", "runs.json"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stderr


@pytest.fixture(scope="module")
def whole(root, run, tmp_path_factory):
    """The folder of runs on one process, which has all rows."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in KINDS:
        each = describe(root, kind, folder, processes=1)
        AcceleratorState._reset_state(reset_partial_state=True)
        run(Path(each["config"]), Path(each["output"]), *each["arguments"])
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


@pytest.fixture(scope="module")
def sharded(root, whole, tmp_path_factory):
    """The folder of runs on two processes; the last go on with a run of one process and of two."""
    folder = tmp_path_factory.mktemp("sharded")
    runs = [describe(root, kind, folder, processes=2) for kind in KINDS]
    for origin, kind in ((whole, "tied"), (folder, "untied")):
        output = folder / "resumed"
        runs.append(describe(root, kind, output, processes=2, goes_on_with=origin / kind))
    (folder / "log.txt").write_text(launch_worker(folder, runs, processes=2))
    return folder


def losses(run):
    (path,) = (run / "logs").glob("*/events.out.tfevents.*")
    events = EventAccumulator(str(path)).Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def load_tensors(run):
    """Those of the last checkpoint, the rows of all processes put together."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    found = {}
    for kind in ("model", "optimizer"):
        for path in sorted(newest.glob(f"{kind}-*.safetensors")):
            for name, rows in load_file(path).items():
                found.setdefault(f"{kind} {name}", []).append(rows)
    return {name: torch.cat(rows) for name, rows in found.items()}


def assert_same_run(ours, theirs):
    torch.testing.assert_close(load_tensors(ours), load_tensors(theirs), rtol=1e-4, atol=1e-4)
    ours, theirs = (json.loads((run / "results.json").read_text()) for run in (ours, theirs))
    validations = [each["training"]["validations"] for each in (ours, theirs)]
    for our, their in zip(*validations, strict=True):
        assert our == pytest.approx(their, abs=1e-6)
    for split in ("validation", "test"):
        assert ours[split]["metrics"] == pytest.approx(theirs[split]["metrics"], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_with_half_of_the_rows_each_learn_what_one_does(kind, whole, sharded):
    curve = losses(whole / kind)
    assert list(curve) == [1, 2, 3, 4, 5, 6]
    assert losses(sharded / kind) == pytest.approx(curve, rel=1e-6)
    assert_same_run(sharded / kind, whole / kind)
    shares = [json.loads((sharded / kind / f"shares-{n}.json").read_text()) for n in (0, 1)]
    num_weights = {"tied": 2, "untied": 3, "modern": 1}[kind]  # tables and bias of 62 ids
    assert shares == [{"weights": [31] * num_weights, "moments": [31] * num_weights}] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_come_together_in_an_ordinary_model_folder(kind, whole, sharded):
    ids = torch.tensor([[5, 3, 7, 1]])
    ours, theirs = (
        AutoModelForMaskedLM.from_pretrained(folder / kind / "model")(input_ids=ids).logits
        for folder in (sharded, whole)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_each_process_writes_its_rows(sharded):
    (checkpoint,) = (sharded / "tied" / "checkpoints").glob("step-*6")
    model = [load_file(checkpoint / f"model-{n}.safetensors") for n in (0, 1)]
    assert [len(rows[TABLE]) for rows in model] == [31, 31]
    assert set(model[1]) == {TABLE, "lm_head.bias"}
    moments = [load_file(checkpoint / f"optimizer-{n}.safetensors") for n in (0, 1)]
    for name in ("step", "exp_avg", "exp_avg_sq"):
        assert [len(each[f"{TABLE}/{name}"]) for each in moments] == [31, 31]


def test_two_processes_go_on_with_what_one_began(whole, sharded):
    assert_same_run(sharded / "resumed" / "tied", whole / "tied")
    assert "was written by 1 processes and is resumed by 2" in (sharded / "log.txt").read_text()


def test_a_run_that_was_stopped_goes_on_bit_for_bit(sharded):
    ours, theirs = (load_tensors(sharded / name) for name in ("resumed/untied", "untied"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_one_process_goes_on_with_what_two_began(root, run, whole, sharded, tmp_path):
    copy_halfway(sharded / "tied", tmp_path)
    each = describe(root, "tied", tmp_path, processes=1)
    run(Path(each["config"]), Path(each["output"]), *each["arguments"], is_resumed=True)
    assert_same_run(tmp_path / "tied", whole / "tied")


@pytest.mark.parametrize(("num_rows", "kind"), [(9, "dense"), (500, "sparse")])
def test_rows_of_whole_tables_are_averaged_by_row_or_as_a_small_table(sharded, num_rows, kind):
    found = [load_file(sharded / f"{num_rows}-{process}") for process in (0, 1)]
    mean = (found[0]["own"] + found[1]["own"]) / 2
    for each in found:
        torch.testing.assert_close(each[kind], mean)


@pytest.mark.slow
def test_three_processes_go_on_with_what_two_began(root, whole, sharded, tmp_path):
    runs = [
        describe(root, kind, tmp_path, processes=3, goes_on_with=sharded / kind) for kind in KINDS
    ]
    log = launch_worker(tmp_path, runs, processes=3)
    assert "was written by 2 processes and is resumed by 3" in log
    for kind in KINDS:
        assert_same_run(tmp_path / kind, whole / kind)


def launched(processes=2, kind=DistributedType.MULTI_CPU, backend="NO", precision="no"):
    state = SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend[backend]))
    return SimpleNamespace(
        num_processes=processes, distributed_type=kind, state=state, mixed_precision=precision
    )


def make_model(**settings):
    shape = {"vocab_size": 17, "hidden_size": 12, "intermediate_size": 20}
    model = BERT4RecForMaskedItemModeling(BERT4RecConfig(**shape | settings))
    if model.config.objective != "full_softmax":
        model.use_row_gradients()
    return model


SHARDED = TrainingConfig(learning_rate=0.01, item_table="sharded")


@pytest.mark.parametrize(
    ("settings", "launch", "message"),
    [
        ({"objective": "full_softmax"}, {}, "no row-sparse gradients .* sampled_softmax or gbce"),
        ({"num_neighbors": 3}, {}, "neighbors .*set model.num_neighbors to 0"),
        ({}, {"kind": DistributedType.FSDP}, r"FSDP \(launch with --multi_gpu\)"),
        ({}, {"backend": "INDUCTOR"}, "torch.compile .*--dynamo_backend no"),
        ({}, {"precision": "fp16"}, "fp16 .*--mixed_precision bf16"),
    ],
)
def test_what_cannot_be_sharded_is_refused(settings, launch, message):
    model = make_model(**{"objective": "gbce"} | settings)
    with pytest.raises(ValueError, match=f"item_table is sharded, which does not go.*{message}"):
        check_item_shards(model, SHARDED, launched(**launch))


def test_one_process_keeps_the_table_and_so_do_all_by_default():
    model = make_model(objective="gbce")
    assert check_item_shards(model, SHARDED, launched())
    assert not check_item_shards(model, SHARDED, launched(processes=1))
    assert not check_item_shards(model, TrainingConfig(learning_rate=0.01), launched())
