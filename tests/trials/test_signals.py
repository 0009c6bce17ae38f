"""Signals: the first asks to stop, and nothing is lost."""

import json
import os
import random
import signal
import time

import pytest
import yaml

from bert4rec_hf.training.checkpoint import find_checkpoints

STATUS = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}
AREA = "signals"


def begin_and_wait(train, output, *arguments):
    """Begin a training, and wait until it has taken some steps."""
    started = train(output, *arguments)
    started.wait_for(lambda: find_checkpoints(output / "checkpoints"))
    return started


def stop(started, name):
    """Send a signal; how long the process took to end."""
    start = time.monotonic()
    os.kill(started.pid, getattr(signal, name))
    assert started.wait() == STATUS[name], started.output
    return time.monotonic() - start


@pytest.mark.parametrize("name", STATUS)
def test_a_signal_saves_a_checkpoint_and_the_run_goes_on_bit_for_bit(
    train, finish, tmp_path, note, name
):
    output = tmp_path / "run"
    started = begin_and_wait(train, output)
    assert stop(started, name) < 30
    step = int(find_checkpoints(output / "checkpoints")[-1].name.removeprefix("step-"))
    line = f"stopped by {name} after step {step:,}; the same command with --resume continues it\n"
    assert started.output.endswith(line)
    assert "Traceback" not in started.output
    finish(output)
    note(AREA, f"{name} while training", "saved, then resumed bit for bit")


@pytest.mark.slow
def test_signals_at_any_time_lose_nothing(train, finish, tmp_path, note):
    """Twenty times, from the first import to the last metric; each resumed until it is done."""
    draw = random.Random(0)
    for number in range(20):
        output, name = tmp_path / str(number), draw.choice(list(STATUS))
        started = train(output)
        time.sleep(draw.uniform(0.1, 4.0))
        if started.process.is_alive():
            os.kill(started.pid, getattr(signal, name))
        status = started.wait()
        # Before a handler is there, a signal does what the system does.
        assert status in (0, STATUS[name], -getattr(signal, name), 1), started.output
        assert "Traceback" not in started.output or "KeyboardInterrupt" in started.output
        finish(output)
        note(AREA, "a signal at a random time", "finished as if undisturbed")


@pytest.mark.slow
def test_kills_at_any_time_lose_nothing(train, finish, tmp_path, note):
    """SIGKILL twenty times at random; what it leaves is cleaned up by the next start."""
    draw = random.Random(1)
    for number in range(20):
        output = tmp_path / str(number)
        started = train(output, "--data.num_workers", number % 3)
        time.sleep(draw.uniform(0.1, 4.0))
        started.process.kill()
        started.process.join()
        finish(output)
        note(AREA, "SIGKILL at a random time", "finished as if undisturbed")


def test_a_second_signal_stops_at_once(train, tmp_path, note):
    """While nothing comes of the first: a step here takes a minute."""
    output = tmp_path / "run"
    started = train(output, "--training.gradient_accumulation_steps", 4_000)
    started.wait_for(lambda: (output / "experiment.yaml").exists())
    time.sleep(1.5)
    os.kill(started.pid, signal.SIGTERM)
    time.sleep(1.2)
    assert started.process.is_alive()
    start = time.monotonic()
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait() == -signal.SIGTERM
    assert time.monotonic() - start < 3
    note(AREA, "a second signal", "stopped at once")


def test_a_signal_reaches_the_workers_of_the_loader_as_well(train, finish, tmp_path, note):
    """As launchers and terminals send it, to the whole group of processes."""
    output = tmp_path / "run"
    started = begin_and_wait(train, output, "--data.num_workers", 2)
    os.killpg(started.pid, signal.SIGTERM)
    assert started.wait() == 143, started.output
    assert "Traceback" not in started.output
    finish(output, "--data.num_workers", 1)
    note(AREA, "SIGTERM to training and loader workers", "saved, then resumed bit for bit")


@pytest.mark.slow
def test_a_preparation_stops_and_leaves_nothing(begin, tmp_path, note):
    arguments = ["prepare", "synthetic", "--num-users", 40_000, "--output", tmp_path / "data"]
    started = begin(*arguments)
    started.wait_for(lambda: list(tmp_path.glob(".unfinished-data-*/.lock")))
    stop(started, "SIGINT")
    assert "stopped by SIGINT; nothing was written; the same command" in started.output
    assert "Traceback" not in started.output
    assert list(tmp_path.iterdir()) == []
    note(AREA, "SIGINT while preparing", "stopped, nothing left")


@pytest.mark.slow
def test_what_a_killed_preparation_left_is_removed_by_the_next(begin, tmp_path, note):
    arguments = ["prepare", "synthetic", "--output", tmp_path / "data", "--num-users"]
    started = begin(*arguments, 40_000)
    started.wait_for(lambda: list(tmp_path.glob(".unfinished-data-*/.lock")))
    started.process.kill()
    started.process.join()
    assert list(tmp_path.glob(".unfinished-data-*"))
    again = begin(*arguments, 200)
    assert again.wait() == 0, again.output
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    note(AREA, "SIGKILL while preparing", "cleaned up by the next start")


def write(path, **sections):
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.mark.slow
def test_a_search_stops_and_tries_again_what_it_was_at(begin, config, tmp_path, note):
    search = write(
        tmp_path / "search.yaml",
        study={"experiment": str(config), "num_trials": 2},
        search={"training.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}},
    )
    output = tmp_path / "study"
    started = begin("tune", search, "--output", output)
    started.wait_for(lambda: list(output.glob("trial-*/checkpoints/step-*")))
    stop(started, "SIGTERM")
    assert "stopped by SIGTERM after step " in started.output
    assert "the same command continues it" in started.output
    assert list(output.glob("trial-*")) == []
    again = begin("tune", search, "--output", output)
    assert again.wait() == 0, again.output
    trials = json.loads((output / "study.json").read_text())["trials"]
    assert [each["state"] for each in trials] == ["fail", "complete", "complete"]
    assert trials[1]["values"] == trials[0]["values"]
    note(AREA, "SIGTERM to tune", "stopped, its trial tried again")


@pytest.mark.slow
def test_a_scaling_study_stops_and_goes_on(begin, config, tmp_path, note):
    study = write(
        tmp_path / "study.yaml",
        study={"experiment": str(config), "max_steps": [40, 80], "seeds": [0]},
        sizes={"small": {"model.hidden_size": 12}},
    )
    output = tmp_path / "study"
    started = begin("scale", study, "--output", output)
    started.wait_for(lambda: (output / "small-40-0" / "run.json").exists())
    time.sleep(0.3)
    stop(started, "SIGTERM")
    assert "the same command continues it" in started.output
    assert "Traceback" not in started.output
    again = begin("scale", study, "--output", output)
    assert again.wait() == 0, again.output
    assert len(list(output.glob("*/point.json"))) == 2
    note(AREA, "SIGTERM to scale", "stopped, its run resumed")
