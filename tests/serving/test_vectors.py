import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from bert4rec_hf.commands.embed import main
from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.recommender import Recommender

ITEMS = [f"item {number}" for number in range(23)]
HISTORIES = {"ann": ["item 3", "item 9"], "bob": ["item 1"], "joe": ["item 5", "item 2", "item 7"]}


@pytest.fixture(scope="module", params=[True, False], ids=["bias", "no bias"])
def folder(tmp_path_factory, request):
    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("model")
    config = BERT4RecConfig(
        vocab_size=len(ITEMS) + 2,
        hidden_size=12,
        intermediate_size=20,
        max_history_length=6,
        output_bias=request.param,
    )
    model = BERT4RecForMaskedItemModeling(config)
    if request.param:
        torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(path)
    build_vocabulary(ITEMS).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def recommender(folder):
    return Recommender.from_pretrained(folder)


def logits_of(recommender, histories):
    """(histories, items) logits behind each history and a mask."""
    with torch.no_grad():
        rows = [
            recommender.scorer.model(torch.tensor([[*map(number_of, history), 1]])).logits[0, -1]
            for history in histories
        ]
    return torch.stack(rows)[:, 2:].numpy()


def number_of(item):
    return ITEMS.index(item) + 2


def test_the_inner_product_of_vectors_is_the_score(recommender):
    vectors = recommender.encode(list(HISTORIES.values()))
    products = vectors @ recommender.item_vectors.T
    assert products == pytest.approx(logits_of(recommender, HISTORIES.values()), abs=1e-5)


def test_vectors_come_in_the_shape_of_the_histories(recommender):
    vectors = recommender.encode(list(HISTORIES.values()))
    assert recommender.encode(HISTORIES["ann"]) == pytest.approx(vectors[0], abs=1e-6)
    assert recommender.encode(HISTORIES)["joe"] == pytest.approx(vectors[2], abs=1e-6)
    frame = pl.DataFrame({"user": list(HISTORIES), "items": list(HISTORIES.values())})
    for actual in (recommender.encode(frame), recommender.encode(frame.to_pandas())):
        assert isinstance(actual, pl.DataFrame | pd.DataFrame)
        assert list(actual["user"]) == list(HISTORIES)
        assert np.stack(actual["vector"].to_list()) == pytest.approx(vectors, abs=1e-6)


def test_a_history_that_cannot_be_read_has_no_vector(recommender):
    with pytest.warns(UserWarning, match="1 of 2 histories cannot be read, the first is history 0"):
        vectors = recommender.encode([["zardoz"], ["item 1"]])
    assert np.isnan(vectors[0]).all()
    assert np.isfinite(vectors[1]).all()
    with pytest.warns(UserWarning, match="user 'eve'"):
        assert list(recommender.encode({"eve": ["zardoz"], "bob": ["item 1"]})) == ["bob"]
    with pytest.raises(KeyError, match="the first is 'zardoz'"):
        recommender.encode(["zardoz"])
    masked = recommender.encode([], cold="mask") @ recommender.item_vectors.T
    assert masked == pytest.approx(logits_of(recommender, [[]])[0], abs=1e-5)


def test_similar_items_point_the_same_way(recommender):
    table = recommender.scorer.model.lm_head.weight.detach().numpy()[2:]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = unit @ unit[8]
    expected = [place for place in np.argsort(-cosines) if place != 8][:4]
    actual = recommender.similar_items("item 8", k=4)
    assert [each.item for each in actual] == [ITEMS[place] for place in expected]
    assert [each.score for each in actual] == pytest.approx(cosines[expected], abs=1e-6)
    several = recommender.similar_items(["item 8", "item 0"], k=4)
    assert [each.item for each in several[0]] == [each.item for each in actual]
    assert len(recommender.similar_items("item 0", k=99)) == len(ITEMS) - 1


def test_what_is_no_item_resembles_nothing(recommender):
    with pytest.raises(KeyError, match="the first is 'zardoz'"):
        recommender.similar_items("zardoz")
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        recommender.similar_items("item 1", k=0)


def test_the_command_writes_vectors_of_users_and_items(folder, recommender, tmp_path):
    rows = [(user, item) for user, history in HISTORIES.items() for item in history]
    orders = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    orders.write_csv(tmp_path / "orders.csv")
    options = [
        "--interactions",
        "orders.csv",
        "--output",
        "users.parquet",
        "--items",
        "items.parquet",
    ]
    paths = [str(tmp_path / each) if "." in each else each for each in options]
    main([str(folder), *paths, "--timestamp-column", "", "--users-per-file", "2"])
    users = pl.read_parquet(tmp_path / "users.parquet").sort("user")
    assert users["user"].to_list() == list(HISTORIES)
    expected = recommender.encode(list(HISTORIES.values()))
    assert users["vector"].to_numpy() == pytest.approx(expected, abs=1e-5)
    items = pl.read_parquet(tmp_path / "items.parquet")
    assert items["item"].to_list() == ITEMS
    assert np.array_equal(items["vector"].to_numpy(), recommender.item_vectors)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["items.parquet", "orders.csv", "users.parquet"]
    with pytest.raises(SystemExit):
        main([str(folder), *paths])
