import pytest
import torch
from torch import library, nn

from bert4rec_hf.modeling.attention import (
    _attend_by_length,
    _attend_padded,
    describe_packing,
    packed_attention,
)

LENGTHS = [2, 2, 5, 1, 1, 7, 3, 3, 3]
HEADS, HEAD_DIM, SCALING = 3, 8, 0.37


def make_inputs(dtype=torch.float64):
    torch.manual_seed(0)
    shape = (sum(LENGTHS), HEADS, HEAD_DIM)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]


def make_packing(lengths=LENGTHS):
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    return describe_packing(ends, max(lengths), sum(lengths))


def one_history_at_a_time(query, key, value, is_causal=False):
    outputs = []
    for parts in zip(*(each.split(LENGTHS) for each in (query, key, value)), strict=True):
        one_query, one_key, one_value = (part.transpose(0, 1) for part in parts)
        products = one_query @ one_key.transpose(1, 2) * SCALING
        if is_causal:
            products = products + torch.full(products.shape[1:], -torch.inf).triu(diagonal=1)
        weights = products.softmax(dim=-1)
        outputs.append((weights @ one_value).transpose(0, 1))
    return torch.cat(outputs)


def value_and_gradients(output, inputs):
    probe = torch.arange(output.numel(), dtype=output.dtype).reshape(output.shape).cos()
    return [output.detach(), *torch.autograd.grad(output, inputs, probe)]


def attend_padded(*arguments, **kwargs):
    return _attend_padded(*arguments, 0.0, **kwargs)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("attend", [packed_attention, attend_padded])
def test_packed_histories_attend_as_each_alone(attend, is_causal):
    inputs = make_inputs()
    output = attend(*inputs, make_packing(), SCALING, is_causal=is_causal)
    expected = one_history_at_a_time(*inputs, is_causal)
    torch.testing.assert_close(
        value_and_gradients(output, inputs), value_and_gradients(expected, inputs)
    )


@pytest.mark.parametrize("attend", [packed_attention, attend_padded])
def test_empty_histories_change_nothing(attend):
    inputs = make_inputs()
    lengths = [2, 0, 2, 5, 1, 1, 7, 3, 3, 3, 0, 0]
    actual = value_and_gradients(attend(*inputs, make_packing(lengths), SCALING), inputs)
    expected = value_and_gradients(one_history_at_a_time(*inputs), inputs)
    torch.testing.assert_close(actual, expected)


def test_dropped_attention_weights_are_made_up_for_on_average():
    query, key, value = (each.detach() for each in make_inputs())
    ones = torch.ones_like(value)
    torch.manual_seed(0)
    outputs = [
        packed_attention(query, key, ones, make_packing(), SCALING, dropout=0.5) for _ in range(400)
    ]
    assert not torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(torch.stack(outputs).mean(0), ones, rtol=0, atol=0.35)


def test_half_precision_is_near():
    inputs = make_inputs(torch.bfloat16)
    actual = packed_attention(*inputs, make_packing(), SCALING)
    expected = one_history_at_a_time(*(each.detach().double() for each in inputs))
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.double(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_operator_keeps_what_torch_asks_of_operators(is_causal):
    inputs = make_inputs(torch.float32)
    ends = make_packing().cu_seq_lens
    library.opcheck(
        _attend_by_length,
        (*inputs, ends, None, None, SCALING, is_causal),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_packed_histories_attend_as_each_alone_on_a_gpu(dtype):
    inputs = [nn.Parameter(each.detach().to("cuda", dtype)) for each in make_inputs()]
    ends = make_packing().cu_seq_lens.cuda()
    packing = describe_packing(ends, max(LENGTHS), sum(LENGTHS))
    actual = value_and_gradients(packed_attention(*inputs, packing, SCALING), inputs)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = value_and_gradients(one_history_at_a_time(*exact), exact)
    tolerance = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
