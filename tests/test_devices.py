"""What launchers start: the files of configs/accelerate, accelerate's flags, and torchrun."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from bert4rec_hf.training.launch import check_sharding

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
NUMBERS = {"one_cpu": 1, "one_gpu": 1, "multi_gpu": 4, "fsdp": 3, "two_cpu": 2}
"""Processes that are started; a file for several GPUs leaves the number to the command line."""


def parse(path):
    """What accelerate makes of a file, and the environment that it gives to the processes."""
    number = NUMBERS[path.stem]
    is_open = "num_processes" not in yaml.safe_load(path.read_text())
    flags = ["--num_processes", str(number)] if is_open else []
    arguments = ["--config_file", str(path), *flags, "scripts/train.py"]
    parsed, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    if parsed.multi_gpu or parsed.use_fsdp:
        return parsed, prepare_multi_gpu_env(parsed)
    return parsed, prepare_simple_launcher_cmd_env(parsed)[1]


def test_the_list_is_whole():
    assert {path.stem for path in FILES} == NUMBERS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_starts_what_a_file_says(path):
    parsed, environment = parse(path)
    assert parsed.num_processes == NUMBERS[path.stem]
    assert (parsed.multi_gpu, parsed.use_fsdp) == {
        "one_cpu": (False, False),
        "one_gpu": (False, False),
        "multi_gpu": (True, False),
        "fsdp": (False, True),
        "two_cpu": (True, False),
    }[path.stem]
    is_cpu = path.stem in ("one_cpu", "two_cpu")
    assert parsed.use_cpu == is_cpu
    assert environment["ACCELERATE_MIXED_PRECISION"] == ("no" if is_cpu else "bf16")
    assert environment["ACCELERATE_DYNAMO_BACKEND"] == "NO"
    assert ("ACCELERATE_USE_FSDP" in environment) == (path.stem == "fsdp")
    command = f"accelerate launch --config_file {path.relative_to(ROOT)} "
    assert command in path.read_text()


def test_the_file_for_sharding_asks_for_the_second_version_and_a_unit_for_each_layer():
    _, environment = parse(ROOT / "configs" / "accelerate" / "fsdp.yaml")
    with patch_environment(**environment):
        plugin = FullyShardedDataParallelPlugin()
    check_sharding(plugin)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.transformer_cls_names_to_wrap is None  # so that the model is asked
    assert not plugin.cpu_ram_efficient_loading


@pytest.fixture
def start(root):
    """Run a launcher on the smallest experiment."""

    def run(command, *arguments, **environment):
        command = [sys.executable, "-m", *command, ROOT / "scripts" / "train.py"]
        return subprocess.run(
            [*map(str, command), str(root / "base.yaml"), *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.slow
def test_torchrun_starts_two_processes_that_learn_and_measure(start, root, tmp_path):
    """The processes part only after the last of them has measured; dropout is on."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = start(launcher, "--output", tmp_path / "out", ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["num_processes"] == 2
    assert results["training"]["histories"] == 8 * 2 * 32
    assert results["validation"]["metrics"]["ndcg@10"] == pytest.approx(
        results["training"]["best_metric"], abs=1e-6
    )
    assert (tmp_path / "out" / "model" / "README.md").exists()


