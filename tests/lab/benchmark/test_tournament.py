import json
import sys

import pytest
import torch

from bert4rec_hf.lab.benchmark import worker
from bert4rec_hf.lab.benchmark.task import Work
from bert4rec_hf.lab.benchmark.tournament import (
    ContestantProcess,
    ContestantStoppedError,
    Plan,
    run_tournament,
)

STAND_IN = """#!{python}
import json, sys
order = json.loads(sys.argv[3])
if order["task"]["contestant"] == "rectools":
    sys.exit("rectools is not there")
print(json.dumps({{"parameters": 11, "trainable": 5, "versions": {{"torch": "0"}}}}), flush=True)
for turn, line in enumerate(sys.stdin):
    batches = json.loads(line)["batches"]
    work = {{"seconds": 0.5, "histories": 7 * batches, "items": turn}}
    memory = {{"peak_memory_bytes": 3 + turn, "process_memory_bytes": 99}}
    print(json.dumps(work | memory), flush=True)
    if order["task"]["settings"]["dropout"] == 0.5 and turn == 1:
        sys.exit(3)
"""


@pytest.fixture
def interpreter(tmp_path):
    """A stand-in for the peers' interpreter: answers at once, without a model."""
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(0o755)
    return str(python)


def test_contestants_take_turns_and_a_failure_stops_only_its_own(tiny, interpreter):
    tasks = {
        "one": tiny("recbole"),
        "absent": tiny("rectools"),
        "stops": tiny("recbole", dropout=0.5),
    }
    plan = Plan(rounds=3, batches=2, warmup_batches=5, peer_python=interpreter)
    one, absent, stops = run_tournament(tasks, plan)
    assert one.failure is None
    # The warm-up was turn 0 and is no turn of the record.
    assert one.turns == [{"seconds": 0.5, "histories": 14, "items": turn} for turn in (1, 2, 3)]
    assert (one.peak_memory_bytes, one.warmup_seconds) == (6, 0.5)
    assert (one.parameters, one.trainable) == (11, 5)
    assert (absent.failure, absent.turns) == ("rectools is not there", [])
    assert (stops.failure, len(stops.turns)) == ("ended with exit code 3", 1)


def test_a_killed_process_is_taken_for_one_out_of_memory(tiny, interpreter):
    with ContestantProcess(tiny("recbole"), Plan(peer_python=interpreter)) as process:
        assert process.answer()["parameters"] == 11
        process.process.kill()
        with pytest.raises(ContestantStoppedError, match="ended by signal 9: out of memory"):
            process.ask(1)


def test_a_worker_answers_with_the_work_and_its_time():
    class Contestant:
        def train(self, batches):
            return Work(7 * batches, 41)

    answer = worker.respond(Contestant(), {"mode": "train", "batches": 3})
    assert (answer["histories"], answer["items"]) == (21, 41)
    assert 0 < answer["seconds"] < 1
    assert json.dumps(answer)


def test_parameters_are_those_of_the_contestants_model():
    class Contestant:
        model = torch.nn.Linear(3, 5)

    Contestant.model.bias.requires_grad_(False)
    assert worker.count_parameters(Contestant()) == {"parameters": 20, "trainable": 15}
    assert worker.count_parameters(object()) == {"parameters": None, "trainable": None}


@pytest.mark.slow
def test_a_process_of_its_own_trains_and_knows_its_memory(tiny):
    (ours,) = run_tournament({"ours": tiny("gbce")}, Plan(rounds=3, batches=2))
    assert ours.failure is None
    assert [turn["histories"] for turn in ours.turns] == [14, 14, 14]
    assert 0 <= ours.peak_memory_bytes < ours.process_memory_bytes
    assert ours.versions["torch"] == torch.__version__


@pytest.mark.slow
def test_an_adapter_trains_under_a_compiler(tiny):
    (ours,) = run_tournament(
        {"ours": tiny("full_softmax", adapter="ilora", compile="aot_eager")}, Plan(rounds=3)
    )
    assert ours.failure is None
    assert [turn["histories"] for turn in ours.turns] == [7, 7, 7]


@pytest.mark.slow
def test_what_a_contestant_does_not_do_is_said(tiny):
    (record,) = run_tournament({"below": tiny("floor")}, Plan(mode="evaluate"))
    assert record.failure == "NotImplementedError: floor does not evaluate"


@pytest.mark.slow
def test_memory_can_be_limited(tiny):
    (record,) = run_tournament({"below": tiny("floor")}, Plan(max_memory_gb=0.01))
    assert record.failure
    assert record.turns == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "guess"}, "mode must be one of train, evaluate, collate, got 'guess'"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"batches": -1}, "batches must be at least 1, got -1"),
    ],
)
def test_an_impossible_plan_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Plan(**settings)
