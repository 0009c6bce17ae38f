import copy
import json
from pathlib import Path

import pytest
from accelerate import Accelerator

from bert4rec_hf.config import read_yaml
from bert4rec_hf.hub.results import read_results
from bert4rec_hf.lab.benchmark.report import collect_results
from bert4rec_hf.lab.benchmark.tournament import Plan, Record
from bert4rec_hf.lab.cards.plots import plot_configurations
from bert4rec_hf.lab.cards.report import (
    compare_with_recipe,
    find_devices,
    is_drawn,
    render_accuracy,
    render_hardware,
    render_report,
)

ROOT = Path(__file__).parents[3]
OLD = {"type": "cuda", "name": "V100", "compute_capability": "7.0", "has_bf16": False}
RECENT = {"type": "cuda", "name": "H100", "compute_capability": "9.0", "has_bf16": True}
OPERATIONS = [
    {"name": "aten::mm", "side": "cpu", "calls": 7, "time_share": 0.31},
    {"name": "## Call CompiledFxGraph f473weg ##", "side": "cpu", "calls": 7, "time_share": 0.2},
]


@pytest.fixture
def make_benchmark(tiny):
    """A benchmark of ours and of a peer at some precisions, as its command writes it.

    The device is put in afterwards, as there are no such ones here.
    """

    def make(device, rate, *, mode="train", precisions=("no", "bf16")):
        records = []
        for name in ("full_softmax", "recbole"):
            for precision in precisions:
                adapter = "lora" if precision == "bf16" and name == "full_softmax" else "none"
                record = Record(
                    label=f"{name}:precision={precision}",
                    task=tiny(name, precision=precision, adapter=adapter),
                    parameters=1_000,
                    trainable=500,
                    warmup_seconds=1.0,
                    operations=OPERATIONS if name == "full_softmax" else [],
                )
                for histories_per_second in (rate - 1, rate, rate + 1):
                    answer = {"seconds": 28 / histories_per_second, "histories": 28, "items": 140}
                    memory = {"peak_memory_bytes": 5_000_000, "process_memory_bytes": 9_000_000}
                    record.add(answer | memory)
                records.append(record)
        plan = Plan(mode=mode, rounds=3, batches=4)
        results = collect_results(records, plan, Accelerator(cpu=True))
        return json.loads(json.dumps(results)) | {"device": device}

    return make


@pytest.fixture
def benchmarks(make_benchmark):
    return {"old": make_benchmark(OLD, 10.0), "recent": make_benchmark(RECENT, 1_250.0)}


def test_the_report_has_a_row_per_configuration_of_ours(benchmarks):
    report = render_report({"benchmarks": benchmarks})
    # Of 28 histories in 4 batches at 10/s: 700 ms a step; 106 histories are an epoch.
    row = "| full_softmax | bf16 | eager | lora | 7 | 50.00% | 10.0 | 0.2 | 700.0 | 5 |"
    assert report.count(row) == 1
    assert "| full_softmax | float32 | eager | no adapter | 7 | 50.00% | 1,250.0 | 0.0 | " in report
    assert "recbole" not in report
    assert "| old | full_softmax:precision=no | aten::mm | 7 | 31% |" in report
    assert "| old | full_softmax:precision=no | compiled graph | 7 | 20% |" in report


def test_devices_stand_side_by_side_with_what_they_cannot_do(benchmarks):
    text = "\n".join(render_hardware(benchmarks, [benchmarks]))
    assert "| V100 | cuda | 7.0 | – | no | 1 |" in text
    assert "| H100 | cuda | 9.0 | – | yes | 1 |" in text
    assert "| workload | shape | configuration | H100 | V100 |" in text
    row = "| tiny | tiny | full_softmax:precision=no, batch 7 | 1,250.0 | 10.0 |"
    assert row in text


def test_one_device_alone_has_nobody_beside_it(benchmarks):
    del benchmarks["old"]
    text = "\n".join(render_hardware(benchmarks, [benchmarks]))
    assert "H100" in text
    assert "same configuration" not in text


def test_what_one_file_does_not_say_of_a_device_another_may():
    before = {"type": "cpu", "name": "Xeon", "threads": 1}
    now = {"type": "cpu", "name": "Xeon", "threads": 2, "capability": "AVX2"}
    devices = find_devices({"device": device} for device in (before, now, OLD))
    assert devices == [({"type": "cpu", "name": "Xeon", "capability": "AVX2"}, 2), (OLD, 1)]


def test_only_trainings_that_vary_in_two_settings_are_drawn(make_benchmark, benchmarks, tmp_path):
    assert is_drawn(benchmarks["old"])
    assert not is_drawn(make_benchmark(OLD, 10.0, mode="evaluate"))
    assert not is_drawn(make_benchmark(OLD, 10.0, precisions=("no",)))
    plot_configurations(benchmarks["old"], tmp_path / "old.png")
    assert (tmp_path / "old.png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture(scope="module")
def runs():
    folder = ROOT / "model_cards" / "results"
    names = ("ml1m-bert4rec", "ml100k-bert4rec", "beauty_paper_2048-bert4rec", "beauty-causal")
    return {name: read_results(folder / f"{name}.json") for name in names}


def test_runs_of_different_protocols_say_so_side_by_side(runs):
    _, warning, table = list(render_accuracy(runs, {}))
    assert "rows that differ in either, or in the dataset, cannot be compared" in warning
    _, _, *rows = table.splitlines()
    assert [row.split(" | ")[1] for row in rows] == [
        "full ranking, seen items left out, repeats ranked, `[:-2]`",
        "full ranking, seen items ranked, `[:-2]`",
        "full ranking, seen items left out, repeats ranked, `[:-1]`",
        "full ranking, seen items left out, repeats ranked, `[:-2]`",
    ]


def test_settings_that_are_not_the_recipes_are_counted(runs):
    by_recipe = copy.deepcopy(runs["ml1m-bert4rec"])
    by_recipe["experiment"]["model"]["hidden_size"] *= 2
    now = compare_with_recipe(runs["ml1m-bert4rec"])
    counts = {"the recipe's": 0} | {
        f"{n} {'differs' if n == 1 else 'differ'}": n for n in range(40)
    }
    assert counts[compare_with_recipe(by_recipe)] - counts[now] == 1
    assert counts[compare_with_recipe(runs["ml100k-bert4rec"])] >= 10
    # What is one switch in the files is one here.
    twin, model = (
        read_yaml(ROOT / "configs" / "beauty" / f"{name}.yaml") for name in ("causal", "bert4rec")
    )
    assert twin["model"] == model["model"] | {"is_causal": True}
    other = copy.deepcopy(runs["beauty-causal"])
    del other["experiment"]["model"]["is_causal"]
    less = counts[compare_with_recipe(runs["beauty-causal"])] - counts[compare_with_recipe(other)]
    assert less == 1


def test_each_comparison_of_the_report_names_its_protocol():
    path = ROOT / "model_cards" / "results" / "comparisons" / "ml1m-recipe.json"
    report = render_report({"comparisons": {"ml1m-recipe": read_results(path)}})
    (line,) = [line for line in report.splitlines() if line.startswith("[ml1m-recipe]")]
    assert "Full ranking over all 3,416 items. Items of the user's history are left out" in line
