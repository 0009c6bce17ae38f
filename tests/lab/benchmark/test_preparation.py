import pytest

from bert4rec_hf.commands import benchmark_prepare
from bert4rec_hf.lab.benchmark.plain_reading import read_plainly
from bert4rec_hf.lab.benchmark.preparation import (
    FORMATS,
    run_preparation,
    summarize,
    write_interactions,
)


def test_both_read_the_same_files(tmp_path):
    write_interactions(tmp_path, 2_003)
    files = sorted(f"file.{ending}" for ending in FORMATS)
    assert {read_plainly(tmp_path / name) for name in files} == {100}
    assert run_preparation(tmp_path / "file.jsonl.gz")["peak_bytes"] > 1e7
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_the_summary_compares_medians():
    turns = [("floor", 2.0, 100), ("floor", 4.0, 100), ("floor", 90.0, 100), ("prepare", 6.0, 130)]
    rows = [
        {"format": ending, "contestant": name, "seconds": seconds}
        | {"cpu_seconds": seconds / 2, "peak_bytes": peak}
        for ending in FORMATS
        for name, seconds, peak in turns
    ]
    summary = summarize(rows)
    assert summary["csv"]["time_ratio"] == summary["jsonl.gz"]["cpu_ratio"] == 1.5
    assert summary["parquet"]["memory_ratio"] == 1.3


def test_results_are_not_written_over(tmp_path):
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(SystemExit):
        benchmark_prepare.main(["--output", str(tmp_path / "old.json")])
    assert (tmp_path / "old.json").read_text() == "{}"
