from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import sparse

from bert4rec_hf.evaluation.baselines import item_knn
from bert4rec_hf.training import neighbors
from bert4rec_hf.training.neighbors import count_neighbors, keep_largest

HISTORIES = [np.array(ids, dtype=np.int32) for ids in ([2, 3, 4], [5, 2, 3], [3, 5, 2, 4, 3], [6])]
VOCAB_SIZE = 7


def similarities_by_loops(exponent, max_distance):
    popularity = np.bincount(np.concatenate(HISTORIES), minlength=VOCAB_SIZE) + 5
    meetings = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
    for history in HISTORIES:
        for place, item in enumerate(history):
            for other, neighbor in enumerate(history):
                if item != neighbor and abs(place - other) <= max_distance:
                    meetings[item, neighbor] += 1 / abs(place - other)
    scales = np.outer(popularity**exponent, popularity ** (1 - exponent))
    return meetings / scales


def dense(table):
    similarities = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
    for item in range(VOCAB_SIZE):
        for neighbor, number in zip(table.ids[item], table.similarities[item], strict=True):
            similarities[item, neighbor] += number
    return similarities


@pytest.mark.parametrize(("exponent", "max_distance"), [(0.5, 3), (0.8, 2)])
def test_neighbors_are_counted_as_plain_loops_count_them(exponent, max_distance):
    options = {"max_distance": max_distance, "exponent": exponent}
    table = count_neighbors(HISTORIES, VOCAB_SIZE, 6, **options)
    expected = similarities_by_loops(**options)
    np.testing.assert_allclose(dense(table), expected, rtol=1e-6)
    # What a meeting one place apart adds; 2 has three interactions and 4 has two.
    scale = table.scales[2, 0] * table.scales[4, 1]
    assert scale.item() == pytest.approx(1 / (8**exponent * 7 ** (1 - exponent)), rel=1e-6)


def test_of_many_interactions_those_of_some_whole_histories_are_counted(monkeypatch):
    monkeypatch.setattr(neighbors, "MAX_COUNTED_ITEMS", 9)
    found = count_neighbors(HISTORIES, VOCAB_SIZE, 6)
    monkeypatch.undo()
    subsets = [
        chosen
        for count in range(1, len(HISTORIES))
        for chosen in combinations(HISTORIES, count)
        if sum(map(len, chosen)) <= 9
    ]
    tables = [count_neighbors(chosen, VOCAB_SIZE, 6) for chosen in subsets]
    same = [all(map(torch.equal, found, table)) for table in tables]
    assert sum(same) == 1
    assert not all(map(torch.equal, found, count_neighbors(HISTORIES, VOCAB_SIZE, 6)))


def test_all_neighbors_score_as_the_baseline_does():
    table = count_neighbors(HISTORIES, VOCAB_SIZE, 6, max_distance=3, exponent=0.5)
    scorer = item_knn(HISTORIES, VOCAB_SIZE)
    np.testing.assert_allclose(dense(table), scorer.similarity.toarray(), rtol=1e-6)


def test_the_nearest_are_kept_in_order():
    full, kept = (count_neighbors(HISTORIES, VOCAB_SIZE, count) for count in (6, 2))
    assert torch.equal(full.ids[:, :2], kept.ids)
    assert torch.equal(full.similarities[:, :2], kept.similarities)
    assert (full.similarities.diff(dim=1) <= 0).all()
    assert not full.similarities[[0, 1, 6]].any(), "nobody has met padding, mask or a loner"


def test_the_lower_of_two_equal_columns_comes_first():
    matrix = sparse.csr_array(np.array([[0, 0.5, 0.25, 0.5], [0, 0, 0, 0], [1.0, 0, 0, 0]]))
    columns, numbers = keep_largest(matrix, 2)
    assert columns.tolist() == [[1, 3], [0, 0], [0, 0]]
    assert numbers.tolist() == [[0.5, 0.5], [0, 0], [1, 0]]
