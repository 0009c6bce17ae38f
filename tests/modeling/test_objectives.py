import torch

from bert4rec_hf.modeling import full_softmax


def test_full_softmax_is_the_sum_of_negative_log_probabilities():
    torch.manual_seed(0)
    states, embeddings = torch.randn(5, 3), torch.randn(7, 3)
    bias, targets = torch.randn(7), torch.tensor([0, 6, 2, 2, 5])
    probabilities = torch.exp(states @ embeddings.T + bias)
    probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
    expected = -sum(torch.log(probabilities[row, target]) for row, target in enumerate(targets))
    torch.testing.assert_close(full_softmax(states, targets, embeddings, bias), expected)


def test_full_softmax_works_without_bias():
    states, embeddings, targets = torch.zeros(4, 3), torch.ones(9, 3), torch.tensor([1, 2, 3, 4])
    expected = 4 * torch.log(torch.tensor(9.0))
    torch.testing.assert_close(full_softmax(states, targets, embeddings, None), expected)
