"""What can be wrong with a prepared folder, each fault as it would come about."""

import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from bert4rec_hf.data.histories import Histories
from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.data.verification import QUICK_BYTES, check_ids_of, dataset_fingerprint

ARROW = "data-00000-of-00001.arrow"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dataset with nothing wrong, of 59 items, as one was never drawn."""
    folder = tmp_path_factory.mktemp("whole") / "dataset"
    synthetic = SyntheticConfig(num_users=50, num_items=60, mean_length=8.0, max_length=20)
    prepare_dataset("synthetic", None, folder, PreparationConfig(synthetic=synthetic))
    return folder


@pytest.fixture
def folder(tmp_path, whole):
    """A copy to break."""
    return shutil.copytree(whole, tmp_path / "dataset")


def rewrite(folder, split, change):
    """Save a split with other columns, as its own library would."""
    part = datasets.load_from_disk(str(folder / split))
    columns = part.with_format("arrow")[:].to_pydict()
    change(columns)
    kinds = {"user": pa.string(), "items": pa.list_(pa.int32()), "target": pa.int32()}
    arrays = {
        name: values if isinstance(values, pa.Array) else pa.array(values, kinds[name])
        for name, values in columns.items()
    }
    shutil.rmtree(folder / split)
    changed = datasets.Dataset(datasets.table.InMemoryTable(pa.table(arrays)))
    changed.save_to_disk(str(folder / split))


def put(column, row, value, place=None):
    """What writes a value into a row, or into a place of its list."""

    def change(columns):
        if place is None:
            columns[column][row] = value
        else:
            columns[column][row][place] = value

    return change


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refuses(folder, message, error=ValueError, **options):
    with pytest.raises(error, match=message) as caught:
        load_prepared(folder, **options)
    assert str(folder) in str(caught.value)


def test_a_whole_folder_passes_also_when_all_of_it_is_checked(whole):
    dataset = load_prepared(whole, verify=True)
    parts = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    assert dataset.fingerprint == dataset_fingerprint(dataset.vocabulary_fingerprint, parts)


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", put("items", 7, 0, 1), r"train/data-\S+.arrow, row 7: an item has the id 0 \("),
        ("test", put("items", 3, 1, 0), r"test/\S+, row 3: an item has the id 1 \(the mask\)"),
        ("train", put("items", 0, 61, 0), "row 0: an item has the id 61; .* go from 2 to 60"),
        ("train", put("items", 2, -5, 0), "row 2: an item has the id -5; "),
        ("validation", put("target", 4, 999), "validation/.*row 4: the target has the id 999"),
        ("test", put("target", 0, 0), r"test/\S+, row 0: the target has the id 0 \(padding\)"),
        (
            "test",
            lambda c: [c[name].pop() for name in c],
            "test has 49 histories, which contradicts statistics",
        ),
        (
            "train",
            lambda c: c["items"][5].pop(),
            r"train has \d+ interactions, which contradicts statistics",
        ),
        ("test", lambda c: c.pop("target"), "test has no column target"),
        ("train", lambda c: c.pop("items"), "train has no column items"),
        ("test", put("target", 1, None), "target of .*test has 1 empty rows"),
        (
            "test",
            lambda c: c.update(target=pa.array(c["target"], pa.int64())),
            "target of .*test must be int32, got int64",
        ),
        (
            "train",
            lambda c: c.update(items=pa.array(c["items"], pa.list_(pa.float32()))),
            "items of .*train must be list<.*int32>, got list<.*float>",
        ),
        (
            "test",
            lambda c: c["target"].__setitem__(0, 2 + (c["target"][0] - 1) % 59),
            "histories in .* have changed since they were prepared: their fingerprint is",
        ),
        ("validation", lambda c: c["items"].reverse(), "have changed since they were prepared"),
    ],
)
def test_histories_that_are_not_those_that_were_prepared_are_refused(
    folder, split, change, message
):
    rewrite(folder, split, change)
    refuses(folder, message)


def test_any_flipped_bit_of_an_id_is_noticed(folder, whole):
    values = load_prepared(whole).train.values
    path = folder / "train" / ARROW
    content = bytearray(path.read_bytes())
    start = content.index(values.astype("<i4").tobytes())
    for place in range(start, start + 40, 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        refuses(folder, "row [0-9]+: an item has the id|have changed since they were prepared")


def test_a_file_with_flipped_bytes_is_either_refused_or_the_same(folder, whole):
    """Whatever byte is hit, what loads are the histories that were prepared."""
    expected = load_prepared(whole).test
    path = folder / "test" / ARROW
    content = path.read_bytes()
    draw = np.random.default_rng(0)
    refused = 0
    for place in draw.integers(len(content), size=60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        try:
            found = load_prepared(folder).test
        except ValueError:
            refused += 1
        else:
            np.testing.assert_array_equal(found.values, expected.values)
            np.testing.assert_array_equal(found.targets, expected.targets)
    assert refused > 10


def test_a_truncated_file_is_refused(folder):
    path = folder / "test" / ARROW
    path.write_bytes(path.read_bytes()[:500])
    refuses(folder, "cannot be opened as a dataset")


@pytest.mark.parametrize("name", ["../../elsewhere.arrow", "/etc/passwd", "", None, 7])
def test_files_elsewhere_are_not_read(folder, name):
    edit(folder / "test" / "state.json", lambda content: content.update(_data_files=[name]))
    refuses(folder, "state.json names no Arrow files beside it")
    files = [{"filename": name}]
    edit(folder / "test" / "state.json", lambda content: content.update(_data_files=files))
    refuses(folder, "state.json names no Arrow files beside it, got")


@pytest.mark.parametrize("missing", [ARROW, "state.json", "dataset_info.json"])
def test_a_missing_file_is_named(folder, missing):
    (folder / "test" / missing).unlink()
    refuses(folder, re.escape(missing.removesuffix(".json")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["after"].update(items=58), "row [0-9]+: an item has the id 60; .* 2 to 59"),
        (lambda c: c["after"].update(items=60), "has 59 items and statistics.json says 60"),
        (lambda c: c["after"].update(items="59"), "statistics.json lacks after.items"),
        (lambda c: c.update(after=7), "statistics.json lacks after.items"),
        (lambda c: c.pop("fingerprint"), "statistics.json lacks .*fingerprint"),
        (lambda c: c.update(fingerprint="0" * 16), "statistics.json says 0000000000000000"),
        (lambda c: c.pop("splits"), "histories, which contradicts statistics.json"),
        (lambda c: c.update(splits=[]), "histories, which contradicts statistics.json"),
    ],
)
def test_statistics_of_another_dataset_are_refused(folder, change, message):
    edit(folder / "statistics.json", change)
    refuses(folder, message)


def test_what_is_no_dataset_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a prepared dataset: it has no statistics"):
        load_prepared(tmp_path)


def swap(content):
    ids = content["model"]["vocab"]
    first, second = list(ids)[2:4]
    ids[first], ids[second] = ids[second], ids[first]


def test_swapped_items_are_noticed(folder, monkeypatch):
    edit(folder / "tokenizer.json", swap)
    refuses(folder, "tokenizer.json is not the vocabulary that the dataset was prepared with")
    monkeypatch.setattr("bert4rec_hf.data.verification.QUICK_VOCABULARY_BYTES", 10)
    load_prepared(folder)
    refuses(folder, "tokenizer.json is not the vocabulary that the dataset was pre", verify=True)


def test_large_datasets_are_hashed_on_request(folder, monkeypatch):
    monkeypatch.setattr("bert4rec_hf.data.verification.QUICK_BYTES", 10)
    rewrite(folder, "validation", lambda columns: columns["items"].reverse())
    load_prepared(folder)
    refuses(folder, "have changed since they were prepared", verify=True)
    assert QUICK_BYTES > 10**8


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        ([2, 4, 5], [0, 2, 3], r"test, row 1: a target has the id 5; .* from 2 to 4"),
        ([2, 1, 4], [0, 2, 3], r"test, row 0: a target has the id 1 \(the mask\)"),
        ([2, 3], [0, 2, 2], r"test, row 1: there is no target; prepare the dataset again"),
    ],
)
def test_sets_of_targets_hold_items_only(values, offsets, message):
    ids = np.array([2, 3], dtype=np.int32)
    sets = Histories(np.array(values, dtype=np.int32), np.array(offsets))
    part = Histories(ids, np.array([0, 1, 2]), ids, sets)
    with pytest.raises(ValueError, match=message):
        check_ids_of(part, Path("test"), vocab_size=5)
