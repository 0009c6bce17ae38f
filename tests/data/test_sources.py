import datetime
import gzip
import json
import random

import polars as pl
import pytest

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.reading import collect_interactions
from bert4rec_hf.data.sources import SOURCES
from bert4rec_hf.data.synthetic import SyntheticConfig


def review_2018(user, item, rating, time):
    review = {"overall": rating, "verified": True, "reviewTime": "01 5, 2014", "reviewerID": user}
    review |= {"asin": item, "style": {"Color:": " red"}, "reviewText": 'says "ok"\n'}
    return json.dumps(review | {"summary": "{fine}", "unixReviewTime": time})


def review_2023(user, item, rating, time):
    review = {"rating": rating, "title": "fine", "text": "", "images": [{"small": "a.jpg"}]}
    review |= {"asin": "B000000000", "parent_asin": item, "user_id": user, "timestamp": time}
    return json.dumps(review | {"helpful_vote": 0, "verified_purchase": True})


HEADER_2023 = "user_id,parent_asin,rating,timestamp"
HEADER_HISTORY = f"{HEADER_2023},history"

# File name, content, and the rows in it as (user, item, rating, seconds), oldest first.
FILES = {
    "ml100k": (
        "u.data",
        "7\t31\t4\t881250952\n8\t29\t3\t881250949\n",
        [("8", "29", 3, 881250949), ("7", "31", 4, 881250952)],
    ),
    "ml1m": (
        "ratings.dat",
        "7::31::4::978300762\n8::29::3::978300760\n",
        [("8", "29", 3, 978300760), ("7", "31", 4, 978300762)],
    ),
    "movielens_csv": (
        "ratings.csv",
        "userId,movieId,rating,timestamp\r\n7,31,2.5,1260759144\r\n8,29,3.0,1260759143\r\n",
        [("8", "29", 3, 1260759143), ("7", "31", 2.5, 1260759144)],
    ),
    "amazon_json": (
        "Shoes_5.json",
        f"{review_2018('A7', 'B31', 4.0, 1441324800)}\n{review_2018('A8', 'B29', 3.0, 1325376000)}",
        [("A8", "B29", 3, 1325376000), ("A7", "B31", 4, 1441324800)],
    ),
    "amazon2014_ratings_csv": (
        "ratings_Shoes.csv",
        "A7ABCDEFGHIJK,B000000031,4.0,1365811200\nA8ABCDEFGHIJK,0132793029,3.0,1341100800\n",
        [("A8ABCDEFGHIJK", "0132793029", 3, 1341100800)]
        + [("A7ABCDEFGHIJK", "B000000031", 4, 1365811200)],
    ),
    "amazon2018_ratings_csv": (
        "Shoes.csv",
        "B000000031,A7ABCDEFGHIJK,4.0,1365811200\n0132793029,A8ABCDEFGHIJK,3.0,1341100800\n",
        [("A8ABCDEFGHIJK", "0132793029", 3, 1341100800)]
        + [("A7ABCDEFGHIJK", "B000000031", 4, 1365811200)],
    ),
    "amazon2023_jsonl": (
        "Shoes.jsonl",
        f"{review_2023('AE7', 'B31', 4.0, 1658185117948)}\n"
        f"{review_2023('AE8', 'B29', 3.0, 1658185117947)}\n",
        [("AE8", "B29", 3, 1658185117.947), ("AE7", "B31", 4, 1658185117.948)],
    ),
    "amazon2023_rating_csv": (
        "Shoes.csv",
        f"{HEADER_2023}\nAE7,B31,4.0,1658185117948\nAE8,B29,3.0,1658185117947\n",
        [("AE8", "B29", 3, 1658185117.947), ("AE7", "B31", 4, 1658185117.948)],
    ),
    "recbole": (
        "shoes.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "7\t31\t4\t881250952.5\n8\t29\t3\t8.5e8\n",
        [("8", "29", 3, 850000000), ("7", "31", 4, 881250952.5)],
    ),
    "csv": (
        "any.csv",
        'who,"what, exactly",stars,when\n7,"a, b",4,20\n8,"say ""x""",3,10\n',
        [("8", 'say "x"', 3, 10), ("7", "a, b", 4, 20)],
    ),
    "jsonl": (
        "any.jsonl",
        '{"who": 7, "what, exactly": "a, b", "stars": 4, "when": 20, "more": [1]}\n'
        '{"when": 10.5, "who": "8", "what, exactly": "é", "stars": 3}\n',
        [("8", "é", 3, 10.5), ("7", "a, b", 4, 20)],
    ),
}
NAMED = {"user_column": "who", "item_column": "what, exactly"}
NAMED |= {"timestamp_column": "when", "rating_column": "stars"}


