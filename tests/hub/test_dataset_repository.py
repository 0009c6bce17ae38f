import json

import numpy as np
import polars as pl
import pytest

from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.data.synthetic import SyntheticConfig
from tests.hub.test_push import PUSH

LOAD = """
import json, sys
from datasets import load_dataset
parts = load_dataset("ann/data")
print(json.dumps({
    "features": {name: sorted(part.features) for name, part in parts.items()},
    "first": {name: part[0] for name, part in parts.items()},
    "rows": {name: len(part) for name, part in parts.items()},
}))
"""

OPEN = """
import json
from bert4rec_hf.hub.dataset_repository import open_dataset
dataset = open_dataset("ann/data@main")
again = open_dataset("ann/data")
assert again.folder == dataset.folder
print(json.dumps([
    dataset.fingerprint,
    dataset.statistics,
    [dataset.train[3].tolist(), dataset.test[3].tolist(), dataset.test.targets.tolist()],
    dataset.train.targets is None,
    dataset.tokenizer.convert_ids_to_tokens([2, 5]),
    dataset.titles,
]))
"""

OPEN_SETS = """
import json
from bert4rec_hf.hub.dataset_repository import open_dataset
dataset = open_dataset("ann/data")
assert dataset.train.target_sets is None
print(json.dumps([each.tolist() for each in dataset.test.target_sets]))
"""

TAMPERED = """
import json
from bert4rec_hf.hub.dataset_repository import open_dataset
try:
    open_dataset("ann/data")
except (OSError, ValueError) as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "generated"
    synthetic = SyntheticConfig(num_users=40, num_items=30, mean_length=6.0, max_length=12)
    prepare_dataset("synthetic", None, folder, PreparationConfig(synthetic=synthetic))
    return folder


def test_a_dataset_comes_back_from_the_hub(hub, client, prepared):
    push = [str(prepared), "ann/data"]
    (first, _), (second, _) = client(PUSH, json.dumps([push, push]))
    assert (first, second) == (0, 0)
    repository = hub.repositories["datasets", "ann/data"]
    assert len(repository.branches["main"]) == 2  # the second push made no commit
    card = repository.files["README.md"].decode()
    assert 'load_dataset("ann/data")["train"]' in card
    dataset = load_prepared(prepared)

    loaded = client(LOAD)
    assert loaded["features"] == dict.fromkeys(
        ("train", "validation", "test"), ["items", "target", "user"]
    )
    assert loaded["rows"] == {
        name: len(getattr(dataset, name)) for name in ("train", "validation", "test")
    }
    assert loaded["first"]["test"]["items"] == dataset.test[0].tolist()
    assert loaded["first"]["test"]["target"] == dataset.test.targets[0]
    assert loaded["first"]["train"]["target"] is None

    fingerprint, statistics, rows, has_none, tokens, titles = client(OPEN)
    assert fingerprint == dataset.fingerprint
    assert statistics == dataset.statistics
    assert rows == [
        dataset.train[3].tolist(),
        dataset.test[3].tolist(),
        dataset.test.targets.tolist(),
    ]
    assert has_none
    assert tokens == dataset.tokenizer.convert_ids_to_tokens([2, 5])
    assert titles == dataset.titles


def test_sets_of_targets_come_back_from_the_hub(hub, client, tmp_path):
    draw = np.random.default_rng(1)
    rows = {"user": draw.integers(9, size=300), "item": draw.integers(7, size=300)}
    pl.DataFrame(rows | {"timestamp": draw.integers(1, 90, size=300)}).write_csv(tmp_path / "a.csv")
    config = PreparationConfig(split="temporal", test_last="20s", targets="all")
    prepare_dataset("csv", tmp_path / "a.csv", tmp_path / "sets", config)
    client(PUSH, json.dumps([[str(tmp_path / "sets"), "ann/data"]]))
    loaded = client(LOAD)
    assert loaded["features"] == dict.fromkeys(
        ("train", "validation", "test"), ["items", "target", "targets", "user"]
    )
    assert client(OPEN_SETS) == [
        each.tolist() for each in load_prepared(tmp_path / "sets").test.target_sets
    ]


def test_a_dataset_that_changed_on_the_way_is_refused(hub, client, prepared):
    client(PUSH, json.dumps([[str(prepared), "ann/data"]]))
    repository = hub.repositories["datasets", "ann/data"]
    swapped = repository.files["data/validation-00000-of-00001.parquet"]
    repository.commit(
        "main", "swap", repository.files | {"data/test-00000-of-00001.parquet": swapped}
    )
    assert "holds other histories than its statistics.json was written for" in client(TAMPERED)
    repository.commit("main", "not ours", {"train.csv": b"a,b\n1,2\n"})
    assert "is not a prepared dataset: it has no statistics.json" in client(TAMPERED)
