import numpy as np
import pytest

from bert4rec_hf.data.histories import Histories


@pytest.mark.parametrize("has_targets", [True, False])
def test_drawn_histories_are_some_of_all_in_their_order(has_targets):
    generator = np.random.default_rng(1)
    lengths = generator.integers(0, 5, size=41)
    values = np.arange(lengths.sum(), dtype=np.int32)  # each item once, so that rows are known
    targets = np.arange(41) + 100 if has_targets else None
    whole = Histories(values, np.append(0, np.cumsum(lengths)), targets)
    some = whole.draw(17, seed=3)
    rows = [
        row
        for row in range(41)
        if lengths[row] and any(np.array_equal(whole[row], some[place]) for place in range(17))
    ]
    kept = [some[place].tolist() for place in range(17) if len(some[place])]
    assert [whole[row].tolist() for row in rows] == kept
    assert len(some) == 17
    if has_targets:
        for place in range(17):
            assert np.array_equal(whole[some.targets[place] - 100], some[place])
        assert len(set(some.targets)) == 17
    other = whole.draw(17, seed=4)
    assert not np.array_equal(other.values, some.values)
    assert np.array_equal(whole.draw(17, seed=3).values, some.values)
    assert whole.draw(41, seed=3) is whole
