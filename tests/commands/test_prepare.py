import re
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import polars as pl
import pytest

from bert4rec_hf.commands import prepare
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
    command = prepare.__doc__.splitlines()[2].split()
    assert command[:2] == ["bert4rec", "prepare"]
    command = [sys.executable, SCRIPT, *command[2:-1], str(tmp_path / "synthetic")]
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


def test_everything_can_be_left_to_train_on(monkeypatch, tmp_path, capsys):
    arguments = ["--num-users", 31, "--max-length", 20, "--num-items", 50, "--split", "none"]
    run(monkeypatch, "synthetic", "--output", tmp_path / "made", *arguments)
    dataset = load_prepared(tmp_path / "made")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (31, 0, 0)
    assert re.search(r"^test +0 histories$", capsys.readouterr().out, re.MULTILINE)


def test_a_file_with_named_columns_is_read(monkeypatch, tmp_path):
    rows = "".join(f"{user};x{n},{n}\n" for user in "ab" for n in range(1, 4))
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
    assert sorted(options) == sorted(
        name.replace("_", "-")
        for name in settings | {"output", *prepare.HUB_OPTIONS, *prepare.ENGINE_OPTIONS}
    )
    assert "amazon2023_last_out" in text
    assert "temporal" in text


def leave_only(count, interactions):
    """As many interactions as asked for: of the longest histories, the first is left out."""
    firsts = interactions["user"].is_first_distinct()
    return interactions.filter(~firsts | (firsts.cum_sum() > interactions.height - count))


def write_movielens_csv(interactions, path):
    """Write interactions as the csv files of MovieLens: numbers for names, user by user."""
    number = pl.all().str.extract(r"(\d+)").cast(pl.Int32) + 1
    names = interactions.select("user", "item").select(number)
    columns = {"userId": names["user"], "movieId": names["item"], "rating": pl.lit(3.5)}
    ratings = interactions.select(**columns, timestamp="timestamp")
    ratings.sort("userId", "movieId").write_csv(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "name", "counts", "shape", "max_gb"),
    [
        (  # 1.1 GB
            "amazon_json",
            "Electronics_5.json.gz",
            {"users": 728_719, "items": 160_052, "interactions": 6_739_590},
            {"mean_length": 9.3, "max_length": 50},
            1.2,
        ),
        (  # 0.5 GB
            "movielens_csv",
            "ratings.csv",
            {"users": 138_493, "items": 26_744, "interactions": 20_000_263},
            {"mean_length": 144.5, "max_length": 3_000, "zipf_exponent": 1.0},
            1.6,
        ),
    ],
    ids=["Amazon Electronics 5-core of 2018", "MovieLens-20M"],
)
def test_a_file_of_full_size_needs_little_memory(tmp_path, source, name, counts, shape, max_gb):
    """Stand-ins with the counts of the real files, in their format."""
    write = {"amazon_json": write_amazon_json, "movielens_csv": write_movielens_csv}[source]
    config = SyntheticConfig(num_users=counts["users"], num_items=counts["items"], **shape)
    interactions = generate_interactions(config).interactions
    write(leave_only(counts["interactions"], interactions), tmp_path / name)
    command = [sys.executable, SCRIPT, source, tmp_path / name, "--output", tmp_path / "made"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    for what, count in counts.items():
        assert re.search(rf"^{what} +{count:,} of {count:,}$", ran.stdout, re.MULTILINE), ran.stdout
    peak = float(re.search(r"([\d.]+) GB at the peak", ran.stdout)[1])
    assert peak < max_gb, ran.stdout
    dataset = load_prepared(tmp_path / "made")
    assert (len(dataset.train), dataset.num_items) == (counts["users"], counts["items"])
