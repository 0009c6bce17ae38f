import bz2
import gzip
import json
import lzma

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer

from bert4rec_hf.data.dataset_card import render_card
from bert4rec_hf.data.histories import Histories
from bert4rec_hf.data.interactions import PreparationConfig
from bert4rec_hf.data.preparation import prepare_dataset
from bert4rec_hf.data.prepared import load_prepared
from bert4rec_hf.data.synthetic import SyntheticConfig
from bert4rec_hf.data.vocabulary import vocabulary_fingerprint

HEADER = "userId,movieId,rating,timestamp\n"
RATINGS = [
    ("ann", "alien", 4.0, 10),
    ("ann", "dune", 3.0, 20),
    ("ann", "alien", 5.0, 30),
    ("ann", "brazil", 4.5, 40),
    ("ann", "clue", 4.0, 50),
    ("bob", "dune", 4.0, 20),
    ("bob", "alien", 4.0, 20),
    ("bob", "brazil", 2.0, 25),
    ("bob", "clue", 5.0, 30),
    ("cy", "alien", 4.0, 30),
    ("cy", "dune", 4.0, 35),
    ("dee", "élan vital", 4.0, 40),
]


def write_ratings(folder, rows=RATINGS):
    path = folder / "ratings.csv"
    path.write_text(HEADER + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in rows))
    return path


def prepare(folder, source="movielens_csv", path=None, **settings):
    output = folder / "made" / "prepared"
    path = path or write_ratings(folder)
    return prepare_dataset(source, path, output, PreparationConfig(**settings)), output


def named(dataset, part):
    """The part's histories and targets in raw names, as anyone reads them from the folder."""
    names = AutoTokenizer.from_pretrained(dataset.folder).convert_ids_to_tokens
    rows = datasets.load_from_disk(str(dataset.folder))[part]
    items = [" ".join(names(row)) for row in rows["items"]]
    targets = names(list(rows["target"])) if "target" in rows.column_names else [None] * len(items)
    return dict(zip(rows["user"], zip(items, targets, strict=True), strict=True))


def test_what_is_prepared_is_read_by_the_public_libraries(tmp_path):
    _, output = prepare(tmp_path)
    dataset = load_prepared(output)
    assert named(dataset, "train") == {
        "ann": ("alien dune alien", None),
        "bob": ("dune alien", None),
        "cy": ("alien dune", None),
        "dee": ("élan vital", None),
    }
    assert named(dataset, "validation") == {
        "ann": ("alien dune alien", "brazil"),
        "bob": ("dune alien", "brazil"),
    }
    assert named(dataset, "test") == {
        "ann": ("alien dune alien brazil", "clue"),
        "bob": ("dune alien brazil", "clue"),
    }


def test_ids_are_int32_in_sorted_order_of_the_names(tmp_path):
    _, output = prepare(tmp_path)
    dataset = load_prepared(output)
    assert dataset.tokenizer.convert_ids_to_tokens([2, 3, 4, 5, 6]) == sorted(
        {item for _, item, _, _ in RATINGS}
    )
    assert dataset.train[1].tolist() == [5, 2]
    assert dataset.test.targets.tolist() == [4, 4]
    assert dataset.train.targets is None
    assert dataset.train.lengths.tolist() == [3, 2, 2, 1]
    arrays = (dataset.train.values, dataset.test.values, dataset.test.targets)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
    features = datasets.load_from_disk(str(output))["test"].features
    assert features["items"].feature.dtype == features["target"].dtype == "int32"
    assert (dataset.num_items, dataset.vocab_size) == (5, 7)


def test_everything_dropped_is_counted_by_its_reason(tmp_path):
    statistics, output = prepare(
        tmp_path, min_rating=3, duplicates="keep_last", min_interactions=2, validation_users=1
    )
    assert statistics["before"] == {"users": 4, "items": 5, "interactions": 12}
    # bob's brazil is rated low; ann's first alien is repeated; then élan vital and brazil are rare.
    assert statistics["dropped"] == {
        "vocabulary": 0,
        "min_rating": 1,
        "duplicates": 1,
        "min_interactions": 2,
        "being in no part of the split": 0,
    }
    assert statistics["after"] == {"users": 3, "items": 3, "interactions": 8}
    assert statistics["lengths"] == {"mean": pytest.approx(8 / 3), "median": 3, "max": 3}
    assert statistics["sparsity"] == pytest.approx(1 - 8 / 9)
    assert statistics["left_out"] == {"too few interactions to hold out, training only": 0}
    assert statistics == load_prepared(output).statistics


def test_items_and_targets_that_are_never_trained_on_are_counted(tmp_path):
    statistics, _ = prepare(tmp_path)
    assert statistics["items_not_in_train"] == 2  # brazil and clue
    assert statistics["splits"] == {
        "train": {"histories": 4, "interactions": 8},
        "validation": {"histories": 2, "interactions": 5, "targets not in train": 2},
        "test": {"histories": 2, "interactions": 7, "targets not in train": 2},
    }
    assert statistics["tied_timestamps"] == pytest.approx(1 / 8)


