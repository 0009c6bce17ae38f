import pytest
import torch

from bert4rec_hf.tuners.ilora.gate import GATES, spread, summarize_prefixes
from bert4rec_hf.tuners.ilora.prefixes import end_at_prefixes, end_at_themselves, find_histories


def summarize_padded(embeddings, mask):
    return summarize_prefixes(embeddings, find_histories(*mask.shape, mask, None))


def lengths_of(*lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


def test_a_summary_is_the_normalized_mean_of_a_history():
    embeddings = torch.tensor([[[9.0, 9.0, 9.0], [1.0, 0.0, 5.0], [3.0, 4.0, 1.0]]])
    summary = summarize_padded(embeddings, torch.tensor([[0, 1, 1]]))
    # The mean is (2, 2, 3): a third below and two thirds above, over a deviation of √2 / 3.
    root = 2**0.5
    torch.testing.assert_close(summary, torch.tensor([[-1 / root, -1 / root, root]]))


@pytest.mark.parametrize("scale", [0.02, 40.0])
def test_a_summary_does_not_know_the_scale_of_the_table(scale):
    embeddings = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    expected = summarize_padded(embeddings, mask)
    torch.testing.assert_close(summarize_padded(embeddings * scale, mask), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("is_causal", [True, False])
def test_packed_and_padded_histories_have_the_same_summaries(dtype, is_causal):
    lengths = [2, 4, 0, 1]
    padded = torch.randn(4, 4, 7, dtype=dtype)
    mask = torch.arange(4) < torch.tensor(lengths).unsqueeze(1)
    packed = padded[mask].unsqueeze(0)
    sides = [find_histories(1, 7, None, lengths_of(*lengths)), find_histories(4, 4, mask, None)]
    if is_causal:
        sides = [end_at_themselves(side) for side in sides]
    actual, expected = (
        summarize_prefixes(*each) for each in zip((packed, padded), sides, strict=True)
    )
    assert actual.dtype == torch.promote_types(dtype, torch.float32)
    if is_causal:
        expected = expected[mask.flatten()]
    else:
        assert not actual[2].any()  # of no items
    torch.testing.assert_close(actual, expected)


def normalized(items):
    centered = sum(items) / len(items)
    centered = centered - centered.mean()
    return centered / (centered**2).mean().sqrt()


def test_a_causal_summary_is_the_mean_of_the_items_so_far():
    rows = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(1))
    prefixes = end_at_themselves(find_histories(1, 5, None, lengths_of(2, 3)))
    seen = [[0], [0, 1], [2], [2, 3], [2, 3, 4]]
    expected = torch.stack([normalized(rows[0, each]) for each in seen])
    torch.testing.assert_close(summarize_prefixes(rows, prefixes), expected)


def test_a_summary_of_a_prefix_has_its_items_and_that_of_a_query_itself_too():
    rows = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(1))
    # Two items, a query, another item and a query; then an item, a query, and two items.
    prefix_ids = torch.tensor([[0, 0, 0, 1, 1, 0, 0, 1, 1]])
    is_query = torch.tensor([[0, 0, 1, 0, 1, 0, 1, 0, 0]]) == 1
    prefixes = end_at_prefixes(find_histories(1, 9, None, lengths_of(5, 4)), prefix_ids, is_query)
    seen = [[0, 1], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [5], [5, 6], [5, 7, 8], [5, 7, 8]]
    expected = torch.stack([normalized(rows[0, each]) for each in seen])
    torch.testing.assert_close(summarize_prefixes(rows, prefixes), expected)


def test_summaries_stay_exact_however_many_histories_come_first():
    rows = 1 + torch.randn(1, 30_000, 5, generator=torch.Generator().manual_seed(2))
    histories = find_histories(1, 30_000, None, lengths_of(29_990, 10))
    alone = find_histories(1, 10, None, lengths_of(10))
    actual = summarize_prefixes(rows, end_at_themselves(histories))[29_990:]
    expected = summarize_prefixes(rows[:, 29_990:], end_at_themselves(alone))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_a_summary_is_no_path_for_gradients():
    embeddings = torch.randn(1, 3, 5, requires_grad=True)
    assert not summarize_padded(embeddings, torch.ones(1, 3)).requires_grad


def test_positions_have_the_weights_of_their_history_padded():
    weights = torch.tensor([[0.1, 0.9], [0.2, 0.8]])
    histories = find_histories(2, 3, torch.ones(2, 3), None)
    every, kept = spread(weights, histories, 2, keep=torch.tensor([5, 0, 1, 4]))
    assert every.shape == (2, 3, 2)
    assert every[..., 0].tolist() == weights[:, :1].expand(2, 3).tolist()
    assert torch.equal(kept, weights[[1, 0, 0, 1]].unsqueeze(0))


def test_positions_have_the_weights_of_their_history_packed():
    weights = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    histories = find_histories(1, 5, None, lengths_of(2, 0, 3))
    every, kept = spread(weights, histories, 1, keep=torch.tensor([4, 1]))
    assert torch.equal(every, weights[[0, 0, 2, 2, 2]].unsqueeze(0))
    assert torch.equal(kept, weights[[2, 0]].unsqueeze(0))
    assert len(spread(weights, histories, 1, keep=None)) == 1


@pytest.mark.parametrize("name", GATES)
def test_a_gate_has_a_number_for_each_expert_and_history(name):
    gate = GATES[name](7, 3)
    summary = torch.randn(5, 7)
    logits = gate(summary)
    assert logits.shape == (5, 3)
    assert torch.equal(logits[0], logits[1]) == (name != "instance")
    numbers = {"instance": 3 * 7 + 3, "constant": 3, "uniform": 0}
    assert sum(weight.numel() for weight in gate.parameters()) == numbers[name]


def test_a_fresh_gate_weighs_the_experts_nearly_alike():
    torch.manual_seed(0)
    summaries = torch.nn.functional.layer_norm(torch.randn(500, 64), (64,))
    largest = GATES["instance"](64, 4)(summaries).softmax(dim=-1).amax(dim=-1).mean()
    assert 0.25 < largest < 0.30
