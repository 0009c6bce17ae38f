"""The engine spark beside that of one machine, with Spark in local mode."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.data.spark_engine import prepare_on_spark

is_there = importlib.util.find_spec("pyspark") is not None and shutil.which("java") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_there, reason="needs pyspark (the extra spark) and Java 17"),
]
LOCAL = "--master local[2] --conf spark.ui.enabled=false --conf spark.sql.shuffle.partitions=2"
VARIABLES = {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_SUBMIT_ARGS": f"{LOCAL} pyspark-shell"}


@pytest.fixture(scope="module", autouse=True)
def spark():
    """Two workers on this machine, started once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        yield
        from pyspark.sql import SparkSession

        session = SparkSession.getActiveSession()
        if session:
            session.stop()


def draw(seed, num_rows=901):
    """Interactions with everything that can be wrong or double in some of them."""
    generator = np.random.default_rng(seed)

    def spoil(column, share, *values):
        is_spoiled = generator.random(num_rows) < share
        return [
            generator.choice(np.array(values, dtype=object)) if spoiled else each
            for each, spoiled in zip(column, is_spoiled, strict=True)
        ]

    users = [f"u{number}" for number in generator.zipf(1.4, size=num_rows) % 71]
    items = [f"i{number}" for number in generator.zipf(1.3, size=num_rows) % 53]
    times = (generator.integers(1, 90, size=num_rows) * 86_400 + 1_500_000_000).tolist()
    columns = {
        "user": spoil(users, 0.03, None, "", "  ", "nan", "-1", " u3 "),
        "item": spoil(items, 0.03, None, "NULL", "i4 ", "é", "\U0001f600"),
        "timestamp": spoil(times, 0.02, None),
        "rating": spoil(generator.integers(1, 6, size=num_rows).astype(float).tolist(), 0.02, None),
        "event": generator.choice(["buy", "view", "view"], size=num_rows).tolist(),
    }
    return pl.DataFrame(columns)


def whole_numbers(frame):
    """Names like 7 and 7.0 of the same user, and times as ISO dates."""
    numbers = pl.col("user").str.extract(r"(\d+)")
    names = pl.when(pl.col("rating") > 3).then(numbers + ".0").otherwise(numbers)
    start = datetime(2015, 1, 1, tzinfo=UTC)
    dates = [(start + timedelta(hours=hour % 700)).isoformat() for hour in range(frame.height)]
    return frame.with_columns(user=names, timestamp=pl.Series(dates))


def unsigned(frame):
    """Numbers of the types in which public datasets have them."""
    numbers = pl.col("user").str.extract(r"(\d+)").cast(pl.UInt64)
    ticks = ((pl.col("timestamp") - 1_500_000_000) / 5).cast(pl.UInt32)
    return frame.with_columns(user=numbers, timestamp=ticks)


CASES = [
    (0, 1, {"drop_incomplete": True}),
    (1, 3, {"drop_incomplete": True, "where": ["event=view"], "min_rating": 2}),
    (2, 2, {"drop_incomplete": True, "duplicates": "keep_first", "min_interactions": 4}),
    (3, 5, {"drop_incomplete": True, "duplicates": "keep_last", "order": "file"}),
    (4, 2, {"drop_incomplete": True, "split": "temporal", "test_last": "9d", "gap": "3d"}),
    (5, 2, {"drop_incomplete": True, "split": "none", "where": ["event!=buy"]}),
    (6, 3, {"drop_incomplete": True, "prepare": whole_numbers}),
    (7, 2, {"drop_incomplete": True, "prepare": unsigned, "min_interactions": 2}),
]


@pytest.mark.parametrize(("seed", "num_shards", "settings"), CASES)
def test_both_engines_say_the_same_of_the_same_files(tmp_path, seed, num_shards, settings):
    settings = dict(settings)
    frame = settings.pop("prepare", lambda frame: frame)(draw(seed))
    folder = tmp_path / "raw [of] shops"  # with what Spark takes for a pattern
    for place, start in enumerate(range(0, frame.height, 301)):
        path = folder / f"day={place}" / "part 0.parquet"
        path.parent.mkdir(parents=True)
        blob = tmp_path / f"blob-{place}"
        frame[start : start + 301].write_parquet(blob, row_group_size=50)
        path.symlink_to(blob)  # as in the cache of a hub
    config = PreparationConfig(**settings)
    whole = prepare_dataset("parquet", folder, tmp_path / "whole", config)
    shards = prepare_on_spark("parquet", folder, tmp_path / "shards", config, num_shards)
    assert shards.pop("versions").keys() - whole.pop("versions").keys() == {"pyspark"}
    assert shards == whole
    assert sum(whole["dropped"].values()) > 0
    ours, theirs = (load_prepared(tmp_path / name, verify=True) for name in ("shards", "whole"))
    assert ours.fingerprint == theirs.fingerprint
    for name in ("train", "validation", "test"):
        its = [pl.from_arrow(part_of(tmp_path / each, name)) for each in ("shards", "whole")]
        assert its[0].equals(its[1])


