import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from bert4rec_hf.lab.benchmark.serving_load import measure_load  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0, 40])
def test_a_server_is_measured_and_stopped(rate):
    measured = measure_load(num_items=50, hidden_size=12, num_requests=40, rate=rate)
    assert measured["requests"] == 40
    times = measured["milliseconds"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
    assert len(measured["resident_bytes"]) == 11
    assert measured["exit_code"] in (0, -15)  # uvicorn ends by the signal, after its shutdown
