import json
import runpy
import sys
from pathlib import Path

import pytest

from bert4rec_hf.lab.benchmark.workloads import SHAPES, WORKLOADS

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


@pytest.fixture
def run(monkeypatch, tiny):
    """Run the script on a small workload."""
    monkeypatch.setitem(WORKLOADS, "tiny", tiny("floor").workload)
    monkeypatch.setitem(SHAPES, "tiny", tiny("floor").shape)

    def run(*arguments):
        small = ["--workload", "tiny", "--shape", "tiny", "--batch-size", "7", "--threads", "1"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *small, *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


@pytest.mark.slow
def test_one_command_gives_a_table_and_a_file(run, tmp_path, capsys):
    output = tmp_path / "results.json"
    contestants = ["--contestants", "full_softmax", "floor"]
    run(*contestants, "--rounds", "2", "--output", output, "--profile", tmp_path / "profile")
    heading, ours, floor = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["contestant", "histories/s", "items/s"]
    assert (ours.split()[0], floor.split()[0]) == ("full_softmax", "floor")
    results = json.loads(output.read_text())
    assert results["kind"] == "benchmark"
    assert (results["workload"]["name"], results["shape"]["name"]) == ("tiny", "tiny")
    assert results["plan"]["rounds"] == 2
    assert [len(each["turns"]) for each in results["contestants"]] == [2, 2]
    assert results["contestants"][0]["parameters"] > 99 * 12
    assert {"commit", "device", "versions"} < results.keys()
    assert str(tmp_path) not in output.read_text()
    for name in ("full_softmax", "floor"):
        assert "aten::mm" in (tmp_path / "profile" / name / "process-0.txt").read_text()
        assert (tmp_path / "profile" / name / "process-0.pt.trace.json").exists()


@pytest.mark.slow
def test_an_adapter_is_measured_beside_training_the_whole_model(run, tmp_path):
    output = tmp_path / "results.json"
    contestants = ["full_softmax:adapter=none", "full_softmax:adapter=ilora,r=4"]
    run("--contestants", *contestants, "--bases", contestants[0], "--output", output)
    whole, adapter = json.loads(output.read_text())["summary"]
    assert whole["trainable_ratio"] == 1
    assert 0 < adapter["trainable_ratio"] < 0.2
    assert adapter["share_of_memory"].keys() == {contestants[0]}
    assert adapter["times_as_fast"][contestants[0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{here}/there/x.json"], "there/x.json does not exist; create it"),
        (["--output", "{here}/taken.json"], "taken.json exists; choose another --output"),
        (["--contestants", "bert5rec"], "contestant must be one of full_softmax, "),
        (["--profile", "x", "--mode", "collate"], "mode must be train, got 'collate'"),
        (["--rounds", "0"], "rounds must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_named_before_anything_is_measured(run, tmp_path, capsys, arguments, message):
    (tmp_path / "taken.json").write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        run(*(argument.format(here=tmp_path) for argument in arguments))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
