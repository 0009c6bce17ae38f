from itertools import product

import numpy as np
import pytest
import torch

from bert4rec_hf.data import negatives
from bert4rec_hf.data.negatives import NegativeSampler
from bert4rec_hf.modeling.objectives import ItemTable, Negatives, full_softmax, sampled_softmax

POPULARITY = np.array([0, 0, 1, 7, 0, 12])
TARGETS = np.array([3, 5, 5])


def draw_many(distribution, num_negatives=500):
    sampler = NegativeSampler(POPULARITY, num_negatives, distribution)
    draws = [sampler.draw(np.uint64(key), TARGETS) for key in range(100)]
    ids = np.concatenate([each["negatives"].numpy() for each in draws])
    logs = np.concatenate([each["negative_log_counts"].numpy() for each in draws])
    return ids, logs


@pytest.mark.parametrize(
    ("distribution", "shares"),
    # An item that nobody met is drawn as one that was met once.
    [("uniform", [1 / 4] * 4), ("popularity", [1 / 21, 7 / 21, 1 / 21, 12 / 21])],
)
def test_items_are_drawn_as_often_as_expected(distribution, shares):
    ids, logs = draw_many(distribution)
    counts = np.bincount(ids, minlength=6)
    assert counts[:2].tolist() == [0, 0]
    # 50,000 draws: three standard deviations of a share are 0.007 at most.
    np.testing.assert_allclose(counts[2:] / len(ids), shares, atol=0.008)
    expected = np.log(np.array([np.nan, np.nan, *shares]) * 500)
    np.testing.assert_allclose(logs, expected[ids], rtol=1e-5)


def test_a_key_always_draws_the_same_and_another_something_else():
    sampler = NegativeSampler(POPULARITY, 40, "uniform")
    first, again, other = (
        sampler.draw(np.uint64(key), TARGETS)["negatives"].tolist() for key in (5, 5, 6)
    )
    assert first == again != other


def test_a_mixture_takes_targets_and_corrects_scores_for_how_often_each_item_was_expected():
    drawn = NegativeSampler(POPULARITY, 10, "mixed").draw(np.uint64(8), TARGETS)
    ids, logs = drawn["negatives"], drawn["negative_log_counts"]
    assert sorted(ids[:3].tolist()) == [3, 5, 5]
    # 7 of 4 items alike; and of the 3 targets, the 2 that are not a masked item's own.
    expected = {2: 7 / 4 + 2 / 21, 3: 7 / 4 + 2 * 7 / 21, 4: 7 / 4 + 2 / 21, 5: 7 / 4 + 2 * 12 / 21}
    assert logs.exp().tolist() == pytest.approx([expected[item] for item in ids.tolist()])

    scores = torch.tensor([0.0, 0.0, 0.3, -0.2, 1.1, 0.7])
    loss = sampled_softmax(
        torch.ones(1, 1),
        torch.tensor([4]),
        torch.ones(1),
        ItemTable(scores.unsqueeze(1), None),
        Negatives(ids, logs),
    )
    corrected = [scores[item] - np.log(expected[item]) for item in ids.tolist() if item != 4]
    total = np.exp(1.1) + np.exp(corrected).sum()
    assert loss.item() == pytest.approx(np.log(total) - 1.1)


def test_targets_are_at_most_half_of_a_mixture():
    many = np.repeat([3, 5], 30)
    drawn = NegativeSampler(POPULARITY, 9, "mixed").draw(np.uint64(1), many)
    assert len(drawn["negatives"]) == 9
    assert set(drawn["negatives"][:4].tolist()) <= {3, 5}
    # 5 uniform; 4 taken of 60, of which one in 60 is a masked item's own.
    expected = 5 / 4 + 4 * 59 / 60 * np.array([7, 12]) / 21
    counts = dict(zip([3, 5], expected, strict=True))
    for item, log in zip(drawn["negatives"].tolist(), drawn["negative_log_counts"], strict=True):
        assert log.exp().item() == pytest.approx(counts.get(item, 5 / 4 + 4 * 59 / 60 / 21))


def test_over_all_draws_of_a_mixture_the_sum_of_exponentials_and_its_gradient_are_the_whole(
    monkeypatch,
):
    """Two masked items, one taken as a negative, and two uniform draws: all cases, enumerated."""
    shares = np.array([1, 7, 1, 12]) / 21
    sampler = NegativeSampler(POPULARITY, 3, "mixed")
    table = torch.tensor([[0.0], [0.0], [0.3], [-0.2], [1.1], [0.7]], dtype=torch.float64)
    states = torch.tensor([[1.3]], dtype=torch.float64)
    asked = (states, torch.tensor([4]), torch.ones(1, dtype=torch.float64))

    def likelihood(objective, drawn=None):
        """Of the target, inverted: the sum of all exponentials over its own; and its gradient."""
        weight = table.clone().requires_grad_()
        value = objective(*asked, ItemTable(weight, None), drawn).double().exp()
        return torch.cat([value.reshape(1), *torch.autograd.grad(value, weight)[0]]).detach()

    total, cases = torch.zeros(7, dtype=torch.float64), 0
    for other, taken, one, two in product(range(4), range(2), range(4), range(4)):
        draws = {2**33: np.array([taken, 1 - taken]), 2**32: (np.array([one, two]) + 0.5) / 4}
        monkeypatch.setattr(negatives, "uniform_draws", lambda _, at, draws=draws: draws[at[0]])
        drawn = Negatives(*sampler.draw(np.uint64(0), np.array([4, 2 + other])).values())
        probability = shares[other] / 2 / 16
        total += probability * likelihood(sampled_softmax, drawn)
        cases += 1
    assert cases == 128
    torch.testing.assert_close(total, likelihood(full_softmax), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "uniform"), "num_negatives must be at least 1, got 0"),
        (
            (5, "popular"),
            "negative_distribution must be one of uniform, popularity, mixed, got 'popular'",
        ),
    ],
)
def test_an_impossible_draw_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NegativeSampler(POPULARITY, *arguments)