def read(source, path, **settings):
    config = PreparationConfig(**settings)
    return collect_interactions(SOURCES[source](path, config), config, path.name).frame


def write(path, content):
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("source", FILES)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_rows_of_the_format_are_read(tmp_path, source, ending):
    name, content, expected = FILES[source]
    named = NAMED if source in ("csv", "jsonl") else {}
    frame = read(source, write(tmp_path / f"{name}{ending}", content), min_rating=0, **named)
    assert frame.select(pl.col("user", "item").cast(str), "rating", "timestamp").rows() == expected


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("pairs", "u2 x\nu2 y\nu1 x\n"),
        ("pairs", "u2\tx\nu2\ty\nu1\tx\n"),
        ("sequences", "u2 x y\nu1 x\n"),
        ("sequences", "u2  x\ty \r\nu1 x\r\n"),
        (
            "recbole",
            "user_id:token\titem_id_list:token_seq\titem_id:token\nu2\tx\ty\nu1\t\tx\n",
        ),
        ("recbole", "user_id:token\titem_id:token\nu2\tx\nu2\ty\nu1\tx\n"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_files_without_times_are_in_order(tmp_path, source, content, ending):
    order = "file" if source == "recbole" else "time"
    frame = read(source, write(tmp_path / f"beauty.txt{ending}", content), order=order)
    expected = [("u2", "x"), ("u2", "y"), ("u1", "x")]
    assert frame.select(pl.col("user", "item").cast(str)).rows() == expected


def test_parquet_may_hold_numbers_and_datetimes(tmp_path):
    noon = datetime.datetime(1970, 1, 2, 12, tzinfo=datetime.UTC)
    rows = {"user": [7, 8], "item": ["a", "b"], "timestamp": [noon, noon.replace(hour=0)]}
    pl.DataFrame(rows).write_parquet(tmp_path / "any.parquet")
    frame = read("parquet", tmp_path / "any.parquet")
    assert frame.select(pl.col("user", "item").cast(str), "timestamp").rows() == [
        ("8", "b", 86_400),
        ("7", "a", 129_600),
    ]


@pytest.mark.parametrize("source", ["csv", "jsonl"])
def test_a_long_gzipped_file_of_ties_keeps_its_order(tmp_path, source):
    items = random.Random(0).sample(range(150_001), 150_001)
    lines = {"csv": "u,{},7", "jsonl": '{{"user": "u", "item": {}, "timestamp": 7}}'}[source]
    rows = "\n".join(lines.format(item) for item in items)
    header = "user,item,timestamp\n" if source == "csv" else ""
    frame = read(source, write(tmp_path / "ties.gz", header + rows))
    assert frame["item"].cast(str).cast(int).to_list() == items


def test_an_empty_timestamp_column_means_the_order_of_the_file(tmp_path):
    path = write(tmp_path / "a.csv", "user,item\nb,x\na,y\n")
    frame = read("csv", path, timestamp_column="")
    assert frame["user"].to_list() == ["b", "a"]
    assert "timestamp" not in frame.columns


def test_the_three_files_of_amazon_2023_become_one_with_its_split(tmp_path):
    rows = {"train": "AE7,B31,4.0,1000,", "valid": "AE7,B29,4.0,3000,B31"}
    rows["test"] = "AE7,B23,4.0,2000,B31 B29"
    for part, row in rows.items():
        write(tmp_path / f"Shoes.{part}.csv", f"{HEADER_HISTORY}\n{row}\n")
    frame = read("amazon2023_last_out", tmp_path / "Shoes.train.csv")
    assert frame.select(pl.col("item", "split").cast(str), "timestamp").rows() == [
        ("B31", "train", 1.0),
        ("B23", "test", 2.0),
        ("B29", "validation", 3.0),
    ]


def test_synthetic_interactions_know_what_is_possible():
    config = PreparationConfig(synthetic=SyntheticConfig(num_users=11, num_items=211))
    raw = SOURCES["synthetic"](None, config)
    assert collect_interactions(raw, config).frame["user"].n_unique() == 11
    assert 0 < raw.best_possible["hit_rate@10"] < 1


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("csv", "", "raw.txt is empty"),
        ("csv", "\n\n", "raw.txt is empty, or begins with an empty line"),
        ("csv", "user;item;timestamp\na;b;3\n", "no column 'user', .* are 'user;item;timestamp'"),
        ("csv", "user,thing,timestamp\na,b,3\n", "no column 'item'; its columns are 'user', 'thi"),
        ("csv", "user,item,timestamp\n", "raw.txt has no interactions"),
        ("csv", "user,item,timestamp\na,,3\n", "line 2 of raw.txt has no item"),
        ("movielens_csv", "userId,movieId\n1,2\n", "has no column 'timestamp'"),
        ("jsonl", '{"user": "a", "item": "b"}\n', "has no column 'timestamp'; .* 'user', 'item'"),
        ("jsonl", "a,b,3\n", "the first line of raw.txt is not a JSON object, but 'a,b,3'"),
        ("jsonl", "[1, 2]\n", "the first line of raw.txt is not a JSON object"),
        (
            "ml100k",
            "1,2,3,4\n",
            r"is not 4 columns between '\\t' \(user, item, rating, timestamp\)",
        ),
        (
            "ml100k",
            "1\t2\t3\t4\n1\t2\n",
            r"line 2 of raw.txt has 2 fields, not 4 as columns are named: '1\\t2'",
        ),
        ("ml1m", "1::2::3\n", "is not 4 columns between '::' .*: '1::2::3'"),
        ("pairs", "1,2\n", "is not 2 columns between ' '"),
        ("sequences", "u1 x\nu2\n", "line 2 of raw.txt has no item"),
        ("recbole", "user_id\titem\n1\t2\n", "no column 'item_id'; its columns are 'user_id', "),
        (
            "recbole",
            "user_id\titem_id_list\titem_id\nu\tx\ty\nu\tx y\tz\n",
            "user 'u' occurs on line 2 and again: line 3 of raw.txt",
        ),
        ("amazon2018_ratings_csv", "A7ABCDEFGHIJK,B000000031,4,9\n", "'A7ABCDEFGHIJK' stands wh"),
        ("amazon2014_ratings_csv", "B000000031,A7ABCDEFGHIJK,4,9\n", "'A7ABCDEFGHIJK' stands wh"),
        ("amazon2023_last_out", "x\n", "name the file of the train split, .* got raw.txt"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path, source, content, message):
    with pytest.raises(ValueError, match=message):
        read(source, write(tmp_path / "raw.txt", content))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*nothing.dat"):
        read("ml1m", tmp_path / "nothing.dat")


def test_all_three_files_of_a_given_split_must_be_there(tmp_path):
    write(tmp_path / "Shoes.train.csv", f"{HEADER_HISTORY}\nAE7,B31,4.0,1000,\n")
    with pytest.raises(FileNotFoundError, match="there is no file .*Shoes.valid.csv"):
        read("amazon2023_last_out", tmp_path / "Shoes.train.csv")


def test_every_format_of_the_table_is_tested_here():
    others = {"pairs", "sequences", "parquet", "amazon2023_last_out", "synthetic"}
    assert FILES.keys() | others == SOURCES.keys()
