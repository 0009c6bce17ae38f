"""What launchers start: several processes that stop together, or are refused together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bert4rec_hf.training.checkpoint import find_checkpoints

ROOT = Path(__file__).parents[2]
ACCELERATE = ["accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
ACCELERATE += ["--dynamo_backend", "no", "--num_processes"]
LAUNCHERS = {
    "accelerate launch": [*ACCELERATE, "2", "--multi_gpu"],
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29511"],
}
AREA = "several processes"

pytestmark = pytest.mark.slow


def launch(launcher, *arguments, uses_cpu=True):
    """Start the training script as a user would; what it says goes into one stream."""
    command = [sys.executable, "-m", *launcher, str(ROOT / "scripts" / "train.py")]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    if uses_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def wait_for_checkpoint(process, output):
    end = time.monotonic() + 300
    while not find_checkpoints(output / "checkpoints"):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed_by_two(config, same, tmp_path_factory):
    """Compare the folder of a run with that of two processes to which nothing happens."""
    output = tmp_path_factory.mktemp("undisturbed-by-two") / "run"
    process = launch(LAUNCHERS["accelerate launch"], config, "--output", output)
    text, _ = process.communicate()
    assert process.returncode == 0, text
    return lambda other: same(other, output)


@pytest.mark.parametrize("target", ["launcher", "worker"])
@pytest.mark.parametrize("name", LAUNCHERS)
def test_two_processes_stop_after_the_same_step_and_go_on_bit_for_bit(
    config, undisturbed_by_two, tmp_path, note, name, target
):
    output = tmp_path / "run"
    process = launch(LAUNCHERS[name], config, "--output", output)
    wait_for_checkpoint(process, output)
    pid = process.pid
    if target == "worker":  # the second one, which writes no line of its own
        pid = max(psutil.Process(pid).children(), key=lambda each: each.pid).pid
    os.kill(pid, signal.SIGTERM)
    text, _ = process.communicate(timeout=300)
    step = int(find_checkpoints(output / "checkpoints")[-1].name.removeprefix("step-"))
    assert text.count("stopped by SIGTERM") == 1
    assert f"stopped by SIGTERM after step {step:,}; the same command with --resume" in text
    assert "DataLoader" not in text
    process = launch(LAUNCHERS[name], config, "--output", output, "--resume")
    text, _ = process.communicate()
    assert process.returncode == 0, text
    undisturbed_by_two(output)
    note(AREA, f"SIGTERM to the {target} of {name}, two processes", "saved, resumed bit for bit")


def test_a_launcher_that_dies_without_a_word_stops_its_only_process(config, tmp_path, note):
    """`accelerate launch` tells its only process nothing."""
    output = tmp_path / "run"
    process = launch([*ACCELERATE, "1"], config, "--output", output)
    wait_for_checkpoint(process, output)
    (worker,) = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGTERM)
    text, _ = process.communicate(timeout=300)
    psutil.wait_procs([worker], timeout=30)
    assert not worker.is_running()
    assert "stopped by SIGTERM after step" in text
    note(AREA, "SIGTERM to accelerate launch, one process", "saved and stopped")


def test_processes_that_accelerate_takes_for_single_ones_are_refused(config, tmp_path, note):
    output = tmp_path / "run"
    process = launch(LAUNCHERS["torchrun"], config, "--output", output, uses_cpu=False)
    text, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    message = "2 processes were started, and accelerate takes each for the only one"
    assert message in text
    assert "set ACCELERATE_USE_CPU=true, or start one process" in text
    assert not output.exists()
    note(AREA, "torchrun on a CPU without ACCELERATE_USE_CPU", "refused with the way out")


@pytest.mark.parametrize(
    ("told", "threads"), [({"OMP_NUM_THREADS": "1"}, 1), ({}, len(os.sched_getaffinity(0)))]
)
def test_a_number_of_threads_that_the_user_sets_is_obeyed(tmp_path, note, told, threads):
    """The launcher itself sets one where it was not told, and then the cores are shared."""
    script = tmp_path / "threads.py"
    script.write_text(
        "import torch\nfrom accelerate import Accelerator\n"
        "from bert4rec_hf.training.launch import share_cores\n"
        "share_cores(Accelerator(cpu=True))\nprint('threads', torch.get_num_threads())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", *ACCELERATE, "1", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"} | told,
    )
    assert f"threads {threads}" in done.stdout
    note(AREA, "OMP_NUM_THREADS set by the user", "obeyed")
