import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils import clip_grad_norm_

from bert4rec_hf.training.gradients import average_rows, clip_gradients


def make_parameters(is_sparse):
    torch.manual_seed(0)
    table, weight, unused = (
        nn.Parameter(torch.zeros(7, 3)),
        nn.Parameter(torch.zeros(5)),
        nn.Parameter(torch.zeros(2)),
    )
    # Row 4 comes twice: its length is that of the sum.
    gradient = torch.sparse_coo_tensor(
        [[4, 1, 4]], torch.randn(3, 3), (7, 3), check_invariants=True
    )
    table.grad = gradient if is_sparse else gradient.to_dense()
    weight.grad = torch.randn(5)
    return [table, weight, unused]


@pytest.mark.parametrize("max_norm", [0.5, 100.0], ids=["too long", "short enough"])
def test_row_sparse_gradients_are_cut_as_dense_ones(max_norm):
    ours, theirs = make_parameters(is_sparse=True), make_parameters(is_sparse=False)
    clip_gradients(ours, max_norm, Accelerator(cpu=True))
    clip_grad_norm_(theirs, max_norm)
    assert ours[0].grad.is_sparse
    torch.testing.assert_close(ours[0].grad.to_dense(), theirs[0].grad)
    torch.testing.assert_close(ours[1].grad, theirs[1].grad)
    assert ours[2].grad is None


def test_one_process_averages_nothing():
    table, *_ = make_parameters(is_sparse=True)
    before = table.grad.to_dense()
    average_rows([table], Accelerator(cpu=True))
    torch.testing.assert_close(table.grad.to_dense(), before)