def part_of(folder, name):
    """A split as `datasets` loads it, with its users."""
    import datasets

    from bert4rec_hf.data.verification import open_part

    part = open_part(folder / name)
    assert isinstance(part, datasets.Dataset)
    return part.with_format("arrow")[:]


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({}, {}),
        ({"drop_incomplete": True}, {"timestamp": 1.5e18}),
        ({"drop_incomplete": True}, {"timestamp": -5}),
        ({"drop_incomplete": True}, {"item": "[PAD]"}),
        ({"drop_incomplete": True, "min_interactions": 500}, {}),
        ({"drop_incomplete": True, "missing": ["nan", "-1", *(f"u{n}" for n in range(71))]}, {}),
        ({"drop_incomplete": True, "user_column": "customer"}, {}),
        ({"drop_incomplete": True, "where": ["kind=buy"]}, {}),
        (
            {"drop_incomplete": True, "split": "temporal"}
            | {"validation_time": "2019-01-01", "test_time": "2020-01-01"},
            {},
        ),
    ],
)
def test_both_engines_refuse_alike(tmp_path, settings, change):
    frame = draw(11)
    columns = {
        name: pl.when(pl.int_range(pl.len()) == 333).then(pl.lit(value)).otherwise(pl.col(name))
        for name, value in change.items()
    }
    frame.with_columns(**columns).write_parquet(tmp_path / "raw.parquet")
    said = []
    for prepare in (prepare_dataset, prepare_on_spark):
        with pytest.raises(ValueError, match=r"raw.parquet|leaves") as error:
            prepare(
                "parquet",
                tmp_path / "raw.parquet",
                tmp_path / "made",
                PreparationConfig(**settings),
            )
        said.append(str(error.value))
    assert said[0] == said[1]
    assert [path.name for path in tmp_path.iterdir()] == ["raw.parquet"]


def test_an_address_is_read_like_a_folder(tmp_path):
    (tmp_path / "raw").mkdir()
    frame = draw(12)
    for place in (2, 10, 1):
        frame[place * 90 : place * 90 + 50].write_parquet(tmp_path / "raw" / f"{place}.parquet")
    config = PreparationConfig(drop_incomplete=True)
    whole = prepare_dataset("parquet", tmp_path / "raw", tmp_path / "whole", config)
    address = (tmp_path / "raw").as_uri()
    shards = prepare_on_spark("parquet", address, tmp_path / "shards", config)
    assert shards["fingerprint"] == whole["fingerprint"]
    assert shards["file"] == "raw"


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "raw.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"raw.parquet: Spark could not read or prepare it: .+"):
        prepare_on_spark(
            "parquet", tmp_path / "raw.parquet", tmp_path / "made", PreparationConfig()
        )
    assert not (tmp_path / "made").exists()


def test_a_preparation_that_was_killed_leaves_nothing_and_is_done_again(tmp_path):
    draw(13, num_rows=20_011).write_parquet(tmp_path / "raw.parquet")
    output = tmp_path / "made" / "shop"
    command = [sys.executable, "-m", "bert4rec_hf.commands.main", "prepare", "parquet"]
    command += [tmp_path / "raw.parquet", "--engine", "spark", "--shards", "40"]
    command += ["--drop-incomplete", "--output", output]
    variables = os.environ | VARIABLES
    process = subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL)
    try:
        while not list(tmp_path.rglob("data-*.arrow")):
            assert process.poll() is None
            time.sleep(0.05)
        assert not output.exists()
        assert list(output.parent.glob(".unfinished-shop-*"))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not output.exists()
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    config = PreparationConfig(drop_incomplete=True)
    whole = prepare_dataset("parquet", tmp_path / "raw.parquet", tmp_path / "whole", config)
    assert re.search(f"fingerprint {whole['fingerprint']}", done.stdout)
    assert [path.name for path in output.parent.iterdir()] == ["shop"]


def test_a_user_of_a_million_events_is_prepared(tmp_path):
    generator = np.random.default_rng(17)
    heavy = {"user": np.full(1_000_003, 7), "item": generator.integers(997, size=1_000_003)}
    others = {
        "user": generator.integers(101, size=3_001),
        "item": generator.integers(997, size=3_001),
    }
    frame = pl.concat([pl.DataFrame(heavy), pl.DataFrame(others)])
    times = generator.integers(1, 500_000, size=frame.height)
    frame.with_columns(timestamp=times).write_parquet(tmp_path / "raw.parquet")
    config = PreparationConfig()
    whole = prepare_dataset("parquet", tmp_path / "raw.parquet", tmp_path / "whole", config)
    shards = prepare_on_spark("parquet", tmp_path / "raw.parquet", tmp_path / "shards", config, 4)
    assert shards["lengths"]["max"] > 1_000_003
    assert shards["fingerprint"] == whole["fingerprint"]
