"""What the engine spark does without Spark: what it refuses, and what its workers run."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from bert4rec_hf.commands import prepare
from bert4rec_hf.data import spark_histories
from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.data.rows import parse_conditions
from bert4rec_hf.data.several import Files
from bert4rec_hf.data.shards import open_shards, register_shards
from bert4rec_hf.data.spark_engine import check_spark, locate, prepare_on_spark
from bert4rec_hf.data.spark_histories import ShardWriter, whole_users, write_empty
from bert4rec_hf.data.spark_rows import RowReader
from bert4rec_hf.data.verification import shards_fingerprint
from bert4rec_hf.data.vocabulary import vocabulary_fingerprint
from bert4rec_hf.data.writing import write_beside


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "by_user"}, "has the splits leave_one_out, temporal, none, got by_user; leave"),
        ({"vocabulary": "runs/shop"}, "does not know vocabulary=runs/shop; leave out --engine"),
        ({"validation_users": 7}, "does not know validation_users=7"),
        ({"explode": "events"}, "does not know explode=events"),
        ({"titles": "items.csv"}, "does not know titles=items.csv"),
    ],
)
def test_what_spark_does_not_do_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        check_spark("parquet", PreparationConfig(**settings))


def test_other_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match="reads the source parquet, got csv; leave out --engine"):
        prepare_on_spark("csv", tmp_path, tmp_path / "made", PreparationConfig())
    with pytest.raises(FileNotFoundError, match="there is no file .*nothing.parquet"):
        locate(tmp_path / "nothing.parquet")


def test_files_are_found_by_what_their_links_lead_to(tmp_path):
    """As in the cache of a hub, where files lie by their hash."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "f00d").touch()
    (tmp_path / "week.parquet").symlink_to(tmp_path / "blobs" / "f00d")
    files = locate(Files("ann/shop weeks", [tmp_path / "week.parquet"]))
    assert files == ("ann/shop weeks", [str(tmp_path / "blobs" / "f00d")], ["week.parquet"])
    assert locate(tmp_path / "week.parquet")[1:] == files[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["csv", "a.csv", "--engine", "spark"], "reads the source parquet, got csv"),
        (["parquet", "s3a://shop/orders"], "s3a://shop/orders is read by --engine spark"),
        (["parquet", "a.parquet", "--shards", "3"], "shards=3 applies to --engine spark only"),
        (["parquet", "a.parquet", "--engine", "spark", "--shards", "-1"], "0 or more, got -1"),
    ],
)
def test_the_command_says_what_goes_with_spark(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        prepare.main([*arguments, "--output", str(tmp_path / "made")])


@pytest.mark.parametrize(("module", "way"), [("pyspark", "pip install"), ("java", "apt-get")])
def test_what_is_missing_is_named(tmp_path, monkeypatch, module, way):
    found = {"pyspark": object(), "java": "/usr/bin/java"} | {module: None}
    monkeypatch.delenv("JAVA_HOME", raising=False)
    engine = "bert4rec_hf.data.spark_engine"
    monkeypatch.setattr(f"{engine}.find_spec", found.get)
    monkeypatch.setattr(f"{engine}.shutil.which", found.get)
    pl.DataFrame({"user": ["a"], "item": ["x"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=f"{module}.*{way}"):
        prepare_on_spark("parquet", tmp_path / "a.parquet", tmp_path / "made", PreparationConfig())


def test_a_row_is_read_with_why_it_is_not_used():
    rows = {
        "user": ["ann", " bob", "-1", "eve", "eve", "kim"],
        "item": ["7.0", "8", "9", "x", "y", "[MASK]"],
        "timestamp": [20150301.0, 2e9, 3.0, None, -1.0, 3.0],
        "where 0": [1, 1, 1, 1, 1, 1],
        "file": ["file:/a%20b/1.parquet"] * 6,
        "row": range(6),
    }
    extra = {name: [values[0]] for name, values in rows.items()} | {"where 0": [2]}
    table = pl.concat([pl.DataFrame(rows), pl.DataFrame(extra)], how="vertical_relaxed")
    numbers = {"/a b/1.parquet": 3}
    reader = RowReader(PreparationConfig(), parse_conditions(["kind=1"]), numbers, ())
    (batch,) = table.rechunk().to_arrow().to_batches()
    read = pl.DataFrame(pl.from_arrow(pa.Table.from_batches(list(reader.read([batch])))))
    assert read["line"].to_list() == [(3 << 40) + row for row in range(1, 7)] + [0]
    assert read["reason"].to_list() == [
        "",
        "",
        "has no user",
        "has no timestamp",
        "has a negative timestamp",
        "has an item named '[MASK]' like a special token, rename it",
        "where",
    ]
    assert read["user"].to_list() == ["ann", "bob", None, "eve", "eve", "kim", None]
    assert read["user_blank"].to_list() == [None, " bob", None, None, None, None, None]
    assert read["item_form"].to_list()[:4] == [2, 1, 1, 0]
    assert read["size"].to_list() == [0, 1, 0, -1, -1, 0, None]
    assert read["is_day"].to_list()[:2] == [True, False]
    assert read["rows"].to_list() == [1] * 7


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_tables_are_cut_where_a_user_ends(monkeypatch, chunk):
    monkeypatch.setattr(spark_histories, "CHUNK_ROWS", chunk)
    users = "aabbbbbbbcdddd"
    table = pl.DataFrame({"user": list(users), "id": range(14)})
    batches = [
        each
        for start in range(0, 14, 3)
        for each in table[start : start + 3].to_arrow().to_batches()
    ]
    tables = list(whole_users(batches))
    assert pl.concat(tables).equals(table)
    ends = ["".join(each["user"].unique(maintain_order=True)) for each in tables]
    assert sorted("".join(ends)) == ["a", "b", "c", "d"]  # each user is in one table
    assert len(tables) == (1 if chunk == 100 else len(ends))


@pytest.mark.parametrize("settings", [{}, {"split": "temporal", "test_last": "9s", "gap": "2s"}])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_shards_hold_what_one_machine_writes(tmp_path, settings, num_shards):
    generator = np.random.default_rng(5)
    columns = {
        "user": generator.integers(31, size=501).astype(str),
        "item": generator.integers(23, size=501).astype(str),
        "timestamp": generator.integers(1, 61, size=501),
    }
    frame = pl.DataFrame(columns)
    frame.write_parquet(tmp_path / "raw.parquet")
    config = PreparationConfig(**settings)
    whole = prepare_dataset("parquet", tmp_path / "raw.parquet", tmp_path / "whole", config)

    items = sorted(set(columns["item"]))
    numbered = frame.with_columns(
        id=pl.Series([items.index(item) + 2 for item in columns["item"]]),
        timestamp=pl.col("timestamp").cast(float),
    ).sort("user", "timestamp", maintain_order=True)
    users = sorted(set(columns["user"]))
    if settings:
        last = float(max(columns["timestamp"]))
        after = np.nextafter(last - 9, np.inf)
        config = replace(config, test_last="", test_time=repr(float(after)))
        config = replace(config, validation_time=repr(float(after - 9)))
    folder = tmp_path / "shards"
    write_empty(folder)
    writer = ShardWriter(folder, config, num_shards)
    told = []
    for place, part in enumerate(np.array_split(users, num_shards)):
        rows = numbered.filter(pl.col("user").is_in(part.tolist()))
        told.append(writer.write_shard(rows.to_arrow().to_batches(max_chunksize=7), place))
    fingerprint = shards_fingerprint(vocabulary_fingerprint(items), open_shards(folder))
    assert fingerprint == whole["fingerprint"]
    copies = sum(each["facts"]["exact copies"] for each in told)
    assert copies == whole["repeated"]["exact copies"] > 0
    json.dumps(told)

    register_shards(folder, fingerprint)
    write_beside(folder, items, {}, whole)
    dataset = load_prepared(folder, verify=True)
    assert dataset.fingerprint == fingerprint
    assert len(list(folder.glob("train/*.arrow"))) == num_shards


def test_files_of_killed_workers_are_removed(tmp_path):
    write_empty(tmp_path / "made")
    (tmp_path / "made" / "test" / ".data-00000-of-00001.arrow-7").touch()
    register_shards(tmp_path / "made", "feed")
    assert not list(tmp_path.rglob(".data-*"))


def test_a_shard_that_fails_leaves_no_file(tmp_path):
    write_empty(tmp_path / "made")
    config = PreparationConfig(split="temporal", validation_time="1", test_time="2", gap="?")
    rows = pl.DataFrame({"user": ["a"] * 3, "id": [2, 3, 4], "timestamp": [0.5, 1.5, 2.5]})
    with pytest.raises(ValueError, match="gap must be a span of time"):
        ShardWriter(tmp_path / "made", config, 1).write_shard(rows.to_arrow().to_batches(), 0)
    assert not list((tmp_path / "made").rglob("*data-*"))
