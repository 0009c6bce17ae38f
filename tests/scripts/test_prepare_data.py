import re
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.data.synthetic import (
    SyntheticConfig,
    generate_interactions,
    write_amazon_json,
)

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_data.py"
CONFIGS = (PreparationConfig, SyntheticConfig)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_first_command_of_the_help_works_from_the_checkout(tmp_path):
    command = SCRIPT.read_text(encoding="utf-8").splitlines()[2].split()
    assert command[:2] == ["python", "scripts/prepare_data.py"]
    command = [sys.executable, *command[1:-1], str(tmp_path / "synthetic")]
    ran = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True, check=True)
    dataset = load_prepared(tmp_path / "synthetic")
    assert f"fingerprint {dataset.fingerprint}" in ran.stdout
    assert f"{len(dataset.test):,} histories" in ran.stdout
    assert ran.stderr == ""


def test_settings_reach_the_preparation(monkeypatch, tmp_path, capsys):
    arguments = ["--num-users", 301, "--max-length", 31, "--num-items", 101, "--seed", 3]
    arguments += ["--split", "by_user", "--validation-users", 11, "--test-users", 7]
    arguments += ["--min-interactions", 5, "--duplicates", "keep_first"]
    run(monkeypatch, "synthetic", "--output", tmp_path / "made", *arguments)
    dataset = load_prepared(tmp_path / "made")
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [283, 11, 7]
    settings = dataset.statistics["settings"]
    assert (settings["min_interactions"], settings["duplicates"]) == (5, "keep_first")
    assert settings["seed"] == settings["synthetic"]["seed"] == 3
    assert "users                  301 of 301\n" in capsys.readouterr().out


def test_a_file_with_named_columns_is_read(monkeypatch, tmp_path):
    rows = "".join(f"{user};x{n},{n}\n" for user in "ab" for n in range(3))
    (tmp_path / "any.csv").write_text(f"who;what,when\n{rows}".replace(";", ","))
    columns = ["--user-column", "who", "--item-column", "what", "--timestamp-column", "when"]
    run(monkeypatch, "csv", tmp_path / "any.csv", "--output", tmp_path / "made", *columns)
    assert load_prepared(tmp_path / "made").num_items == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ml1n", "x"], "error: there is no source 'ml1n'; did you mean ml1m"),
        (["ml1m", "nowhere.dat"], "error: there is no file nowhere.dat"),
        (["synthetic", "--num-users", "0"], "error: .*num_users.* must be at least 1, got 0"),
        (["synthetic", "--duplicates", "none"], "error: .*'duplicates'.*got none"),
    ],
)
def test_an_error_is_one_message_and_leaves_nothing(monkeypatch, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        run(monkeypatch, *arguments, "--output", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_every_setting_has_its_option(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--help")
    text = capsys.readouterr().out
    settings = {field.name for config in CONFIGS for field in fields(config)} - {"synthetic"}
    options = re.findall("^  --([a-z-]+)", text, flags=re.MULTILINE)
    assert sorted(options) == sorted(name.replace("_", "-") for name in settings | {"output"})
    assert "amazon2023_last_out" in text
    assert "temporal" in text


@pytest.mark.slow
def test_a_file_of_the_size_of_electronics_needs_little_memory(tmp_path):
    """A stand-in of Amazon Electronics 5-core of 2018: 1.2 GB gzipped, 6.7 million reviews."""
    config = SyntheticConfig(num_users=728_719, num_items=160_052, mean_length=9.3, max_length=50)
    interactions = generate_interactions(config).interactions
    raw = tmp_path / "Electronics_5.json.gz"
    write_amazon_json(interactions, raw)
    arguments = ["amazon_json", raw, "--output", tmp_path / "made", "--min-interactions", 5]
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = float(re.search(r"([\d.]+) GB at the peak", ran.stdout)[1])
    assert peak < 1.2, ran.stdout
    assert f"of {interactions.height:,}" in ran.stdout
