import json
import time

import pytest

from bert4rec_hf.lab.benchmark import sweep as sweep_module
from bert4rec_hf.lab.benchmark.sweep import TABLES, Sweep, Table, run_sweep, unfit_contestants
from bert4rec_hf.lab.benchmark.tournament import TIME_IS_UP, Plan, run_tournament
from bert4rec_hf.lab.benchmark.workloads import SHAPES
from bert4rec_hf.lab.cards.report import configurations


def test_the_tables_are_those_that_the_report_wants():
    assert {"85m", "130m", "430m"} == {table.shape for table in TABLES}
    labels = " ".join(" ".join(table.contestants) for table in TABLES)
    for wanted in ("fp16", "bf16", "inductor", "lora", "ilora", "bert_for_masked_lm", "4096"):
        assert wanted in labels
    assert {"train", "evaluate", "score"} == {table.mode for table in TABLES}
    assert len({table.name for table in TABLES}) == len(TABLES)


@pytest.fixture
def small(tiny, monkeypatch):
    """Make a sweep over tables of a tiny shape."""
    monkeypatch.setitem(SHAPES, "tiny", tiny("floor").shape)

    def make(tables, seconds=300, **settings):
        return Sweep(
            workload=tiny("floor").workload,
            seconds=seconds,
            batch_size=7,
            rounds=2,
            tables=[Table(shape="tiny", share=1, **table) for table in tables],
            **settings,
        )

    return make


@pytest.mark.slow
def test_every_table_gets_a_file_and_what_a_cpu_cannot_do_is_named(small, tmp_path):
    tables = [
        {
            "name": "trained",
            "contestants": ("full_softmax", "full_softmax:precision=fp16", "gbce:adapter=ilora"),
        },
        {"name": "ranked", "mode": "evaluate", "contestants": ("full_softmax",)},
        {"name": "scored", "mode": "score", "contestants": ()},
    ]
    found = {table.name: results for table, results in run_sweep(small(tables), tmp_path)}
    files = {path.name for path in tmp_path.glob("*.json")}
    names = ("tiny-trained-cpu1", "tiny-ranked-cpu1", "tiny-scored-cpu1", "sweep")
    assert files == {f"{name}.json" for name in names}
    for name in ("trained", "ranked", "scored"):
        written = json.loads((tmp_path / f"tiny-{name}-cpu1.json").read_text())
        assert written == json.loads(json.dumps(found[name]))
    rows = list(configurations(found["trained"]))
    assert [contestant["label"] for contestant, _ in rows] == ["full_softmax", "gbce:adapter=ilora"]
    assert all(row["epoch_seconds"] and row["peak_memory_bytes"] for _, row in rows)
    assert found["scored"]["batch"]["users"] == 53
    said = json.loads((tmp_path / "sweep.json").read_text())
    assert said["left_out"] == {"trained: full_softmax:precision=fp16": "fp16 needs a GPU"}
    assert said["device"]["type"] == "cpu"


def test_tables_share_the_time_that_is_left_and_those_without_are_named(
    small, tmp_path, monkeypatch
):
    """Each table takes twice its share; the clock is looked at once before each."""
    now, given = [0.0], []

    def measure(table, sweep, seconds, accelerator):
        given.append((table.name, seconds))
        now[0] += 2 * seconds
        return {"summary": [{"label": "gbce", "failure": TIME_IS_UP if table.name == "b" else ""}]}

    monkeypatch.setattr(sweep_module, "measure_table", measure)
    tables = [{"name": name, "contestants": ("gbce:precision=fp16",)} for name in "abc"]
    sweep = small(tables, seconds=300, clock=lambda: now[0])
    found = {table.name: results for table, results in run_sweep(sweep, tmp_path)}
    assert given == [("a", 100), ("b", 50)]
    assert found["c"] is None
    left_out = json.loads((tmp_path / "sweep.json").read_text())["left_out"]
    assert left_out["c"] == "there was no time left"
    assert left_out["b: gbce"] == TIME_IS_UP
    assert "a: gbce" not in left_out


def test_only_a_gpu_runs_fp16():
    table = Table(name="x", shape="tiny", share=1, contestants=("gbce:precision=fp16", "gbce"))
    assert unfit_contestants(table, "cpu") == ["gbce:precision=fp16"]
    assert unfit_contestants(table, "cuda") == []


def test_too_little_time_is_refused(small):
    with pytest.raises(ValueError, match="--seconds must be at least 20, .* got 5"):
        small([], seconds=5)


def test_a_contestant_that_does_not_answer_is_stopped_and_later_ones_are_not_started(
    tiny, tmp_path
):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    plan = Plan(rounds=2, seconds=0.6, peer_python=str(python))
    start = time.monotonic()
    records = run_tournament({"hangs": tiny("recbole"), "late": tiny("rectools")}, plan)
    assert time.monotonic() - start < 20
    assert [record.failure for record in records] == [TIME_IS_UP] * 2
    assert records[0].turns == records[1].turns == []
