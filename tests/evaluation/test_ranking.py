import numpy as np
import pytest
import torch

from bert4rec_hf.evaluation.ranking import (
    CatalogScores,
    item_sets,
    rank_among,
    rank_targets,
    top_items,
)

VOCAB_SIZE = 29


@pytest.fixture
def histories():
    generator = np.random.default_rng(0)
    return [
        generator.integers(2, VOCAB_SIZE, size=size).astype(np.int32) for size in (5, 1, 12, 3, 7)
    ]


@pytest.fixture
def targets():
    return np.array([4, 28, 2, 17, 9])


def plain_rank(scores, target, left_out):
    others = [item for item in range(2, len(scores)) if item != target and item not in left_out]
    return 1 + sum(bool(scores[item] >= scores[target]) for item in others)


@pytest.mark.parametrize("chunk_size", [1, 4, 26, 27, 1_000])
def test_ranks_match_a_plain_count_in_chunks_of_any_size(
    histories, targets, table_scorer, chunk_size
):
    table = torch.randn(5, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    scorer = table_scorer(table)
    chunks = CatalogScores(scorer, scorer.encode(histories), chunk_size)
    seen = item_sets(histories, keep=targets)
    ranks = rank_targets(chunks, torch.as_tensor(targets), seen)
    rows = zip(table, targets, histories, strict=True)
    assert ranks.tolist() == [plain_rank(*row) for row in rows]
    ranks = rank_targets(chunks, torch.as_tensor(targets), excluded=None)
    assert ranks.tolist() == [
        plain_rank(scores, target, []) for scores, target in zip(table, targets, strict=True)
    ]


def test_a_target_that_is_in_its_history_stays_a_candidate(table_scorer):
    table = torch.tensor([[0.0, 0.0, 5.0, 4.0, 3.0, 2.0]])
    history, target = [np.array([2, 4, 4])], np.array([4])
    chunks = CatalogScores(table_scorer(table), table, chunk_size=3)
    seen = item_sets(history, keep=target)
    assert rank_targets(chunks, torch.as_tensor(target), seen).tolist() == [2]


@pytest.mark.parametrize("score", [0.37, 0.0, -0.0, -2.5])
def test_a_constant_model_ranks_every_target_last(histories, targets, table_scorer, score):
    scorer = table_scorer(torch.full((5, VOCAB_SIZE), score))
    chunks = CatalogScores(scorer, scorer.encode(histories), chunk_size=10)
    seen = item_sets(histories, keep=targets)
    num_seen = [len(set(ids) - {target}) for ids, target in zip(histories, targets, strict=True)]
    ranks = rank_targets(chunks, torch.as_tensor(targets), seen)
    assert ranks.tolist() == [VOCAB_SIZE - 2 - seen for seen in num_seen]


def test_negatives_that_score_like_the_target_come_before_it(table_scorer):
    table = torch.zeros(1, VOCAB_SIZE)
    chunks = CatalogScores(table_scorer(table), table, chunk_size=10)
    ranks = rank_among(chunks, torch.tensor([3]), torch.tensor([[4, 9, 20]]))
    assert ranks.tolist() == [4]


def test_an_identical_item_ties_wherever_it_stands(dot_scorer):
    items = torch.randn(803, 67)
    items[[100, 411, 802]] = items[57].clone()
    scorer, histories = dot_scorer(items), [np.array([57, n]) for n in range(200, 211)]
    for batch in (histories, histories[:1]):
        for chunk_size in (7, 64, 800, 801):
            chunks = CatalogScores(scorer, scorer.encode(batch), chunk_size)
            ranks = [
                rank_targets(chunks, torch.full((len(batch),), target), None)
                for target in (57, 100, 411, 802)
            ]
            assert all(torch.equal(ranks[0], other) for other in ranks[1:])


def test_scores_of_zero_tie_as_those_of_items_that_no_neighbor_has_do(table_scorer):
    """Of either sign, and however large the scores of others; a larger one stands ahead."""
    table = torch.tensor([[9.0, 9.0, 0.0, -0.0, 3e4, 0.0, -1e-30, 0.5, -4.0]])
    ranks = {
        target: rank_targets(
            CatalogScores(table_scorer(table), table, chunk_size), torch.tensor([target]), None
        ).item()
        for target in range(2, 9)
        for chunk_size in (2, 100)
    }
    # Behind 3e4 and 0.5 the four that are as good as zero share the last of their places.
    assert ranks == {2: 6, 3: 6, 4: 1, 5: 6, 6: 6, 7: 2, 8: 7}


def test_a_score_that_is_not_finite_is_an_error(table_scorer):
    table = torch.zeros(3, 9)
    table[1, 7] = torch.nan
    chunks = CatalogScores(table_scorer(table), table, chunk_size=4)
    with pytest.raises(
        ValueError, match="history 1 of the batch has a score of nan among the items 6 to 8"
    ):
        rank_targets(chunks, torch.tensor([2, 3, 4]), None)
    with pytest.raises(ValueError, match="a score is not a number"):
        top_items(chunks, k=2)


@pytest.mark.parametrize("chunk_size", [2, 5, 27])
def test_top_items_match_a_full_sort(histories, table_scorer, chunk_size):
    table = torch.randn(5, VOCAB_SIZE)
    chunks = CatalogScores(table_scorer(table), table, chunk_size)
    ids, scores = top_items(chunks, k=6, excluded=item_sets(histories))
    for row, history in enumerate(histories):
        left = [item for item in range(2, VOCAB_SIZE) if item not in history]
        expected = sorted(left, key=lambda item: -table[row, item])[:6]
        assert ids[row].tolist() == expected
        torch.testing.assert_close(scores[row], table[row, expected])


@pytest.mark.parametrize("chunk_size", [127, 192, 448, 1_000])
def test_top_items_of_many_groups_match_a_full_sort(table_scorer, chunk_size):
    table = torch.randn(5, 991, generator=torch.Generator().manual_seed(2))
    table[:, 700:706] += torch.arange(6.0)  # several of the best in one group
    before, left_out = table.clone(), [np.arange(2, 500), *[np.array([705, 703])] * 4]
    chunks = CatalogScores(table_scorer(table), table, chunk_size)
    ids, scores = top_items(chunks, k=3, excluded=item_sets(left_out))
    for row, items in enumerate(left_out):
        left = [item for item in range(2, 991) if item not in items]
        expected = sorted(left, key=lambda item: -table[row, item])[:3]
        assert ids[row].tolist() == expected
        assert scores[row].equal(table[row, expected])
    assert table.equal(before)


def test_top_items_run_out_within_many_groups(table_scorer):
    table, everything_but = torch.zeros(1, 331), [np.setdiff1d(np.arange(331), [5, 330])]
    table[0, 330] = -7.0
    chunks = CatalogScores(table_scorer(table), table)
    ids, _ = top_items(chunks, k=4, excluded=item_sets(everything_but))
    assert ids.tolist() == [[5, 330, 0, 0]]


def test_top_items_are_0_where_candidates_run_out(table_scorer):
    table = torch.tensor([[9.0, 9.0, 1.0, 2.0, 3.0]])
    chunks = CatalogScores(table_scorer(table), table, chunk_size=2)
    ids, scores = top_items(chunks, k=7, excluded=item_sets([np.array([4])]))
    assert ids.tolist() == [[3, 2, 0]]
    assert scores.tolist() == [[2.0, 1.0, -torch.inf]]


def test_kept_scores_are_those_of_the_batch_at_hand(table_scorer):
    first, second, kept = torch.randn(3, 23), torch.randn(2, 23), {}

    def whole(chunks):
        return torch.cat([scores for _, scores in chunks], dim=1)

    assert whole(CatalogScores(table_scorer(first), first, 5, kept)).equal(first[:, 2:])
    chunks = CatalogScores(table_scorer(second), second, 5, kept)
    next(iter(chunks))  # broken off: what is kept is now of both batches
    for _ in range(3):
        assert whole(chunks).equal(second[:, 2:])


def test_kept_scores_are_computed_once(recording_scorer):
    scorer, histories = recording_scorer(torch.randn(31, 3)), [np.array([7]), np.array([8])]
    chunks = CatalogScores(scorer, scorer.encode(histories), 13, kept={})
    rank_targets(chunks, torch.tensor([4, 5]), None)
    top_items(chunks, k=2)
    assert scorer.blocks == [(2, 13), (2, 13), (2, 3)]


def test_ranks_among_negatives_match_a_plain_count(table_scorer):
    table = torch.tensor([[9.0, 9.0, 1.0, 2.0, 3.0, 2.0, 0.0], [9.0, 9.0, 6.0, 5.0, 4.0, 3.0, 2.0]])
    chunks = CatalogScores(table_scorer(table), table, chunk_size=2)
    negatives = torch.tensor([[2, 5, 6], [2, 3, 4]])
    assert rank_among(chunks, torch.tensor([3, 6]), negatives).tolist() == [2, 4]
