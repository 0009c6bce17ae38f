import io
import json

import polars as pl
import pytest

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.hub.dataset_presets import PRESETS

PREPARE = """
import contextlib, io, json, sys
from bert4rec_hf.commands.prepare import main
try:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(sys.argv[1:])
    print(json.dumps(out.getvalue()))
except SystemExit as error:
    print(json.dumps(str(error)))
"""
TEST, VALIDATION = 25_913_600, 25_825_400
"""Where the parts of Yambda begin; the gap before validation has 1,800 seconds."""


def parquet(**columns):
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


def csv(*rows):
    return "\n".join(["user_id,parent_asin,rating,timestamp", *rows, ""]).encode()


def histories(part, dataset):
    """Raw items of each history, and its target."""
    name = dataset.tokenizer.convert_ids_to_tokens
    targets = [None] * len(part) if part.targets is None else part.targets.tolist()
    return [
        (name(part[row].tolist()), target and name(target)) for row, target in enumerate(targets)
    ]


@pytest.fixture
def prepare(hub, client, tmp_path):
    """Run the command in a process that knows the hub; its output, or its error."""

    def run(*arguments, token="token-of-ann"):
        return client(PREPARE, "hub", *arguments, "--output", tmp_path / "made", token=token)

    run.output = tmp_path / "made"
    return run


def yambda():
    """Two listeners: times in ticks of five seconds, listens of every share."""
    rows = [
        (7, 11, 0, 100),
        (7, 12, 5, 49),  # not half of it
        (7, 13, VALIDATION - 1_805, 50),
        (7, 14, VALIDATION - 1_800, 80),  # in the gap
        (7, 15, VALIDATION, 99),
        (7, 16, TEST - 5, 99),
        (7, 11, TEST, 60),
        (7, 17, TEST + 5, 60),
        (9, 12, 10, 51),
        (9, 16, 10, 70),
        (9, 13, VALIDATION - 5, 70),
        (9, 11, TEST + 20, 90),
    ]
    uid, item_id, timestamp, share = zip(*rows, strict=True)
    types = {"uid": pl.UInt32, "item_id": pl.UInt32, "timestamp": pl.UInt32}
    table = {"uid": uid, "item_id": item_id, "timestamp": timestamp, "played_ratio_pct": share}
    buffer = io.BytesIO()
    pl.DataFrame(table).cast({**types, "played_ratio_pct": pl.UInt16}).write_parquet(buffer)
    return buffer.getvalue()


def test_yambda_is_prepared_by_its_name(hub, prepare):
    files = {f"flat/50m/{name}.parquet": b"not read" for name in ("likes", "multi_event")}
    files |= {"flat/50m/listens.parquet": yambda(), "embeddings.parquet": b"not read"}
    hub.add("datasets", "yandex/yambda", files)
    told = prepare("yandex/yambda", "--config", "flat/50m/listens")
    dataset = load_prepared(prepare.output)
    assert histories(dataset.train, dataset) == [(["11", "13"], None), (["12", "16"], None)]
    assert histories(dataset.validation, dataset) == [(["11", "13", "14"], "15")]
    assert histories(dataset.test, dataset) == [
        (["11", "13", "14", "15", "16"], "11"),
        (["12", "16", "13"], "11"),
    ]
    names = dataset.tokenizer.convert_ids_to_tokens
    assert [names(each.tolist()) for each in dataset.test.target_sets] == [["11", "17"], ["11"]]
    assert [names(each.tolist()) for each in dataset.validation.target_sets] == [["15", "16"]]
    assert dataset.statistics["splits"]["test"]["targets in sets"] == 3
    assert dataset.statistics["dropped"]["min_rating"] == 1
    commit = hub.repositories["datasets", "yandex/yambda"].branches["main"][-1].oid
    recorded = dataset.statistics["hub"]
    assert (recorded["revision"], recorded["config"]) == (commit, "flat/50m/listens")
    assert recorded["files"] == ["flat/50m/listens.parquet"]
    assert f"read from yandex/yambda at {commit}, 1 files" in told
    assert "--evaluation.exclude_seen false" in told
    card = (prepare.output / "README.md").read_text()
    assert f"`{commit}`" in card
    assert "Their `targets` are all\nitems of the user in that part" in card
    fetched = [request for request in hub.requests if "/resolve/" in request]
    assert {request.rpartition("/")[2] for request in fetched} == {"listens.parquet"}


