from itertools import permutations

import numpy as np
import pytest

from bert4rec_hf.evaluation.candidates import CandidateSampler

ROWS = np.arange(6_007)
POPULARITY = np.array([99, 99, 0, 1, 2, 3, 40, 5])
UNSEEN = [3, 4, 6, 7]


def draws_of(num_negatives, seed=0):
    sampler = CandidateSampler(POPULARITY, num_negatives, seed)
    return sampler.draw(ROWS, [np.array([2])] * len(ROWS), np.full(len(ROWS), 5))


@pytest.mark.parametrize("num_negatives", [1, 2, 3, 4])
def test_negatives_follow_a_draw_without_replacement_by_popularity(num_negatives):
    # Few draws are needed for one negative; four are all there is, so the last ones must be raced.
    draws = draws_of(num_negatives)
    assert draws.shape == (6_007, num_negatives)
    for order in permutations(UNSEEN, num_negatives):
        expected, left = 1.0, POPULARITY[UNSEEN].sum()
        for item in order:
            expected *= POPULARITY[item] / left
            left -= POPULARITY[item]
        share = (draws == order).all(axis=1).mean()
        assert share == pytest.approx(expected, abs=0.025)


def test_rare_items_are_drawn_by_their_popularity_too():
    # Item 2 is nearly all that is drawn with replacement; the other two are left to the race.
    sampler = CandidateSampler(np.array([0, 0, 10_000_000, 1, 3]), num_negatives=2, seed=1)
    draws = sampler.draw(ROWS, [np.array([], dtype=np.int32)] * len(ROWS), np.full(len(ROWS), 0))
    assert (draws[:, 0] == 2).mean() > 0.999
    assert (draws[:, 1] == 4).mean() == pytest.approx(3 / 4, abs=0.025)


def test_what_a_history_draws_depends_on_its_row_and_the_seed_alone():
    sampler = CandidateSampler(np.arange(53), num_negatives=11, seed=3)
    histories = [np.arange(2, 2 + size) for size in (5, 1, 7)]
    together = sampler.draw(np.array([4, 9, 2]), histories, np.array([50, 51, 52]))
    alone = sampler.draw(np.array([9]), histories[1:2], np.array([51]))
    np.testing.assert_array_equal(together[1], alone[0])
    other = CandidateSampler(np.arange(53), num_negatives=11, seed=4)
    assert (other.draw(np.array([9]), histories[1:2], np.array([51])) != alone).any()


def test_too_few_negatives_are_counted():
    sampler = CandidateSampler(np.array([0, 0, 5, 0, 1, 7]), num_negatives=3, seed=0)
    with pytest.raises(ValueError, match="num_negatives is 3, but only 2 items"):
        sampler.draw(np.array([0]), [np.array([2, 2])], np.array([3]))
