"""Trials: what happens to a command is done to it, in processes of their own.

`pytest tests/trials -m "" --trials model_cards/results/reliability/FILE.json` also writes down what
was tried, how often, and what came of it.
"""

import collections
import json
import multiprocessing
import shutil
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.evaluation.provenance import provenance

sys.path.insert(0, str(Path(__file__).parent))
import starting  # noqa: E402 – a plain module, so that processes find it by its name

OUTCOMES = pytest.StashKey[collections.Counter]()
SECTIONS = {
    "model": {"hidden_size": 12, "intermediate_size": 20, "max_history_length": 9},
    "training": {
        "learning_rate": 0.01,
        "batch_size": 32,
        "max_steps": 120,
        "evaluation_steps": 30,
        "checkpoint_steps": 10,
        "logging_steps": 10,
        "patience": 100,
        "trackers": [],
    },
    "evaluation": {"ks": [10], "num_bootstrap_samples": 50},
    "card": {"dataset_name": "generated", "dataset_license": "none"},
}


def pytest_addoption(parser):
    parser.addoption("--trials", type=Path, help="results file for what the trials came to")


def pytest_configure(config):
    config.stash[OUTCOMES] = collections.Counter()


def pytest_sessionfinish(session):
    path = session.config.getoption("trials", None)
    outcomes = session.config.stash.get(OUTCOMES, {})
    if path and outcomes:
        rows = [
            {"area": area, "tried": tried, "outcome": outcome, "times": times}
            for (area, tried, outcome), times in outcomes.items()
        ]
        results = {"kind": "reliability", "trials": rows, **provenance(Accelerator(cpu=True))}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@pytest.fixture
def note(request):
    """Note what was tried and what came of it, once for each time; only what was asserted."""

    def add(area, tried, outcome):
        request.config.stash[OUTCOMES][area, tried, outcome] += 1

    return add


class Started:
    """A command that runs, and what it says."""

    def __init__(self, process, log):
        self.process, self.log = process, log
        self.pid = process.pid

    def wait(self, seconds=300):
        """Its exit status once it is over; below 0 for a signal that killed it."""
        self.process.join(seconds)
        assert not self.process.is_alive(), f"still running: {self.output}"
        return self.process.exitcode

    @property
    def output(self):
        return self.log.read_text(encoding="utf-8")

    def wait_for(self, condition, seconds=300):
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), f"ended with {self.process.exitcode}: {self.output}"
            assert time.monotonic() < end, f"waited {seconds} s: {self.output}"
            time.sleep(0.005)


@pytest.fixture(scope="session")
def begin(tmp_path_factory):
    """Begin a command in a process of its own; all end with the tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(starting.PRELOADED)
    logs, begun = tmp_path_factory.mktemp("logs"), []

    def start(*arguments, **limits):
        log = logs / f"{len(begun)}.txt"
        given = (list(map(str, arguments)), str(log), limits)
        process = context.Process(target=starting.run_command, args=given)
        process.start()
        begun.append(process)
        return Started(process, log)

    yield start
    for process in begun:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """An experiment of 120 short steps on a small dataset."""
    folder = tmp_path_factory.mktemp("trials")
    synthetic = SyntheticConfig(num_users=150, num_items=60, mean_length=8.0, max_length=20)
    prepare_dataset("synthetic", None, folder / "data", PreparationConfig(synthetic=synthetic))
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump({"data": {"dataset": str(folder / "data")}} | SECTIONS))
    return path


@pytest.fixture(scope="session")
def undisturbed(config, begin, tmp_path_factory):
    """The folder of the experiment's run when nothing happens to it."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    started = begin("train", config, "--output", output)
    assert started.wait() == 0, started.output
    return output


def read_run(output):
    """What a run came to, but for how long it took."""
    results = json.loads((output / "results.json").read_text())
    training = results["training"]
    del training["train_seconds"]
    metrics = {name: results[name]["metrics"] for name in ("test", "validation")}
    return {"training": training, **metrics}, load_file(output / "model" / "model.safetensors")


@pytest.fixture(scope="session")
def train(begin, config):
    """Begin to train the experiment, or go on with it where the folder has a run."""

    def start(output, *arguments, **limits):
        resume = ["--resume"] if (output / "run.json").exists() else []
        return begin("train", config, "--output", output, *resume, *arguments, **limits)

    return start


def assert_same(output, other):
    """A run ended like another, bit for bit, and nothing is left of its accidents."""
    (ours, our_weights), (theirs, their_weights) = read_run(output), read_run(other)
    assert ours == theirs
    assert our_weights.keys() == their_weights.keys()
    assert all(weight.equal(their_weights[name]) for name, weight in our_weights.items())
    assert [path.name for path in output.rglob(".*") if path.name != ".lock"] == []


@pytest.fixture(scope="session")
def same():
    """Compare the folders of two runs."""
    return assert_same


@pytest.fixture(scope="session")
def finish(train, undisturbed):
    """Go on with a run, which must end like the undisturbed one."""

    def go_on(output, *arguments):
        again = train(output, *arguments)
        assert again.wait() == 0, again.output
        assert_same(output, undisturbed)
        return again

    return go_on


@pytest.fixture
def copy_of(undisturbed, tmp_path):
    """A copy of the undisturbed run's folder, to be damaged."""
    return Path(shutil.copytree(undisturbed, tmp_path / "copy"))