def test_what_the_user_asks_for_counts_more_than_what_is_known(hub, prepare):
    hub.add("datasets", "yandex/yambda", {"flat/50m/listens.parquet": yambda()})
    arguments = ["--config", "flat/50m/listens", "--split", "leave_one_out", "--min-rating", "0"]
    prepare("yandex/yambda", *arguments)
    dataset = load_prepared(prepare.output)
    assert histories(dataset.test, dataset)[0][1] == "17"
    assert dataset.test.target_sets is None
    assert dataset.statistics["after"]["interactions"] == 12


def test_weeks_of_vk_lsvd_are_read_in_their_order(hub, prepare):
    week = {
        "train/week_00": {"user_id": [1, 2, 1], "item_id": [5, 6, 7], "like": [True, False, True]},
        "train/week_01": {"user_id": [2, 1], "item_id": [8, 9], "like": [True, True]},
        "validation/week_25": {"user_id": [1, 1], "item_id": [8, 6], "like": [True, True]},
        "test/week_26": {"user_id": [2, 2, 3], "item_id": [5, 7, 5], "like": [True, False, True]},
    }
    files = {f"subsamples/ur0.01/{name}.parquet": parquet(**rows) for name, rows in week.items()}
    hub.add("datasets", "deepvk/VK-LSVD", files | {"metadata/items_metadata.parquet": b""})
    prepare("deepvk/VK-LSVD", "--config", "subsamples/ur0.01", "--where", "like=true")
    dataset = load_prepared(prepare.output)
    assert histories(dataset.train, dataset) == [(["5", "7", "9"], None), (["8"], None)]
    assert histories(dataset.validation, dataset) == [(["5", "7", "9"], "8")]
    assert histories(dataset.test, dataset) == [(["8"], "5")]
    assert dataset.statistics["dropped"]["where"] == 2
    assert dataset.statistics["left_out"]["nothing before the test target"] == 1


@pytest.mark.parametrize("config", ["benchmark/5core/timestamp/Books", "5core_timestamp_Books"])
def test_amazon_reviews_bring_their_own_split(hub, prepare, config):
    files = {
        "train": csv(
            "AE,B1,5.0,1628643414000", "AE,B2,4.0,1628643414010", "AF,B2,1.0,1628643000000"
        ),
        "valid": csv("AE,B3,5.0,1628643414042", "AE,B1,5.0,1658002729836"),
        "test": csv("AE,B2,5.0,1658002729837", "AF,B1,5.0,1658002729838"),
    }
    files = {f"benchmark/5core/timestamp/Books.{part}.csv": data for part, data in files.items()}
    hub.add("datasets", "McAuley-Lab/Amazon-Reviews-2023", files)
    prepare("McAuley-Lab/Amazon-Reviews-2023", "--config", config)
    dataset = load_prepared(prepare.output)
    assert histories(dataset.validation, dataset) == [(["B1", "B2"], "B3")]
    assert histories(dataset.test, dataset) == [(["B1", "B2", "B3", "B1"], "B2"), (["B2"], "B1")]


def test_amazons_last_out_takes_the_same_targets_as_its_files_on_disk(hub, prepare, tmp_path):
    parts = {
        "train": csv("AE,B1,5.0,1628643414000", "AF,B2,1.0,1628643000000"),
        "valid": csv("AE,B3,5.0,1628643414042"),
        "test": csv("AE,B2,5.0,1658002729837", "AF,B1,5.0,1658002729838"),
    }
    for part, data in parts.items():
        (tmp_path / f"Books.{part}.csv").write_bytes(data)
    local = tmp_path / "local"
    source = tmp_path / "Books.train.csv"
    prepare_dataset("amazon2023_last_out", source, local, PreparationConfig(split="given"))
    files = {f"benchmark/0core/last_out/Books.{part}.csv": data for part, data in parts.items()}
    hub.add("datasets", "McAuley-Lab/Amazon-Reviews-2023", files)
    prepare("McAuley-Lab/Amazon-Reviews-2023", "--config", "benchmark/0core/last_out/Books")
    assert load_prepared(prepare.output).fingerprint == load_prepared(local).fingerprint


CARD = """---
configs:
- config_name: orders
  data_files:
  - split: train
    path: orders/train-*
  - split: test
    path: orders/test-*
- config_name: clicks
  data_files: clicks.csv
---
"""


