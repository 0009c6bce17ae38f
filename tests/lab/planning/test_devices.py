import json

import pytest

from bert4rec_hf.hub.results import read_results
from bert4rec_hf.lab.cards.render import PLANNING
from bert4rec_hf.lab.planning import devices
from bert4rec_hf.lab.planning.devices import Rates, fit_rates, peak_rates
from bert4rec_hf.lab.planning.step import Work


def test_rates_are_found_in_what_they_made():
    rates = Rates(seconds_per_operation=3e-11, seconds_per_byte=2e-10)
    works = [Work(1e9, 5e8), Work(7e12, 1e6), Work(1e6, 4e11), Work(2e10, 3e9)]
    found = fit_rates(works, [rates.seconds(work) for work in works])
    assert found.seconds_per_operation == pytest.approx(3e-11)
    assert found.seconds_per_byte == pytest.approx(2e-10)


def test_a_rate_that_explains_nothing_is_none_and_not_negative():
    works = [Work(1e9, 9e9), Work(2e9, 1e9), Work(3e9, 5e8)]
    found = fit_rates(works, [1.0, 2.1, 3.2])
    assert found.seconds_per_byte == 0
    assert found.seconds_per_operation == pytest.approx(1e-9, rel=0.1)


def test_a_bound_is_the_longer_of_both_kinds_of_work():
    rates = peak_rates("a100", "bf16", share=0.5)
    compute, memory = Work(312e12, 1.0), Work(1.0, 2.039e12)
    assert rates.bound(compute) == rates.bound(memory) == 2
    assert rates.seconds(Work(312e12, 2.039e12)) == 4


def test_a_precision_that_a_device_lacks_is_refused():
    with pytest.raises(ValueError, match="NVIDIA T4 has no bf16; choose --precision of no, fp16"):
        peak_rates("t4", "bf16")


def test_what_the_package_knows_is_what_the_committed_comparison_found():
    results = read_results(PLANNING)
    known = json.loads(devices.MEASURED.read_text(encoding="utf-8"))
    assert known == {name: results[name] for name in ("rates", "preparing")}
    assert {"cpu1", "cpu2"} <= known["rates"].keys()
    rows = results["rows"]
    assert {"s", "bytes"} == {row["unit"] for row in rows}
    assert len(rows) > 30
