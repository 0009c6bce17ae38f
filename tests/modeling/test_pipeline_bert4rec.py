import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import (
    BERT4RecConfig,
    BERT4RecForMaskedItemModeling,
    NextItemRecommendationPipeline,
)
from bert4rec_hf.modeling.publishing import set_tokenizer_class

ITEMS = ["alien", "brazil", "dune (1984)", "éclair", "fargo", "gattaca", "heat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    config = BERT4RecConfig(
        vocab_size=9, hidden_size=12, intermediate_size=20, max_history_length=4
    )
    BERT4RecForMaskedItemModeling(config).save_pretrained(path)
    build_vocabulary(ITEMS).save_pretrained(path)
    set_tokenizer_class(path, config.max_history_length)
    (path / "titles.json").write_text('{"fargo": "Fargo (1996)"}')
    return path


@pytest.fixture(scope="module")
def recommend(folder):
    return NextItemRecommendationPipeline(
        BERT4RecForMaskedItemModeling.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    )


def logits(recommend, history):
    """Score of each item by the logits behind the newest three items and a mask."""
    ids = [ITEMS.index(item) + 2 for item in history][-3:]
    with torch.no_grad():
        scores = recommend.model(torch.tensor([[*ids, 1]])).logits[0, -1]
    return {item: scores[number].item() for number, item in enumerate(ITEMS, start=2)}


def test_items_come_in_the_order_of_their_logits_without_the_seen_ones(recommend):
    history = ["alien", "heat", "brazil", "éclair"]
    expected = logits(recommend, history)
    order = sorted(set(ITEMS) - set(history), key=expected.get, reverse=True)
    actual = recommend(history, top_k=10)
    assert [each["item"] for each in actual] == order
    for each in actual:
        assert each["score"] == pytest.approx(expected[each["item"]], abs=1e-5)
        assert each.get("title") == ("Fargo (1996)" if each["item"] == "fargo" else None)


def test_candidates_and_exclusions_hold(recommend):
    def items(**options):
        return {each["item"] for each in recommend(["heat"], **options)}

    assert items(candidates=["alien", "heat", "zardoz"]) == {"alien"}
    assert items(exclude=["alien", "zardoz"]) == set(ITEMS) - {"heat", "alien"}
    assert items(exclude_seen=False) == set(ITEMS)
    assert len(items(top_k=2)) == 2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_histories_get_what_each_gets_alone(recommend, batch_size):
    histories = [["heat"], ["alien", "éclair", "fargo"], ["brazil", "brazil"]]
    together = recommend(histories, top_k=3, batch_size=batch_size)
    for history, answer in zip(histories, together, strict=True):
        alone = recommend(history, top_k=3)
        assert [each["item"] for each in answer] == [each["item"] for each in alone]


@pytest.mark.parametrize(
    ("history", "options", "error", "message"),
    [
        (["heat", "zardoz"], {}, KeyError, "1 of 2 items .* the first is 'zardoz'"),
        (["zardoz"], {"unknown": "skip"}, ValueError, "none of the 1 items"),
        ([], {}, ValueError, r"at least one item, got \[\]"),
        ("heat", {}, TypeError, "a history is a list of raw items, got 'heat'"),
        (["heat"], {"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        (["heat"], {"topk": 3}, TypeError, "topk is not an option"),
        (["heat"], {"unknown": "guess"}, ValueError, "error, skip, got 'guess'"),
    ],
)
def test_what_cannot_be_answered_is_refused(recommend, history, options, error, message):
    with pytest.raises(error, match=message):
        recommend(history, **options)


def test_fill_mask_says_what_to_use(folder):
    fill_mask = pipeline("fill-mask", str(folder))
    with pytest.raises(KeyError, match=r"'heat \[MASK\]'.*pipeline\('next-item-recommendation'\)"):
        fill_mask("heat [MASK]")


def test_the_handler_is_loaded_as_inference_endpoints_do(folder, recommend, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    endpoint = handler.EndpointHandler(str(folder))
    answer = endpoint({"inputs": ["heat"], "parameters": {"top_k": 2, "exclude": ["alien"]}})
    assert answer == recommend(["heat"], top_k=2, exclude=["alien"])
    assert json.loads(json.dumps(answer)) == answer
    assert endpoint({"inputs": ["zardoz"]})["error"].startswith("1 of 1 items are not in the")
    assert endpoint({})["error"].startswith("a request needs inputs")
    assert not list(Path(folder).glob("*.bin"))
