import pytest
import torch

from bert4rec_hf.tuners.ilora.gate import GATES, spread, summarize_histories


def test_a_summary_is_the_normalized_mean_of_a_history():
    embeddings = torch.tensor([[[9.0, 9.0, 9.0], [1.0, 0.0, 5.0], [3.0, 4.0, 1.0]]])
    summary = summarize_histories(embeddings, torch.tensor([[0, 1, 1]]), None)
    # The mean is (2, 2, 3): a third below and two thirds above, over a deviation of √2 / 3.
    root = 2**0.5
    torch.testing.assert_close(summary, torch.tensor([[-1 / root, -1 / root, root]]))


@pytest.mark.parametrize("scale", [0.02, 40.0])
def test_a_summary_does_not_know_the_scale_of_the_table(scale):
    embeddings = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    expected = summarize_histories(embeddings, mask, None)
    torch.testing.assert_close(summarize_histories(embeddings * scale, mask, None), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_packed_and_padded_histories_have_the_same_summaries(dtype):
    lengths = [2, 4, 0, 1]
    padded = torch.randn(4, 4, 7, dtype=dtype)
    mask = torch.arange(4) < torch.tensor(lengths).unsqueeze(1)
    packed = padded[mask].unsqueeze(0)
    cu_seq_lens = torch.tensor([0, *lengths]).cumsum(0).int()
    summary = summarize_histories(packed, None, cu_seq_lens)
    assert summary.dtype == torch.promote_types(dtype, torch.float32)
    assert not summary[2].any()  # of no items
    torch.testing.assert_close(summary, summarize_histories(padded, mask, None))


def test_a_summary_is_no_path_for_gradients():
    embeddings = torch.randn(1, 3, 5, requires_grad=True)
    assert not summarize_histories(embeddings, torch.ones(1, 3), None).requires_grad


def test_positions_have_the_weights_of_their_history_padded():
    weights = torch.tensor([[0.1, 0.9], [0.2, 0.8]])
    every, kept = spread(weights, 3, None, keep=torch.tensor([5, 0, 1, 4]))
    assert every.shape == (2, 3, 2)
    assert every[..., 0].tolist() == weights[:, :1].expand(2, 3).tolist()
    assert torch.equal(kept, weights[[1, 0, 0, 1]].unsqueeze(0))


def test_positions_have_the_weights_of_their_history_packed():
    weights = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    cu_seq_lens = torch.tensor([0, 2, 2, 5]).int()
    every, kept = spread(weights, 5, cu_seq_lens, keep=torch.tensor([4, 1]))
    assert torch.equal(every, weights[[0, 0, 2, 2, 2]].unsqueeze(0))
    assert torch.equal(kept, weights[[2, 0]].unsqueeze(0))
    assert len(spread(weights, 5, cu_seq_lens, keep=None)) == 1


@pytest.mark.parametrize("name", GATES)
def test_a_gate_has_a_number_for_each_expert_and_history(name):
    gate = GATES[name](7, 3)
    summary = torch.randn(5, 7)
    logits = gate(summary)
    assert logits.shape == (5, 3)
    assert torch.equal(logits[0], logits[1]) == (name != "instance")
    numbers = {"instance": 3 * 7 + 3, "constant": 3, "uniform": 0}
    assert sum(weight.numel() for weight in gate.parameters()) == numbers[name]
