import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.recommender import Recommender

SCRIPT = Path(__file__).parents[2] / "scripts" / "recommend.py"
ITEMS = ["alien", "brazil", "dune (1984)", "éclair", "fargo", "gattaca", "heat"]
TITLES = {"alien": "Alien", "fargo": "Fargo (1996)"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    config = BERT4RecConfig(
        vocab_size=len(ITEMS) + 2, hidden_size=12, intermediate_size=20, max_history_length=4
    )
    BERT4RecForMaskedItemModeling(config).save_pretrained(path)
    build_vocabulary(ITEMS).save_pretrained(path)
    (path / "titles.json").write_text(json.dumps(TITLES))
    return path


@pytest.fixture(scope="module")
def recommender(folder):
    return Recommender.from_pretrained(folder)


def expected_order(recommender, history):
    """All raw items by the logits behind the newest items and a mask, best first."""
    ids = [ITEMS.index(item) + 2 for item in history][-3:]
    logits = recommender.scorer.model(torch.tensor([[*ids, 1]])).logits[0, -1]
    return [
        (ITEMS[number - 2], logits[number].item()) for number in logits.argsort(descending=True)[:7]
    ]


def test_items_come_in_the_order_of_their_logits_without_the_seen_ones(recommender):
    history = ["heat", "brazil"]
    expected = [pair for pair in expected_order(recommender, history) if pair[0] not in history]
    actual = recommender.recommend(history, k=10)
    assert [each.item for each in actual] == [item for item, _ in expected]
    assert [each.score for each in actual] == pytest.approx(
        [score for _, score in expected], abs=1e-6
    )


def test_seen_items_come_on_request(recommender):
    actual = recommender.recommend(["heat", "brazil"], k=7, exclude_seen=False)
    expected = [item for item, _ in expected_order(recommender, ["heat", "brazil"])]
    assert [each.item for each in actual] == expected


def test_only_the_newest_items_are_read_but_all_seen_ones_left_out(recommender):
    history = ["alien", "heat", "brazil", "éclair", "fargo"]
    actual = recommender.recommend(history, k=7)
    expected = [item for item, _ in expected_order(recommender, history) if item not in history]
    assert [each.item for each in actual] == expected


def test_a_batch_recommends_what_each_history_alone_does(recommender):
    histories = [["heat"], ["alien", "éclair", "fargo"], ["brazil", "brazil"]]
    batch = recommender.recommend(histories, k=3)
    for together, history in zip(batch, histories, strict=True):
        alone = recommender.recommend(history, k=3)
        assert [each.item for each in together] == [each.item for each in alone]
        assert [each.score for each in together] == pytest.approx(
            [each.score for each in alone], abs=1e-6
        )


def test_titles_come_where_there_are_any(recommender):
    titles = {each.item: each.title for each in recommender.recommend(["heat"], k=6)}
    assert (titles["fargo"], titles["alien"], titles["gattaca"]) == ("Fargo (1996)", "Alien", None)


def test_the_catalog_lists_the_raw_items(recommender):
    assert recommender.catalog == ITEMS


def test_unknown_items_are_skipped_on_request(recommender):
    known = recommender.recommend(["heat", "brazil"], k=3)
    assert recommender.recommend(["heat", "zardoz", "brazil"], k=3, unknown="skip") == known


@pytest.mark.parametrize(
    ("history", "options", "error", "message"),
    [
        (
            ["heat", "zardoz"],
            {},
            KeyError,
            "1 of 2 items are not in the catalog, the first is 'zardoz'",
        ),
        (["[MASK]"], {}, KeyError, r"the first is '\[MASK\]'"),
        (["zardoz"], {"unknown": "skip"}, ValueError, "none of the 1 items of the history is in"),
        (
            ["heat"],
            {"unknown": "guess"},
            ValueError,
            "unknown must be one of error, skip, got 'guess'",
        ),
        (["heat"], {"k": 0}, ValueError, "k must be at least 1, got 0"),
        ([], {}, ValueError, "none of the 0 items of the history is in the catalog"),
        ("heat", {}, ValueError, "must be a list of raw items, got 'heat'"),
        ([1, 2], {}, TypeError, "a raw item must be a string, got 1; write '1'"),
        (3, {}, ValueError, "must be a list of raw items, got 3"),
        (["heat"], {"cold": "guess"}, ValueError, "cold must be one of .*, got 'guess'"),
        (["heat"], {"cold": "popular"}, ValueError, "call count_popularity with histories first"),
        (["heat"], {"candidates": ["zardoz"]}, ValueError, "none of the candidates is in the"),
        (["heat"], {"candidates": "heat"}, TypeError, "candidates must be a list .*, got 'heat'"),
        (["heat"], {"exclude": ITEMS}, ValueError, "every candidate is excluded"),
    ],
)
def test_a_history_that_cannot_be_read_is_refused(recommender, history, options, error, message):
    with pytest.raises(error, match=message):
        recommender.recommend(history, **options)


def test_a_vocabulary_of_another_size_is_refused(recommender):
    with pytest.raises(ValueError, match="vocabulary has 4 ids and the model 9"):
        Recommender(recommender.scorer.model, build_vocabulary(["alien", "heat"]))


def run_script(*arguments):
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_prints_places_scores_items_and_titles(folder, recommender):
    done = run_script(folder, "heat", "brazil", "-k", 3)
    assert done.returncode == 0, done.stderr
    expected = recommender.recommend(["heat", "brazil"], k=3)
    lines = done.stdout.splitlines()
    assert [re.split(r"\s{2,}", line.strip())[:3] for line in lines] == [
        [str(place), f"{each.score:.4f}", each.item] for place, each in enumerate(expected, start=1)
    ]
    assert all(
        line.endswith(each.title or each.item) for line, each in zip(lines, expected, strict=True)
    )


def test_the_script_names_an_unknown_item(folder):
    done = run_script(folder, "zardoz")
    assert done.returncode == 2
    assert "error: 1 of 1 items are not in the catalog, the first is 'zardoz'" in done.stderr
    assert "Traceback" not in done.stderr