@pytest.mark.slow
def test_a_file_starts_two_processes_on_cpu(start, tmp_path):
    config = ROOT / "configs" / "accelerate" / "two_cpu.yaml"
    launcher = ["accelerate.commands.launch", "--config_file", config]
    done = start(launcher, "--output", tmp_path / "out", ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["num_processes"], results["device"]["type"]) == (2, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--use_fsdp", "--num_processes", "2"],
            "fsdp_version is 1, which is accelerate's default, and must be 2",
        ),
        (
            ["--use_fsdp", "--fsdp_version", "2", "--num_processes", "2"],
            "FSDP was asked for, and accelerate runs MULTI_CPU on cpu, as it shards over GPUs only",
        ),
        (
            ["--config_file", "multi_cpu.yaml"],
            "--num_processes 2 was asked for, and accelerate started one, as it does with --cpu",
        ),
    ],
)
def test_what_accelerate_would_leave_out_is_refused(start, tmp_path, flags, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"distributed_type": "MULTI_CPU", "num_processes": 2, "use_cpu": True}
    (tmp_path / "multi_cpu.yaml").write_text(yaml.safe_dump(config))
    launcher = ["accelerate.commands.launch", "--quiet", *flags]
    done = start(launcher, "--output", tmp_path / "out", ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    assert message in done.stderr
    assert 'train.py", line' not in done.stderr  # no traceback but that of the launcher
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("file", ["multi_gpu", "fsdp"])
def test_all_gpus_learn_and_measure_what_one_does(start, tmp_path, file):
    number = torch.cuda.device_count()
    if file == "multi_gpu" and number == 1:
        pytest.skip("there is one GPU, which shares with itself but is not several")
    runs = {"one_gpu": (1, number), file: (number, 1)}
    for name, (processes, accumulation) in runs.items():
        config = ROOT / "configs" / "accelerate" / f"{name}.yaml"
        flags = ["--config_file", config, "--num_processes", processes, "--mixed_precision", "no"]
        settings = {
            "model.hidden_dropout": 0,
            "model.attention_dropout": 0,
            "training.batch_size": 8,
            "training.gradient_accumulation_steps": accumulation,
        }
        arguments = [f"--{key}={value}" for key, value in settings.items()]
        launcher = ["accelerate.commands.launch", *flags]
        done = start(launcher, "--output", tmp_path / name, *arguments)
        assert done.returncode == 0, done.stderr
    one, all_ = (json.loads((tmp_path / name / "results.json").read_text()) for name in runs)
    assert (one["num_processes"], all_["num_processes"]) == (1, number)
    assert one["device"]["type"] == all_["device"]["type"] == "cuda"
    for ours, theirs in zip(
        all_["training"]["validations"], one["training"]["validations"], strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert all_["test"]["metrics"] == pytest.approx(one["test"]["metrics"], abs=1e-3)


TRAIN_430M = """
import json, sys
from pathlib import Path
import numpy as np, torch
from accelerate.utils import send_to_device
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.experiment.build import build_accelerator, build_model
from bert4rec_hf.experiment.load import load_experiment
from bert4rec_hf.modeling.objectives import max_scores
from bert4rec_hf.training.checkpoint import find_checkpoints, save_checkpoint
from bert4rec_hf.training.loop import TrainingRun
from bert4rec_hf.training.memory import estimate_memory

config, folder = Path(sys.argv[1]), Path(sys.argv[2])
experiment = load_experiment(config, ["--training.trackers=[]"])
accelerator = build_accelerator(experiment, folder)
collator = MaskedItemCollator(max_history_length=50, mask_ratio=0.4)
rng = np.random.default_rng(accelerator.process_index)
batches = [
    collator([{"items": rng.integers(2, 160_054, length)} for length in rng.integers(3, 50, 128)])
    for _ in range(4)
]
with torch.device("meta"):
    blueprint = build_model(experiment, 160_054)
estimate = estimate_memory(blueprint, batches[0], accelerator, max_scores(accelerator.device))
run = TrainingRun(build_model(experiment, 160_054), experiment.training, accelerator, folder)
run.model.train()
torch.cuda.reset_peak_memory_stats()
losses = [run.learn(send_to_device(batch, accelerator.device)).item() for batch in batches]
peak = torch.cuda.max_memory_allocated()
save_checkpoint(folder, run.unwrapped, run.optimizer, run.state, accelerator, keep=1)
before = [weight.detach().to_local().clone() for weight in run.unwrapped.parameters()]
with torch.no_grad():
    for weight in run.unwrapped.parameters():
        weight.zero_()
run.resume(find_checkpoints(folder)[-1])
after = [weight.detach().to_local() for weight in run.unwrapped.parameters()]
found = {"losses": losses, "peak": peak, "estimate": estimate.total,
         "is_restored": all(map(torch.equal, before, after)),
         "parameters": sum(weight.numel() for weight in run.unwrapped.parameters())}
(folder / f"found-{accelerator.process_index}.json").write_text(json.dumps(found))
accelerator.end_training()
"""


@pytest.mark.gpu
def test_430m_train_sharded_with_gradient_checkpointing_in_the_memory_that_was_told(tmp_path):
    (tmp_path / "worker.py").write_text(TRAIN_430M)
    config = ROOT / "configs" / "accelerate" / "fsdp.yaml"
    flags = ["--config_file", config, "--num_processes", torch.cuda.device_count()]
    experiment = ROOT / "configs" / "electronics" / "bert4rec_430m.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, tmp_path / "worker.py"]
    done = subprocess.run(
        [*map(str, command), str(experiment), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for process in range(torch.cuda.device_count()):
        found = json.loads((tmp_path / f"found-{process}.json").read_text())
        assert found["parameters"] == pytest.approx(430e6, rel=0.02)
        assert found["losses"][0] == pytest.approx(math.log(160_052), abs=0.5)
        assert all(map(math.isfinite, found["losses"]))
        assert found["is_restored"]
        assert 0.6 < found["estimate"] / found["peak"] < 1.6
