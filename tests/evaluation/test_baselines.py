import numpy as np
import pytest

from bert4rec_hf.evaluation.baselines import BASELINES, count_followers, item_knn
from bert4rec_hf.evaluation.ranking import CatalogScores, top_items

HISTORIES = [np.array(ids, dtype=np.int32) for ids in ([2, 3, 4], [5, 2, 3], [3, 5, 2, 4], [4])]
VOCAB_SIZE = 6


def scores_of(name, history):
    scorer = BASELINES[name](HISTORIES, VOCAB_SIZE)
    encoded = scorer.encode([np.array([5, 5, 5], dtype=np.int32), np.array(history)])
    return scorer.score(encoded, 2, VOCAB_SIZE)[1].tolist()


def test_popularity_counts_interactions():
    assert scores_of("popularity", [5]) == [3, 3, 3, 2]


def test_last_item_counts_what_came_right_after_it():
    # After 2 came 3 twice and 4 once; what stood before it does not matter.
    assert scores_of("last_item", [4, 3, 2]) == [0, 2, 1, 0]


def test_item_knn_matches_plain_loops():
    popularity = np.bincount(np.concatenate(HISTORIES))
    cooccurrence = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
    for history in HISTORIES:
        for i, one in enumerate(history):
            for j, other in enumerate(history):
                if one != other and abs(i - j) <= 3:
                    cooccurrence[one, other] += 1 / abs(i - j)
    similarity = cooccurrence / np.sqrt(np.outer(popularity + 5, popularity + 5))
    expected = similarity[5] + 0.7 * similarity[3] + 0.49 * similarity[2]
    assert scores_of("item_knn", [2, 3, 5]) == pytest.approx(expected[2:], rel=1e-6)


def test_item_knn_reads_the_last_10_items_only():
    old, new = [4, 4, 4], [3, 2, 3, 5, 3, 2, 3, 5, 3, 2]
    assert scores_of("item_knn", old + new) == scores_of("item_knn", new)
    assert scores_of("item_knn", [5, *new[1:]]) != scores_of("item_knn", new)


def test_item_knn_ranks_four_items():
    scorer = item_knn([np.array(ids) for ids in ([2, 3], [2, 3], [3, 4], [4, 5])], VOCAB_SIZE)
    chunks = CatalogScores(scorer, scorer.encode([np.array([2])]), chunk_size=3)
    assert top_items(chunks, k=1)[0].tolist() == [[3]]


def test_followers_are_counted_within_a_history_and_never_an_item_after_itself():
    histories = [np.array([2, 2, 3]), np.array([4]), np.array([2, 3, 2])]
    expected = np.zeros((5, 5))
    expected[2, 3], expected[3, 2] = 2, 1
    np.testing.assert_array_equal(count_followers(histories, 5, distance=1).toarray(), expected)
    expected = np.zeros((5, 5))
    expected[2, 3] = 1
    np.testing.assert_array_equal(count_followers(histories, 5, distance=2).toarray(), expected)


def test_chunks_of_a_baseline_are_pieces_of_the_whole():
    for baseline in BASELINES.values():
        scorer = baseline(HISTORIES, VOCAB_SIZE)
        encoded = scorer.encode(HISTORIES)
        whole = scorer.score(encoded, 0, VOCAB_SIZE)
        assert whole.shape == (4, VOCAB_SIZE)
        assert whole[:, 3:5].equal(scorer.score(encoded, 3, 5))