def test_titles_that_lie_beside_the_source_are_kept(tmp_path):
    (tmp_path / "movies.csv").write_text('movieId,title\nalien,"Alien, 1979"\njaws,Jaws\n')
    statistics, output = prepare(tmp_path)
    assert load_prepared(output).titles == {"alien": "Alien, 1979"}
    assert statistics["titles"] == 1


def test_without_titles_there_is_no_file_of_them(tmp_path):
    _, output = prepare(tmp_path)
    assert load_prepared(output).titles == {}
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "dataset_dict.json",
        "statistics.json",
        "test",
        "tokenizer.json",
        "tokenizer_config.json",
        "train",
        "validation",
    ]


def fingerprint(folder, rows=RATINGS, **settings):
    folder.mkdir()
    return prepare(folder, path=write_ratings(folder, rows), **settings)[0]["fingerprint"]


def test_the_fingerprint_tells_ids_and_split_and_nothing_else(tmp_path):
    first = fingerprint(tmp_path / "a")
    by_time = sorted(RATINGS, key=lambda row: row[3])
    assert fingerprint(tmp_path / "b", by_time) == first
    assert fingerprint(tmp_path / "c", [(f"u{u}", i, r, t + 7) for u, i, r, t in RATINGS]) == first
    others = [
        fingerprint(tmp_path / "d", RATINGS[:-1]),
        fingerprint(tmp_path / "e", [(u, f"the {i}", r, t) for u, i, r, t in RATINGS]),
        fingerprint(tmp_path / "f", [(u, i, r, 100 - t) for u, i, r, t in RATINGS]),
        fingerprint(tmp_path / "g", validation_users=1),
    ]
    assert len({first, *others}) == 5


def test_the_vocabulary_of_the_folder_has_the_fingerprint_in_its_statistics(tmp_path):
    _, output = prepare(tmp_path)
    dataset = load_prepared(output)
    assert vocabulary_fingerprint(AutoTokenizer.from_pretrained(output)) == (
        dataset.vocabulary_fingerprint
    )
    assert dataset.fingerprint != dataset.vocabulary_fingerprint


def test_many_histories_come_back_as_they_were(tmp_path):
    # More than the thousand rows that datasets writes at once.
    rows = [
        (f"{u:04d}", f"{(u * 7 + n - 1) % 31:02d}", 5, n) for u in range(2_003) for n in range(1, 6)
    ]
    _, output = prepare(tmp_path, path=write_ratings(tmp_path, rows))
    test = load_prepared(output).test
    assert len(test) == 2_003
    for user in (0, 999, 1_000, 2_002):
        assert test[user].tolist() == [(user * 7 + n) % 31 + 2 for n in range(4)]
        assert test.targets[user] == (user * 7 + 4) % 31 + 2


def test_statistics_and_card_hold_no_folder_and_the_card_can_be_rendered_again(tmp_path):
    (tmp_path / "films.csv").write_text("movieId,title\nalien,Alien\n")
    statistics, output = prepare(tmp_path, titles=str(tmp_path / "films.csv"))
    assert str(tmp_path) not in json.dumps(statistics)
    assert statistics["settings"]["titles"] == "films.csv"
    card = (output / "README.md").read_text(encoding="utf-8")
    assert card == render_card(json.loads((output / "statistics.json").read_text()))
    assert "| kept | 4 | 5 | 12 |" in card
    assert "| test | 2 | 7 | 2 |" in card
    assert "| sparsity | 40.0000% |" in card
    assert f"`{statistics['fingerprint']}`" in card


def test_synthetic_data_tells_what_is_possible_only_while_it_is_whole(tmp_path):
    synthetic = SyntheticConfig(
        num_users=101, num_items=31, mean_length=7.0, max_length=11, series_length=5
    )
    config = {"synthetic": synthetic}
    whole = prepare_dataset("synthetic", None, tmp_path / "a", PreparationConfig(**config))
    assert 0 < whole["best_possible"]["ndcg@10"] < 1
    assert whole["settings"]["synthetic"]["num_items"] == 31
    some = PreparationConfig(**config, split="by_user", validation_users=7, test_users=13)
    held_out = prepare_dataset("synthetic", None, tmp_path / "c", some)
    assert held_out["best_possible"] == whole["best_possible"]
    filtered = PreparationConfig(**config, min_interactions=6)
    assert "best_possible" not in prepare_dataset("synthetic", None, tmp_path / "b", filtered)


