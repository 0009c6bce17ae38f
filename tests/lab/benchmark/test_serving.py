import json
from dataclasses import replace

import numpy as np
import pytest

from bert4rec_hf.commands.benchmark_serving import main
from bert4rec_hf.lab.benchmark import serving, workloads


@pytest.fixture(autouse=True)
def small(tiny, monkeypatch):
    task = tiny("full_softmax")
    monkeypatch.setitem(workloads.WORKLOADS, "tiny", replace(task.workload, num_items=97))
    monkeypatch.setitem(workloads.SHAPES, "tiny", task.shape)
    return task


def test_contestants_take_turns_after_a_first_try():
    calls = []
    seconds = serving.take_turns({n: lambda n=n: calls.append(n) for n in ("a", "b")}, 2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}


def test_interactions_are_the_histories_of_the_workload(small):
    frame = serving.draw_interactions(small, 60)
    histories = workloads.draw_histories(small.workload, small.seed)
    of_user = frame.filter(frame["user"] == "user-00000055")["item"]
    expected = histories[55 % len(histories)] - 2
    assert of_user.to_list() == [f"item-{number:08d}" for number in expected]
    assert frame["user"].n_unique() == 60


def test_the_peak_of_a_command_is_what_it_held():
    held = 80_000_000
    code = f"import time; held = bytearray({held}); time.sleep(0.4)"
    watched = serving.watch_memory([serving.sys.executable, "-c", code])
    assert held < watched["peak_memory_bytes"] < 2 * held
    with pytest.raises(RuntimeError, match="ended with 3"):
        serving.watch_memory([serving.sys.executable, "-c", "raise SystemExit(3)"])


def test_the_command_writes_what_it_measured(tmp_path):
    output = tmp_path / "serving.json"
    options = ["--workload", "tiny", "--shape", "tiny", "--rounds", "2", "--users", "40"]
    main(["--measure", "latency", "batch", *options, "--output", str(output)])
    results = json.loads(output.read_text())
    assert results["batch"]["users"] == 40
    rates = [results["batch"][f"{name}_users_per_second"] for name in ("recommend", "ranking")]
    assert np.min(rates) > 0
    assert results["latency"]["recommend_over_plain"][1] > 0
    assert results["commit"]
    with pytest.raises(SystemExit):
        main(["--output", str(output)])