@pytest.fixture
def shop(hub):
    """A dataset of any kind, with a card that names its configurations."""
    orders = {"customer": ["a", "a", "a", "b"], "sku": ["x", "y", "z", "y"], "day": [1, 2, 3, 4]}
    later = {"customer": ["a", "b"], "sku": ["w", "x"], "day": [5, 6]}
    files = {
        "README.md": CARD.encode(),
        "clicks.csv": b"customer,sku,day\na,x,1\na,y,2\na,z,3\n",
        "orders/train-00000-of-00001.parquet": parquet(**orders),
        "orders/test-00000-of-00001.parquet": parquet(**later),
        "notes/more.jsonl": b'{"customer": "a"}\n',
    }
    return hub.add("datasets", "ann/shop", files, is_private=True)


COLUMNS = ["--user-column", "customer", "--item-column", "sku", "--timestamp-column", "day"]


@pytest.mark.parametrize(
    ("config", "split", "test"),
    [
        ("orders", "leave_one_out", [(["x", "y", "z"], "w")]),
        ("orders", "given_next", None),
        ("clicks", "leave_one_out", [(["x", "y"], "z")]),
        ("orders/test-*", "none", []),
        ("orders/train-00000-of-00001.parquet", "leave_one_out", [(["x", "y"], "z")]),
    ],
)
def test_any_dataset_is_prepared_by_its_card_or_its_files(shop, prepare, config, split, test):
    told = prepare("ann/shop", "--config", config, "--split", split, *COLUMNS)
    if test is None:  # the card names no validation
        assert "the split given_next leaves no history for validation" in told
        return
    dataset = load_prepared(prepare.output)
    assert histories(dataset.test, dataset) == test


def test_a_commit_can_be_named(shop, prepare):
    first = shop.branches["main"][-1].oid
    shop.commit("main", "empty", {"README.md": b""})
    prepare(f"ann/shop@{first}", "--config", "clicks", *COLUMNS)
    assert load_prepared(prepare.output).statistics["hub"]["revision"] == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ann/shop"], "name one of its configurations or files by --config: orders, clicks"),
        (
            ["ann/shop", "--config", "clikcs"],
            "ann/shop, config clikcs: it has no files clikcs; did you mean clicks?",
        ),
        (["ann/shop", "--config", "orders/**"], "'customer', 'sku', 'day'"),
        (["ann/shop", "--config", "*"], "must all be of one format"),
        (["ann/shop", "--config", "clicks", "--revision", "v9"], "has no revision 'v9'"),
        (["ann/shop", "--config", "notes", *COLUMNS], "more.jsonl has no column 'sku', 'day'"),
        (["ann/nothing", "--config", "clicks"], "has no datasets/ann/nothing that you may read"),
        (["shop", "--config", "clicks"], "shop must be the name of a dataset of a hub"),
        (["yandex/yambda", "--config", "sequential/50m/listens"], "name the files by flat/SIZE/"),
        (["yandex/yambda", "--config", "flat/5b/listens"], "it has no files flat/5b/listens.parqu"),
    ],
)
def test_what_cannot_be_prepared_is_named(hub, shop, prepare, arguments, message):
    hub.add("datasets", "yandex/yambda", {"flat/50m/listens.parquet": yambda()})
    error = prepare(*arguments)
    assert message in error
    assert error.startswith("error: ")
    assert not prepare.output.exists()


def test_a_private_dataset_needs_its_token(shop, prepare):
    assert "log in" in prepare("ann/shop", "--config", "clicks", token="token-of-bob")


def test_options_of_the_hub_are_refused_elsewhere(prepare, client, tmp_path):
    error = client(PREPARE, "csv", "a.csv", "--config", "x", "--output", tmp_path / "made")
    assert error == "error: the source csv does not use config; it applies to hub"


def test_every_preset_refuses_what_it_does_not_know():
    for choose in (PRESETS["yandex/yambda"], PRESETS["McAuley-Lab/Amazon-Reviews-2023"]):
        with pytest.raises(ValueError, match="name the files by"):
            choose("nothing")


def test_a_file_that_is_not_what_its_name_says_is_named(hub, prepare):
    hub.add("datasets", "ann/shop", {"a.parquet": json.dumps([1]).encode()})
    error = prepare("ann/shop", "--config", "a")
    assert error.startswith("error: ann/shop, config a: ")
    assert "a.parquet cannot be read to its end" in error
