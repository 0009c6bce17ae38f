import pytest

from bert4rec_hf.lab.cards.plots import plot_configurations
from bert4rec_hf.lab.cards.report import find_devices, is_drawn, render_hardware, render_report

OLD = {"type": "cuda", "name": "V100", "compute_capability": "7.0", "has_bf16": False}
RECENT = {"type": "cuda", "name": "H100", "compute_capability": "9.0", "has_bf16": True}


def make_benchmark(device, rate, *, mode="train", precisions=("no", "bf16")):
    """A benchmark of ours and of a peer, ours at two precisions."""
    contestants, summary = [], []
    for name in ("full_softmax", "recbole"):
        for precision in precisions:
            settings = {"precision": precision, "compile": "no", "batch_size": 64}
            settings["adapter"] = "lora" if precision == "bf16" else "none"
            label = f"{name}:precision={precision}"
            names = {"aten::mm": 0.31, "## Call CompiledFxGraph f473weg ##": 0.2}
            operations = [
                {"name": name, "side": "cpu", "calls": 7, "time_share": share}
                for name, share in names.items()
            ]
            contestants.append(
                {
                    "contestant": name,
                    "label": label,
                    "settings": settings,
                    "operations": operations if name == "full_softmax" else [],
                }
            )
            summary.append(
                {
                    "label": label,
                    "histories_per_second": [rate - 1, rate, rate + 1],
                    "step_milliseconds": [1.0, 2.0, 3.0],
                    "epoch_seconds": [100.0, 120.0, 140.0],
                    "peak_memory_bytes": 5_000_000,
                    "trainable_ratio": 0.5,
                }
            )
    return {
        "plan": {"mode": mode, "threads": 2, "rounds": 3},
        "workload": {"name": "electronics", "num_items": 97},
        "shape": {"name": "tiny", "hidden_size": 12, "num_layers": 2},
        "contestants": contestants,
        "summary": summary,
        "device": device,
    }


@pytest.fixture
def benchmarks():
    return {"old": make_benchmark(OLD, 10.0), "recent": make_benchmark(RECENT, 1_250.0)}


def test_the_report_has_a_row_per_configuration_of_ours(benchmarks):
    report = render_report({"benchmarks": benchmarks})
    row = "| full_softmax | bf16 | eager | lora | 64 | 50.00% | 1,250.0 | 2.0 | 2.0 | 5 |"
    assert report.count(row) == 1
    assert "recbole" not in report
    assert "| old | full_softmax:precision=no | aten::mm | 7 | 31% |" in report
    assert "| old | full_softmax:precision=no | compiled graph | 7 | 20% |" in report


def test_devices_stand_side_by_side_with_what_they_cannot_do(benchmarks):
    text = "\n".join(render_hardware(benchmarks, [benchmarks]))
    assert "| V100 | cuda | 7.0 | – | no | 1 |" in text
    assert "| H100 | cuda | 9.0 | – | yes | 1 |" in text
    assert "| workload | shape | configuration | H100 | V100 |" in text
    row = "| electronics | tiny | full_softmax:precision=no, batch 64 | 1,250.0 | 10.0 |"
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


def test_only_trainings_that_vary_in_two_settings_are_drawn(benchmarks, tmp_path):
    assert is_drawn(benchmarks["old"])
    assert not is_drawn(make_benchmark(OLD, 10.0, mode="evaluate"))
    assert not is_drawn(make_benchmark(OLD, 10.0, precisions=("no",)))
    plot_configurations(benchmarks["old"], tmp_path / "old.png")
    assert (tmp_path / "old.png").read_bytes()[:4] == b"\x89PNG"
