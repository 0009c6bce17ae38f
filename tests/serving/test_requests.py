import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.recommender import Recommender

ITEMS = ["10", "11", "alien", "brazil", "dune (1984)", "éclair", "fargo", "gattaca", "heat"]


@pytest.fixture(scope="module", params=[0, 4], ids=["network alone", "with neighbors"])
def folder(request, tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("model")
    config = BERT4RecConfig(
        vocab_size=len(ITEMS) + 2,
        hidden_size=12,
        intermediate_size=20,
        max_history_length=6,
        num_neighbors=request.param,
    )
    model = BERT4RecForMaskedItemModeling(config)
    torch.nn.init.normal_(model.lm_head.bias)
    if request.param:
        ids = torch.stack([torch.randperm(len(ITEMS))[:4] + 2 for _ in range(len(ITEMS) + 2)])
        similarities = torch.rand(len(ids), 4)
        similarities[:2] = 0
        model.neighbors.set_table(ids, similarities, torch.ones(len(ids), 2))
    model.save_pretrained(path)
    build_vocabulary(ITEMS).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def recommender(folder):
    return Recommender.from_pretrained(folder)


def scores_of(recommender, history):
    """Score of each raw item by the logits behind a history and a mask."""
    ids = [ITEMS.index(item) + 2 for item in history]
    with torch.no_grad():
        logits = recommender.scorer.model(torch.tensor([[*ids, 1]])).logits[0, -1, 2:]
    return dict(zip(ITEMS, logits.tolist(), strict=True))


def best(scores, allowed, k):
    return sorted(allowed, key=lambda item: -scores[item])[:k]


def items_of(recommendations):
    return [each.item for each in recommendations]


HISTORIES = {"ann": ["heat", "brazil"], "bob": ["11", "alien", "10"]}
ROWS = [("bob", "10", 30), ("ann", "heat", 1), ("bob", "11", 2), ("ann", "brazil", 5)]
FRAME = {
    "user": ["ann", "ann", "bob", "bob", "bob"],
    "item": ["brazil", "heat", "10", "11", "alien"],
    "timestamp": [9, 2, 30, 1, 2],
}


@pytest.fixture(scope="module")
def expected(recommender):
    return {
        user: items_of(recommender.recommend(history, k=4)) for user, history in HISTORIES.items()
    }


@pytest.mark.parametrize(
    "histories",
    [
        list(HISTORIES.values()),
        [np.array(each) for each in HISTORIES.values()],
        np.array(list(HISTORIES.values()), dtype=object),
        pl.Series(list(HISTORIES.values())),
        pd.Series(list(HISTORIES.values())),
    ],
    ids=lambda each: type(each).__module__ + "." + type(each).__name__,
)
def test_several_histories_may_be_lists_arrays_or_series(recommender, expected, histories):
    actual = recommender.recommend(histories, k=4)
    assert [items_of(each) for each in actual] == list(expected.values())


@pytest.mark.parametrize("make", [list, np.array, pl.Series, pd.Series])
def test_one_history_may_be_a_list_array_or_series(recommender, expected, make):
    assert items_of(recommender.recommend(make(HISTORIES["ann"]), k=4)) == expected["ann"]


@pytest.mark.parametrize("make", [np.array, pl.Series, pd.Series])
def test_whole_numbers_in_arrays_are_read_as_texts(recommender, make):
    expected = recommender.recommend(["10", "11"], k=3)
    assert recommender.recommend(make([10, 11]), k=3) == expected
    assert recommender.recommend([make([10, 11])], k=3) == [expected]


def test_a_dict_of_histories_is_answered_by_user(recommender, expected):
    actual = recommender.recommend(HISTORIES, k=4)
    assert {user: items_of(each) for user, each in actual.items()} == expected


@pytest.mark.parametrize("make", [pl.DataFrame, pl.LazyFrame, pd.DataFrame])
def test_a_frame_of_interactions_is_answered_by_a_frame(recommender, expected, make):
    actual = recommender.recommend(make(FRAME), k=4)
    assert isinstance(actual, pd.DataFrame if make is pd.DataFrame else pl.DataFrame)
    assert list(actual.columns) == ["user", "rank", "item", "score", "title"]
    assert list(actual["user"]) == ["ann"] * 4 + ["bob"] * 4
    assert list(actual["rank"]) == [1, 2, 3, 4, 1, 2, 3, 4]
    assert list(actual["item"]) == [*expected["ann"], *expected["bob"]]
    scores = scores_of(recommender, HISTORIES["bob"])
    assert list(actual["score"])[4:] == pytest.approx([scores[i] for i in expected["bob"]])


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame])
def test_a_frame_may_have_a_history_per_row(recommender, expected, make):
    frame = make({"user": list(HISTORIES), "items": list(HISTORIES.values())})
    actual = recommender.recommend(frame, k=4)
    assert list(actual["item"]) == [*expected["ann"], *expected["bob"]]


def test_a_frame_without_users_is_refused(recommender):
    with pytest.raises(ValueError, match="columns user and item, got 'customer', 'item'; rename"):
        recommender.recommend(pl.DataFrame({"customer": ["ann"], "item": ["heat"]}))


@pytest.mark.parametrize("candidates", [["heat", "10", "fargo"], [*ITEMS[1:], "new in stock"]])
def test_only_candidates_are_recommended(recommender, candidates):
    """Few of them are scored apart, many with the rest: both must agree with all logits."""
    for history in HISTORIES.values():
        scores = scores_of(recommender, history)
        allowed = set(candidates) & set(ITEMS) - set(history)
        actual = recommender.recommend(history, k=9, candidates=candidates)
        assert items_of(actual) == best(scores, allowed, 9)
        assert [each.score for each in actual] == pytest.approx(
            [scores[each.item] for each in actual], abs=1e-6
        )


