import numpy as np
import pytest
import torch
from scipy import sparse

from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.new_items import add_items, shares_by_co_occurrence, shares_by_vectors

KINDS = {
    "paper": {},
    "untied": {"tie_word_embeddings": False},
    "without bias": {"output_bias": False, "output_transform": False},
    "neighbors": {"num_neighbors": 3},
}


def build(**settings):
    torch.manual_seed(0)
    config = BERT4RecConfig(vocab_size=7, hidden_size=8, intermediate_size=12, **settings)
    return BERT4RecForMaskedItemModeling(config).eval()


def test_shares_follow_how_often_items_stand_together():
    histories = [np.array(each) for each in ([2, 7], [2, 7], [3, 7], [4, 5])]
    shares = shares_by_co_occurrence(histories, vocab_size=9, num_known=7).toarray()
    assert shares.shape == (2, 7)
    # Twice with 2, once with 3; n(2) = 2 and n(3) = 1, to each of which 5 are added.
    weights = np.array([2 / np.sqrt(7), 1 / np.sqrt(6)])
    assert shares[0, [2, 3]] == pytest.approx(weights / weights.sum())
    assert shares[0].sum() == pytest.approx(1)
    assert shares[1].sum() == 0  # 8 stands with nothing


def test_shares_by_vectors_are_cosines():
    vectors = torch.tensor([[0, 0], [0, 0], [3, 0], [0, 2], [-1, 0], [1, 1.0], [0, 0]])
    shares = shares_by_vectors(vectors, num_known=5).toarray()
    assert shares[0] == pytest.approx([0, 0, 0.5, 0.5, 0])
    assert shares[1].sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_old_items_keep_their_scores_and_new_ones_are_made_of_them(kind):
    model = build(**KINDS[kind])
    ids = torch.tensor([[3, 5, 1]])
    before = model(input_ids=ids).logits[0, -1]
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    known = [layer.weight.detach().clone() for layer in tables]
    add_items(model, sparse.csr_array(np.array([[0, 0, 0.25, 0, 0.75, 0, 0], [0] * 7])))
    assert model.config.vocab_size == 9
    after = model(input_ids=ids).logits[0, -1]
    torch.testing.assert_close(after[:7], before, rtol=0, atol=1e-6)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    for layer, old in zip(tables, known, strict=True):
        mean = 0.25 * old[2] + 0.75 * old[4]
        length = 0.25 * old[2].norm() + 0.75 * old[4].norm()
        torch.testing.assert_close(layer.weight[7], mean / mean.norm() * length)
        torch.testing.assert_close(layer.weight[8], old[2:].mean(dim=0))
    if model.config.tie_word_embeddings:
        assert tables[0].weight is tables[1].weight
