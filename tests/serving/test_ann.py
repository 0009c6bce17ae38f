import builtins

import numpy as np
import pytest
import torch

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.recommender import Recommender

pytest.importorskip("faiss")
ITEMS = [f"item {number}" for number in range(3_001)]
HISTORIES = [[f"item {number}", f"item {7 * number}"] for number in range(40)]


@pytest.fixture(scope="module", params=[True, False], ids=["bias", "no bias"])
def recommender(request):
    """Items lie around a few centers, as those of trained models do."""
    torch.manual_seed(8)
    config = BERT4RecConfig(
        vocab_size=len(ITEMS) + 2, hidden_size=12, intermediate_size=20, output_bias=request.param
    )
    model = BERT4RecForMaskedItemModeling(config)
    centers = torch.randn(50, 12)
    with torch.no_grad():
        near = centers[torch.randint(50, (len(ITEMS),))] + 0.3 * torch.randn(len(ITEMS), 12)
        model.model.embed_tokens.weight[2:] = near
        if request.param:
            torch.nn.init.normal_(model.lm_head.bias, std=0.3)
    recommender = Recommender(model, build_vocabulary(ITEMS))
    recommender.build_index(HISTORIES, num_lists=64)
    return recommender


def items_of(rows):
    return [[each.item for each in row] for row in rows]


def test_a_search_of_all_lists_is_exact(recommender):
    probes, recommender.index.probes = recommender.index.probes, 64
    actual = recommender.recommend(HISTORIES, k=5, approximate=True)
    recommender.index.probes = probes
    expected = recommender.recommend(HISTORIES, k=5)
    assert items_of(actual) == items_of(expected)
    for row, other in zip(actual, expected, strict=True):
        scores = [each.score for each in other]
        assert [each.score for each in row] == pytest.approx(scores, abs=1e-4)


def test_a_tuned_index_finds_nearly_everything_in_some_of_its_lists(recommender):
    vectors = recommender.encode(HISTORIES)
    exact = np.argsort(-(vectors @ recommender.item_vectors.T), axis=1)[:, :10]
    found = recommender.recommend(HISTORIES, k=10, exclude_seen=False, approximate=True)
    shares = [
        np.mean([f"item {place}" in items for place in row])
        for row, items in zip(exact, items_of(found), strict=True)
    ]
    assert np.mean(shares) >= 0.98
    assert recommender.index.measure_overlap(vectors) == pytest.approx(np.mean(shares))
    assert recommender.index.probes < 64
    recommender.index.probes, probes = 1, recommender.index.probes
    assert recommender.index.measure_overlap(vectors) < 0.98
    recommender.index.probes = probes


def test_seen_and_excluded_items_are_left_out(recommender):
    best = items_of(recommender.recommend(HISTORIES, k=1, exclude_seen=False, approximate=True))
    again = [[*history, item] for history, (item,) in zip(HISTORIES, best, strict=True)]
    for history, row in zip(again, recommender.recommend(again, approximate=True), strict=True):
        assert len(row) == 10
        assert not {each.item for each in row} & set(history)
    excluded = {0: best[0]}
    row = recommender.recommend(HISTORIES[:1], exclude=excluded, approximate=True)[0]
    assert best[0][0] not in {each.item for each in row}


def test_what_an_index_cannot_do_is_refused(recommender, monkeypatch):
    with pytest.raises(ValueError, match="supports neither candidates nor items excluded for all"):
        recommender.recommend(HISTORIES, candidates=ITEMS[:9], approximate=True)
    with pytest.raises(ValueError, match="probes must be 1 to 64, the lists, got 65"):
        recommender.index.probes = 65
    monkeypatch.setattr(recommender, "index", None)
    with pytest.raises(ValueError, match="there is no index; call build_index first"):
        recommender.recommend(HISTORIES, approximate=True)
    load = builtins.__import__

    def without_faiss(name, *arguments, **options):
        if name == "faiss":
            raise ImportError
        return load(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    with pytest.raises(ImportError, match=r"pip install \"bert4rec_hf\[ann\]\""):
        recommender.build_index()
