import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from bert4rec_hf.commands.recommend import main
from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.recommender import Recommender
from bert4rec_hf.serving.shards import Shards

ROOT = Path(__file__).parents[2]
ITEMS = [f"item {number}" for number in range(301)]
TITLES = {item: f"No. {item[5:]}" for item in ITEMS[::2]}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with a model and the orders of 700 users, some of which nobody can know."""
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("shop")
    config = BERT4RecConfig(
        vocab_size=len(ITEMS) + 2, hidden_size=12, intermediate_size=20, max_history_length=6
    )
    model = BERT4RecForMaskedItemModeling(config)
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(path / "model")
    build_vocabulary(ITEMS).save_pretrained(path / "model")
    (path / "model" / "titles.json").write_text(json.dumps(TITLES))
    generator = np.random.default_rng(3)
    users = generator.integers(700, size=5_000)
    items = generator.zipf(1.5, size=5_000) % 301
    frame = pl.DataFrame(
        {
            "user": [f"user {number}" for number in users],
            "item": [f"item {number}" for number in items],
            "timestamp": generator.integers(1, 40, size=5_000),
        }
    )
    strangers = {"user": ["cold", "user 1"], "item": ["new a", "new b"], "timestamp": [50, 3]}
    pl.concat([frame, pl.DataFrame(strangers)]).write_parquet(path / "orders.parquet")
    return path


def recommend(shop, output, *arguments):
    orders = ["--interactions", shop / "orders.parquet", "--output", output]
    main(list(map(str, [shop / "model", *orders, "--users-per-file", 120, *arguments])))
    return pl.read_parquet(output / "*.parquet")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(shop, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "recs"
    recommend(shop, output, "-k", 7)
    return output


def by_api(shop, **options):
    """What the API recommends for the same frame, all users at once."""
    frame = pl.read_parquet(shop / "orders.parquet")
    recommender = Recommender.from_pretrained(shop / "model")
    recommender.count_popularity(frame)
    return recommender.recommend(frame, unknown="skip", **options)


def assert_equal(actual, expected):
    """Rows are the same, scores but for rounding."""
    columns = ["user", "rank"]
    actual, expected = actual.sort(columns), expected.sort(columns)
    assert actual.drop("score").equals(expected.drop("score"))
    difference = (actual["score"] - expected["score"]).abs().max()
    assert difference < 1e-5


def test_all_users_get_what_the_api_recommends(shop, undisturbed):
    actual = pl.read_parquet(undisturbed / "*.parquet")
    assert actual.columns == ["user", "rank", "item", "score", "title"]
    assert_equal(actual, by_api(shop, k=7, cold="mask"))
    assert actual["title"].to_list() == [TITLES.get(item) for item in actual["item"]]
    assert 0 < actual["title"].null_count() < actual.height
    assert len(contents(undisturbed)) > 3


def test_the_record_counts_what_was_met(undisturbed):
    record = json.loads(undisturbed.with_name("recs.json").read_text())
    users = pl.read_parquet(undisturbed / "*.parquet")["user"].n_unique()
    assert record["users"] == users
    assert (record["cold_users"], record["unknown_interactions"]) == (1, 2)
    assert list(undisturbed.parent.glob(".*")) == []


def test_threads_and_a_kill_leave_the_output_the_same_to_the_bit(
    shop, undisturbed, tmp_path, monkeypatch
):
    write, threads = Shards.write, torch.get_num_threads()

    def die_at_two(self, number, table, counts):
        if number == 2:
            raise KeyboardInterrupt
        write(self, number, table, counts)

    torch.set_num_threads(3)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Shards, "write", die_at_two)
            with pytest.raises(KeyboardInterrupt):
                recommend(shop, tmp_path / "recs", "-k", 7)
        assert len(contents(tmp_path / "recs")) == 2
        recommend(shop, tmp_path / "recs", "-k", 7)
        assert contents(tmp_path / "recs") == contents(undisturbed)
    finally:
        torch.set_num_threads(threads)


def test_a_shard_that_was_lost_is_written_again(shop, undisturbed, tmp_path):
    recommend(shop, tmp_path / "recs", "-k", 7)
    next((tmp_path / "recs").glob("00003-*")).unlink()
    recommend(shop, tmp_path / "recs", "-k", 7)
    assert contents(tmp_path / "recs") == contents(undisturbed)


@pytest.mark.slow
def test_two_processes_write_the_same_to_the_bit(shop, undisturbed, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += [
        "--dynamo_backend",
        "no",
        ROOT / "scripts" / "recommend.py",
        shop / "model",
        "-k",
        "7",
    ]
    launch += ["--interactions", shop / "orders.parquet", "--output", tmp_path / "recs"]
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*map(str, launch), "--users-per-file", "120"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "recs") == contents(undisturbed)


def test_listed_users_only_with_those_that_never_bought(shop, tmp_path):
    (tmp_path / "users.txt").write_text("user 5\nnobody knows\nuser 9\n")
    actual = recommend(shop, tmp_path / "recs", "--users", tmp_path / "users.txt", "-k", 3)
    assert sorted(actual["user"].unique()) == ["nobody knows", "user 5", "user 9"]
    everyone = by_api(shop, k=3, cold="mask")
    known = pl.col("user").is_in(["user 5", "user 9"])
    assert_equal(actual.filter(known), everyone.filter(known))
    cold = everyone.filter(pl.col("user") == "cold")["item"]
    assert actual.filter(pl.col("user") == "nobody knows")["item"].equals(cold)


def test_candidates_and_exclusions_come_from_files(shop, tmp_path):
    stock = ITEMS[:40]
    (tmp_path / "stock.txt").write_text("\n".join([*stock, "not in the catalog"]))
    blocked = pl.DataFrame({"user": ["user 4", "cold", "user 4"], "item": stock[3:6]})
    blocked.write_csv(tmp_path / "blocked.csv")
    actual = recommend(
        shop,
        tmp_path / "recs",
        *("--candidates", tmp_path / "stock.txt", "--exclude", tmp_path / "blocked.csv"),
        *("-k", 30, "--include-seen", "--cold", "popular"),
    )
    exclude = dict(blocked.group_by("user").agg("item").iter_rows())
    expected = by_api(
        shop, k=30, candidates=stock, exclude=exclude, exclude_seen=False, cold="popular"
    )
    assert_equal(actual, expected)


def test_items_can_be_excluded_for_all(shop, tmp_path):
    pl.DataFrame({"item": ITEMS[2:9]}).write_parquet(tmp_path / "blocked.parquet")
    actual = recommend(
        shop, tmp_path / "recs", "--exclude", tmp_path / "blocked.parquet", "--cold", "empty"
    )
    assert_equal(actual, by_api(shop, exclude=ITEMS[2:9], cold="empty"))
    assert "cold" not in actual["user"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cold", "error"], "user 'cold' has no item of the catalog; choose --cold mask"),
        (["--unknown", "error"], "item 'new .' of user '.*' is not in the catalog"),
        (["--candidates", "gone.txt"], "there is no file gone.txt"),
        (["--user-column", "customer"], "orders.parquet has no column 'customer'"),
        (["-k", "0"], "k must be at least 1, got 0"),
        (["--users-per-file", "0"], "users per file must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_answered_is_told_in_a_line(shop, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        recommend(shop, tmp_path / "recs", *arguments)
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, error), error


def test_another_job_does_not_mix_its_output_in(shop, undisturbed, capsys):
    before = contents(undisturbed)
    with pytest.raises(SystemExit):
        recommend(shop, undisturbed, "-k", 8)
    assert "was started with k 7, and it is 8 now" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recommend(shop, shop)
    assert "exists, but " in capsys.readouterr().err
    assert contents(undisturbed) == before


def test_a_row_without_an_item_is_shown(shop, tmp_path, capsys):
    rows = {"user": ["ann", "bob"], "item": ["item 1", None], "timestamp": [1, 2]}
    pl.DataFrame(rows).write_parquet(tmp_path / "orders.parquet")
    (tmp_path / "model").symlink_to(shop / "model")
    with pytest.raises(SystemExit):
        recommend(tmp_path, tmp_path / "recs")
    assert "line 2 of orders.parquet has no item" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "orders.parquet"]


def test_the_order_of_the_file_is_the_time_where_there_is_none(shop, tmp_path):
    frame = pl.read_parquet(shop / "orders.parquet").sort("timestamp", maintain_order=True)
    frame.drop("timestamp").write_csv(tmp_path / "orders.csv")
    arguments = ["--interactions", tmp_path / "orders.csv", "--timestamp-column", "", "-k", 7]
    actual = recommend(shop, tmp_path / "recs", *arguments)
    assert_equal(actual, by_api(shop, k=7, cold="mask"))
