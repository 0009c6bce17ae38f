import numpy as np
import polars as pl
import pytest

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset


@pytest.fixture
def frame():
    generator = np.random.default_rng(3)
    columns = {
        "user": generator.integers(13, size=307).astype(str),
        "item": generator.integers(17, size=307).astype(str),
        "timestamp": generator.integers(1, 29, size=307),  # many ties: the order of rows decides
        "event": generator.choice(["buy", "view"], size=307),
    }
    return pl.DataFrame(columns)


def prepare(tmp_path, source, path, **settings):
    name = f"made-{len(list(tmp_path.iterdir()))}"
    return prepare_dataset(source, path, tmp_path / name, PreparationConfig(**settings))


@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
def test_a_folder_is_read_like_one_file_with_the_same_rows(tmp_path, frame, source):
    def write(rows, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        names = {"csv": "write_csv", "jsonl": "write_ndjson", "parquet": "write_parquet"}
        getattr(rows, names[source])(path)

    write(frame, tmp_path / f"whole.{source}")
    folder = tmp_path / "orders"
    for place, start in enumerate(range(0, 307, 101)):
        write(frame[start : start + 101], folder / f"day={place}" / f"part.{source}")
    (folder / "_SUCCESS").touch()
    write(frame[:5], folder / "_temporary" / f"part.{source}")
    write(frame[:5], folder / f".part.{source}")
    whole = prepare(tmp_path, source, tmp_path / f"whole.{source}", where=["event=buy"])
    parts = prepare(tmp_path, source, folder, where=["event=buy"])
    assert parts["fingerprint"] == whole["fingerprint"]
    assert parts["dropped"] == whole["dropped"]
    assert parts["rows"] == 307
    assert parts["file"] == "orders"


def test_a_file_in_which_no_row_is_wanted_is_not_an_error(tmp_path, frame):
    folder = tmp_path / "orders"
    folder.mkdir()
    for event in ("buy", "view"):
        frame.filter(pl.col("event") == event).write_csv(folder / f"{event}.csv")
    statistics = prepare(tmp_path, "csv", folder, where=["event=view"])
    assert statistics["dropped"]["where"] == frame["event"].to_list().count("buy")
    dated = frame.with_columns(timestamp=pl.datetime(2015, 3, "timestamp").cast(str))
    for event in ("buy", "view"):  # the first file says nothing of how times are written
        dated.filter(pl.col("event") == event).write_csv(folder / f"{event}.csv")
    assert prepare(tmp_path, "csv", folder, where=["event=view"])["notes"] == [
        "times: dates, from 2015-03-01 00:00:00 to 2015-03-28 00:00:00 UTC"
    ]
    with pytest.raises(ValueError, match="no row of orders has event=sell; .* 'buy', 'view'"):
        prepare(tmp_path, "csv", folder, where=["event=sell"])


def test_a_source_of_incomplete_rows_alone_says_so(tmp_path):
    (tmp_path / "a.csv").write_text("user,item,timestamp\n,x,1\n,y,2\n")
    with pytest.raises(ValueError, match="a.csv has no interactions left; .*: missing user 2"):
        prepare(tmp_path, "csv", tmp_path / "a.csv", drop_incomplete=True)


def test_a_row_that_cannot_be_used_is_named_with_its_file(tmp_path):
    folder = tmp_path / "orders"
    folder.mkdir()
    (folder / "a.csv").write_text("user,item,timestamp\nann,x,1\n")
    (folder / "b.csv").write_text("item,user,timestamp\nx,ann,2\n,ann,3\n")
    with pytest.raises(ValueError, match="line 3 of b.csv has no item: .*'user': 'ann'"):
        prepare(tmp_path, "csv", folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ml1m", "the source ml1m is read from one file, and .*orders is a folder; .* parquet"),
        ("parquet", "orders has no files that end with .parquet"),
        ("csv", "orders has no column 'item'; its columns are 'user', 'timestamp'"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(tmp_path, source, message):
    folder = tmp_path / "orders"
    folder.mkdir()
    (folder / "a.csv").write_text("user,item,timestamp\nann,x,1\n")
    (folder / "b.csv").write_text("user,thing,timestamp\nann,x,1\n")
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, source, folder)
