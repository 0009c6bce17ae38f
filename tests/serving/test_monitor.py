import json

import polars as pl
import pytest
import torch

from bert4rec_hf.commands.monitor import main
from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.monitor import judge
from bert4rec_hf.serving.recommender import Recommender

ITEMS = [f"item {number}" for number in range(17)]
PAST = [("ann", "item 3", 10), ("bob", "item 4", 12), ("ann", "item 5", 15), ("bob", "gone", 16)]
NEW = [
    ("ann", "item 7", 31),
    ("eve", "item 8", 32),  # cold, then known by one item
    ("eve", "item 5", 33),
    ("ann", "item 3", 34),  # again, so missed
    ("bob", "brand new", 35),
    ("bob", "item 1", 36),
]
RANKED = [
    (["item 3", "item 5"], "item 7"),
    (["item 3", "item 5", "item 7"], "item 3"),
    (["item 4"], "item 1"),
    (["item 8"], "item 5"),
]
"""By hand: what came before each new interaction that can be ranked."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("run")
    config = BERT4RecConfig(
        vocab_size=len(ITEMS) + 2, hidden_size=12, intermediate_size=20, max_history_length=6
    )
    BERT4RecForMaskedItemModeling(config).save_pretrained(path / "model")
    build_vocabulary(ITEMS).save_pretrained(path / "model")
    metrics = {"hit_rate@3": 0.25, "ndcg@3": 0.125, "hit_rate@10": 0.5}
    (path / "results.json").write_text(json.dumps({"test": {"metrics": metrics}}))
    for name, rows in (("past", PAST), ("new", NEW), ("all", PAST + NEW)):
        frame = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
        frame.write_parquet(path / f"{name}.parquet")
    return path


def measure(run, tmp_path, *arguments):
    output = tmp_path / "monitor.json"
    main([str(run / "model"), "-k", "3", "--output", str(output), *map(str, arguments)])
    return json.loads(output.read_text())


def hits_by_hand(run):
    """Share of targets among the 3 best by the logits behind what came before, seen left out."""
    model = Recommender.from_pretrained(run / "model").scorer.model
    hits = 0
    for history, target in RANKED:
        ids = [ITEMS.index(item) + 2 for item in history]
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, 1]])).logits[0, -1]
        left = [item for item in ITEMS if item not in history]
        best = sorted(left, key=lambda item: -logits[ITEMS.index(item) + 2].item())
        hits += target in best[:3]
    return hits / len(RANKED)


def test_new_interactions_are_ranked_after_what_came_before(run, tmp_path, capsys):
    files = ["--interactions", run / "new.parquet", "--history", run / "past.parquet"]
    results = measure(run, tmp_path, *files)
    assert (results["interactions"], results["users"], results["ranked"]) == (6, 3, 4)
    assert results["unknown_items_ratio"] == pytest.approx(1 / 6)
    assert results["cold_users_ratio"] == pytest.approx(1 / 3)
    assert results["model"]["hit_rate@3"] == pytest.approx(hits_by_hand(run)) != 0
    assert results["test"] == {"hit_rate@3": 0.25, "ndcg@3": 0.125}
    # In the past, items 3, 4 and 5 were met once each: eve's second is among the best three.
    assert results["popularity"]["hit_rate@3"] == pytest.approx(1 / 4)
    assert "item_knn" in results
    printed = capsys.readouterr().out
    assert "6 interactions of 3 users, 16.7% with unknown items, 33.3% of the users" in printed
    assert printed.splitlines()[-1] == results["verdict"]
    assert results["verdict"].startswith("update: 17% of the interactions have items")


def test_a_file_can_be_divided_by_a_moment(run, tmp_path):
    files = ["--interactions", run / "new.parquet", "--history", run / "past.parquet"]
    expected = measure(run, tmp_path, *files)
    assert measure(run, tmp_path, "--interactions", run / "all.parquet", "--since", 31) == expected
    # A history that goes on into what is new tells nothing of it.
    files[-1] = run / "all.parquet"
    assert measure(run, tmp_path, *files) == expected


def test_without_a_history_there_are_no_baselines(run, tmp_path):
    results = measure(run, tmp_path, "--interactions", run / "new.parquet")
    assert results["ranked"] == 2
    assert "popularity" not in results
    assert results["cold_users_ratio"] == 1


def test_a_moment_after_everything_is_refused(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        measure(run, tmp_path, "--interactions", run / "new.parquet", "--since", "2030-01-01")
    assert "new.parquet has no interaction since 2030-01-01" in capsys.readouterr().err


def measured(model, upper, **others):
    results = {"ranked": 500, "unknown_items_ratio": 0.02, "test": {"hit_rate@10": 0.3}}
    return results | {"model": {"hit_rate@10": model, "interval": [0.0, upper]}} | others


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        (measured(0.29, 0.31), "fine: hit_rate@10 is 0.2900, 0.3000 on the test"),
        (measured(0.29, 0.31, test={}), "fine: hit_rate@10 is 0.2900"),
        (measured(0.2, 0.23), "train again: hit_rate@10 is 0.2000, after 0.3000 on the test"),
        (measured(0.2, 0.25), "fine: hit_rate@10 is 0.2000, 0.3000 on the test"),
        (
            measured(0.29, 0.31, item_knn={"hit_rate@10": 0.32}),
            "train again: hit_rate@10 is 0.2900, less than the 0.3200 of item-knn",
        ),
        (measured(0.29, 0.31, ranked=99), "too little to judge: 99 interactions could be ranked"),
        (measured(0.29, 0.31, unknown_items_ratio=0.11), "update: 11% of the interactions have"),
    ],
)
def test_the_verdict_says_what_to_do(results, verdict):
    assert judge(results, "hit_rate@10").startswith(verdict)