@pytest.mark.parametrize(
    ("source", "settings", "error", "message"),
    [
        ("ml1n", {}, ValueError, "no source 'ml1n'; did you mean ml1m\\? known: ml100k, ml1m"),
        ("ml1m", {"split": "leave_one"}, ValueError, "no split 'leave_one'; did you mean leave_o"),
        ("synthetic", {}, ValueError, "the source synthetic reads no file"),
        ("ml100k", {}, ValueError, "is not 4 columns"),
        ("movielens_csv", {"split": "given"}, ValueError, "needs a source with its own split"),
        ("movielens_csv", {"min_rating": 6}, ValueError, "min_rating=6 leaves none of the 12"),
        ("movielens_csv", {"min_interactions": 4}, ValueError, "min_interactions=4 leaves none of"),
        ("movielens_csv", {"titles": "no.csv"}, FileNotFoundError, "no file of titles no.csv"),
        (
            "movielens_csv",
            {"split": "by_user", "validation_users": 3, "test_users": 1},
            ValueError,
            "asks for 4 users, but only 3",
        ),
    ],
)
def test_a_request_that_cannot_be_met_leaves_no_folder(tmp_path, source, settings, error, message):
    with pytest.raises(error, match=message):
        prepare(tmp_path, source, **settings)
    assert [path.name for path in tmp_path.rglob("*")] == ["ratings.csv"]


def test_a_source_without_its_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the source ml1m needs the path of its file"):
        prepare_dataset("ml1m", None, tmp_path / "prepared", PreparationConfig())


ROWS = 20_000 * "ann,alien,4.0,10\n"
BROKEN_FILES = {
    "truncated.csv.gz": gzip.compress((HEADER + ROWS).encode())[:-30],
    "begun.csv.gz": gzip.compress((HEADER + ROWS).encode())[:12],
    "truncated.csv.xz": lzma.compress((HEADER + ROWS).encode())[:-30],
    "truncated.csv.bz2": bz2.compress((HEADER + ROWS).encode())[:-30],
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_named_and_leaves_no_folder(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BROKEN_FILES[name])
    with pytest.raises(ValueError, match=f"{name} cannot be read to its end: .*is it complete"):
        prepare(tmp_path, path=path)
    assert list(tmp_path.iterdir()) == [path]


def test_broken_json_lines_are_named(tmp_path):
    path = tmp_path / "any.jsonl"
    path.write_text('{"user": "a", "item": "b", "timestamp": 3}\n{"user": "a", "item"\n')
    with pytest.raises(ValueError, match="line 2 of any.jsonl is not JSON .*; is it complete"):
        prepare(tmp_path, "jsonl", path)


def test_titles_of_other_items_are_refused(tmp_path):
    (tmp_path / "films.csv").write_text("movieId,title\njaws,Jaws\n")
    message = "films.csv has a title for none of the 5 items, such as 'alien'"
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, titles=str(tmp_path / "films.csv"))


def test_an_output_that_exists_is_left_as_it_is(tmp_path):
    output = tmp_path / "made" / "prepared"
    output.mkdir(parents=True)
    with pytest.raises(
        FileExistsError, match="prepared already exists; remove it, or name another"
    ):
        prepare(tmp_path)
    assert list(output.iterdir()) == []


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(statistics):
        raise OSError("no space left")

    monkeypatch.setattr("bert4rec_hf.data.writing.render_card", fail)
    with pytest.raises(OSError, match="no space left"):
        prepare(tmp_path)
    assert list((tmp_path / "made").iterdir()) == []


def test_a_folder_that_was_not_prepared_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a prepared dataset: it has no statistics"):
        load_prepared(tmp_path)


def test_histories_are_a_sequence():
    histories = Histories(np.array([4, 2, 3], dtype=np.int32), np.array([0, 2, 2, 3]))
    assert [history.tolist() for history in histories] == [[4, 2], [], [3]]
    assert histories[-1].tolist() == [3]
    with pytest.raises(IndexError):
        histories[3]


def test_a_given_vocabulary_keeps_its_ids_and_drops_other_items(tmp_path):
    (tmp_path / "past").mkdir()
    _, past = prepare(tmp_path / "past")
    later = [("ann", "clue", 4.0, 10), ("ann", "new", 4.0, 20), ("ann", "alien", 4.0, 30)]
    later += [("ann", "dune", 3.0, 40), ("bob", "new", 4.0, 20)]
    path = write_ratings(tmp_path, later)
    statistics, output = prepare(tmp_path, path=path, vocabulary=str(past))
    assert statistics["dropped"]["vocabulary"] == 2
    assert statistics["after"] == {"users": 1, "items": 5, "interactions": 3}
    assert statistics["settings"]["vocabulary"] == "prepared"
    before, after = load_prepared(past), load_prepared(output)
    assert after.vocabulary_fingerprint == before.vocabulary_fingerprint
    assert named(after, "train") == {"ann": ("clue", None)}
    assert named(after, "test") == {"ann": ("clue alien", "dune")}


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere has no tokenizer.json; name a prepared"):
        prepare(tmp_path, vocabulary=str(tmp_path / "nowhere"))


def test_a_vocabulary_of_other_items_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    rows = [("ann", f"other {n}", 4.0, 1 + n) for n in range(3)]
    _, other = prepare(tmp_path / "other", path=write_ratings(tmp_path / "other", rows))
    with pytest.raises(ValueError, match="vocabulary=.* leaves none of the 12 .*to other items"):
        prepare(tmp_path, vocabulary=str(other))