def test_candidates_may_have_been_seen(recommender):
    actual = recommender.recommend(["heat"], candidates=["heat"], exclude_seen=False)
    assert items_of(actual) == ["heat"]
    assert recommender.recommend(["heat"], candidates=["heat"]) == []


def test_excluded_items_are_recommended_to_nobody(recommender):
    for history in HISTORIES.values():
        allowed = set(ITEMS) - set(history) - {"fargo", "11"}
        actual = recommender.recommend(history, k=9, exclude=["fargo", "11", "unheard of"])
        assert items_of(actual) == best(scores_of(recommender, history), allowed, 9)


@pytest.mark.parametrize("candidates", [None, ["fargo", "heat", "éclair"]])
def test_items_can_be_excluded_by_user(recommender, candidates):
    actual = recommender.recommend(
        HISTORIES, k=9, candidates=candidates, exclude={"ann": ["fargo"], "eve": ["heat"]}
    )
    for user, history in HISTORIES.items():
        allowed = set(candidates or ITEMS) - set(history)
        allowed -= {"fargo"} if user == "ann" else set()
        assert items_of(actual[user]) == best(scores_of(recommender, history), allowed, 9)


def test_one_bad_user_does_not_fail_the_others_and_is_named(recommender, expected):
    histories = {"eve": ["zardoz"], "ann": HISTORIES["ann"], "joe": "heat", "tim": [7]}
    with pytest.warns(
        UserWarning, match="3 of 4 histories cannot be read, the first is user 'eve': 1 of 1"
    ):
        actual = recommender.recommend(histories, k=4)
    assert items_of(actual["ann"]) == expected["ann"]
    assert actual["ann"].problem is None
    assert (actual["eve"], actual["joe"], actual["tim"]) == ([], [], [])
    assert "the first is 'zardoz'" in actual["eve"].problem
    assert "a history must be a list of raw items, got 'heat'" in actual["joe"].problem
    assert "a raw item must be a string, got 7; write '7'" in actual["tim"].problem


def test_a_bad_history_without_user_is_named_by_its_place(recommender, expected):
    with pytest.warns(
        UserWarning, match="1 of 2 histories cannot be read, the first is history 1: a history"
    ):
        actual = recommender.recommend([HISTORIES["ann"], "dune"], k=4)
    assert [items_of(each) for each in actual] == [expected["ann"], []]


def test_a_bad_user_has_no_rows_in_a_frame(recommender, expected):
    rows = {"user": ["eve", "ann", "ann"], "item": ["zardoz", "heat", "brazil"]}
    with pytest.warns(UserWarning, match="user 'eve'"):
        actual = recommender.recommend(pl.DataFrame(rows), k=4)
    assert actual["user"].unique().to_list() == ["ann"]
    assert actual["item"].to_list() == expected["ann"]


def test_a_cold_history_gets_what_was_asked_for(recommender, folder):
    cold = {"skip": ["zardoz"], "none": []}
    options = {"k": 3, "unknown": "skip", "exclude": ["10"]}
    by_mask = best(scores_of(recommender, []), set(ITEMS) - {"10"}, 3)
    actual = recommender.recommend(cold, cold="mask", **options)
    assert [items_of(each) for each in actual.values()] == [by_mask, by_mask]
    assert recommender.recommend(cold, cold="empty", **options) == {"skip": [], "none": []}
    popular = Recommender.from_pretrained(folder)
    popular.count_popularity([["heat", "10"], ["heat", "10", "zardoz"], ["heat", "fargo"], ["11"]])
    actual = popular.recommend(cold, cold="popular", **options)
    assert [tuple(each)[:2] for each in actual["none"]] == [("heat", 3), ("11", 1), ("fargo", 1)]
    assert actual["skip"] == actual["none"]
    assert items_of(recommender.recommend([], cold="mask", **options)) == by_mask
    with pytest.raises(ValueError, match="none of the 0 items .* choose cold: mask, popular"):
        recommender.recommend([])


def test_no_users_get_no_recommendations(recommender):
    assert recommender.recommend({}) == {}
    assert recommender.recommend(pl.DataFrame({"user": [], "item": []})).is_empty()


def test_an_adapter_can_be_put_on_a_model(folder, recommender, tmp_path):
    model = BERT4RecForMaskedItemModeling.from_pretrained(folder)
    model = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    model.save_pretrained(tmp_path)
    adapted = Recommender.from_pretrained(folder, adapter=tmp_path)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([[10, 3, 1]])).logits[0, -1, 2:]
    actual = adapted.recommend(["heat", "11"], k=9, exclude_seen=False)
    assert items_of(actual) == [ITEMS[place] for place in logits.argsort(descending=True)]
    build_vocabulary(ITEMS).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is an adapter itself, so other cannot be put on it"):
        Recommender.from_pretrained(tmp_path, adapter="other")


def test_weights_can_be_held_in_another_dtype(folder, recommender):
    half = Recommender.from_pretrained(folder, dtype="bfloat16", device="cpu")
    assert half.scorer.weight.dtype == torch.bfloat16
    expected = {each.item: each.score for each in recommender.recommend(["heat"], k=8)}
    for item, score, _ in half.recommend(["heat"], k=8):
        assert score == pytest.approx(expected[item], abs=0.05)
    with pytest.raises(ValueError, match="dtype must be one such as .*, got 'int8'"):
        Recommender.from_pretrained(folder, dtype="int8")
