import math

import pytest
import torch
from torch.nn import functional as F

from bert4rec_hf.modeling import BERT4RecConfig, objectives
from bert4rec_hf.modeling.objectives import (
    OBJECTIVES,
    ItemTable,
    Negatives,
    SharedTable,
    SoftTargets,
    build_objective,
    full_softmax,
    gbce,
    look_up,
    sampled_softmax,
    soften,
)

MASKED, HIDDEN, VOCAB = 7, 5, 13
SHARES = torch.tensor([1, 1, 1, 0, 1, 1, 1]) / 6
TARGETS = torch.tensor([2, 12, 7, -100, 5, 5, 9])


def make_inputs(has_bias=True, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    states, table, bias = (
        (scale * torch.randn(shape, generator=generator)).requires_grad_()
        for shape in [(MASKED, HIDDEN), (VOCAB, HIDDEN), (VOCAB,)]
    )
    return [states, table, bias] if has_bias else [states, table]


def gradients(loss, inputs):
    loss.backward()
    grads = [each.grad.to_dense() for each in inputs]
    for each in inputs:
        each.grad = None
    return [loss.detach(), *grads]


def plain_full_softmax(states, table, bias=None):
    scores = F.linear(states, table[2:], None if bias is None else bias[2:])
    return F.cross_entropy(scores, torch.where(TARGETS < 0, -100, TARGETS - 2))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("at_once", [2**26, 30], ids=["one run", "runs of two"])
def test_full_softmax_is_cross_entropy_in_value_and_gradient(monkeypatch, has_bias, at_once):
    monkeypatch.setitem(objectives.MAX_SCORES, "cpu", at_once)
    inputs = make_inputs(has_bias)
    items = ItemTable(inputs[1], inputs[2] if has_bias else None)
    actual = gradients(3 * full_softmax(inputs[0], TARGETS, SHARES, items), inputs)
    expected = gradients(3 * plain_full_softmax(*inputs), inputs)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("has_bias", [True, False])
def test_soft_targets_are_those_of_the_cross_entropy_of_torch(has_bias):
    inputs = make_inputs(has_bias)
    items = ItemTable(inputs[1], inputs[2] if has_bias else None)
    # An item twice, the target itself, and a weight of 0.
    ids = torch.tensor([[2, 4], [3, 3], [9, 12], [5, 6], [2, 5], [11, 2], [8, 9]])
    weights = torch.tensor([[0.3, 0.2], [0.5, 0.4], [0, 0.7], [0.9, 0.1], [0, 0], [1, 0], [0.2, 0]])
    soft = SoftTargets(ids, weights)
    loss = full_softmax(inputs[0], TARGETS, SHARES, items)
    actual = gradients(loss + soften(inputs[0], TARGETS, SHARES, items, soft), inputs)
    expected = torch.zeros(MASKED, VOCAB).scatter_add(1, ids, weights)
    rest = 1 - weights.sum(dim=1, keepdim=True)
    expected = expected.scatter_add(1, TARGETS.clamp(min=2).unsqueeze(1), rest)[:, 2:]
    scores = F.linear(inputs[0], inputs[1][2:], inputs[2][2:] if has_bias else None)
    loss = (F.cross_entropy(scores, expected, reduction="none") * SHARES).sum()
    torch.testing.assert_close(actual, gradients(loss, inputs))


def test_full_softmax_is_exact_where_the_target_is_out_of_reach():
    inputs = make_inputs(has_bias=False, scale=30.0)
    loss = full_softmax(inputs[0], TARGETS, SHARES, ItemTable(inputs[1], None))
    assert loss > 500  # a probability that float32 cannot hold
    torch.testing.assert_close(loss, plain_full_softmax(*inputs))


def test_full_softmax_never_holds_the_scores_of_all_masked_items(monkeypatch):
    sizes = []

    def record(scores, columns):
        sizes.append(scores.shape)
        return torch.zeros(len(scores))

    monkeypatch.setattr(objectives, "softmax_cross_entropy_", record)
    monkeypatch.setitem(objectives.MAX_SCORES, "cpu", 25)
    inputs = make_inputs()
    full_softmax(inputs[0], TARGETS, SHARES, ItemTable(*inputs[1:]))
    assert sizes == [(2, 11), (2, 11), (2, 11), (1, 11)]


def test_full_softmax_gives_a_frozen_table_no_gradient():
    states, table, bias = make_inputs()
    full_softmax(states, TARGETS, SHARES, ItemTable(table.detach(), bias.detach())).backward()
    expected = torch.autograd.grad(plain_full_softmax(states, table, bias), states)[0]
    torch.testing.assert_close(states.grad, expected)


def test_full_softmax_without_gradient_is_the_same_number():
    states, table, bias = make_inputs()
    with torch.no_grad():
        loss = full_softmax(states, TARGETS, SHARES, ItemTable(table, bias))
    torch.testing.assert_close(loss, plain_full_softmax(states, table, bias).detach())


def test_full_softmax_of_no_masked_item_is_zero():
    _, table, bias = make_inputs()
    states = torch.zeros(0, HIDDEN, requires_grad=True)
    loss = full_softmax(states, TARGETS[:0], SHARES[:0], ItemTable(table, bias))
    loss.backward()
    assert loss.item() == 0
    assert table.grad.eq(0).all()


def test_full_softmax_refuses_to_be_differentiated_twice():
    states, table, bias = make_inputs()
    loss = full_softmax(states, TARGETS, SHARES, ItemTable(table, bias))
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (2 * loss).backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_full_softmax_in_half_precision_is_near_and_its_gradient_does_not_vanish(dtype):
    inputs = make_inputs()
    # A share so small that half precision would lose most of the table's gradient.
    shares = SHARES * 2.0**-16
    with torch.autocast("cpu", dtype=dtype):
        loss = full_softmax(inputs[0], TARGETS, shares, ItemTable(*inputs[1:]))
    assert loss.dtype == torch.float32
    actual = gradients(loss * 2.0**16, inputs)
    expected = gradients(plain_full_softmax(*inputs), inputs)
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.01)


def make_negatives():
    ids = torch.tensor([3, 5, 12, 12, 8, 2])
    return Negatives(ids, torch.tensor([0.5, 0.2, 0.7, 0.7, 0.1, 0.9]).log())


@pytest.mark.parametrize("name", ["full_softmax", "sampled_softmax", "gbce"])
def test_losses_are_summed_in_single_precision_under_autocast(name):
    """Half precision has eight bits: sums of it are multiples of 1/32 from 4 on."""
    inputs, negatives = make_inputs(), make_negatives()
    shares = 4 * SHARES
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = OBJECTIVES[name](inputs[0], TARGETS, shares, ItemTable(*inputs[1:]), negatives)
    assert loss.dtype == torch.float32
    assert loss.item() != loss.bfloat16().item()


def test_sampled_softmax_is_its_formula_in_value_and_gradient():
    inputs = make_inputs()
    negatives = make_negatives()
    items = ItemTable(*inputs[1:])
    actual = gradients(sampled_softmax(inputs[0], TARGETS, SHARES, items, negatives), inputs)

    states, table, bias = inputs
    total = 0
    for row, target in enumerate(TARGETS.tolist()):
        if target < 0:
            continue
        own = (states[row] @ table[target] + bias[target]).exp()
        others = sum(
            (states[row] @ table[item] + bias[item]).exp() / count.exp()
            for item, count in zip(negatives.ids.tolist(), negatives.log_counts, strict=True)
            if item != target
        )
        total = total - (own / (own + others)).log() / 6
    torch.testing.assert_close(actual, gradients(total, inputs))


def test_sampled_softmax_over_the_whole_catalog_is_the_full_one():
    inputs = make_inputs()
    items = ItemTable(*inputs[1:])
    everything = Negatives(torch.arange(2, VOCAB), torch.zeros(VOCAB - 2))
    actual = gradients(sampled_softmax(inputs[0], TARGETS, SHARES, items, everything), inputs)
    torch.testing.assert_close(actual, gradients(plain_full_softmax(*inputs), inputs))


@pytest.mark.parametrize("calibration", [0, 0.75, 1])
def test_gbce_is_its_formula_in_value_and_gradient(calibration):
    inputs = make_inputs()
    negatives = make_negatives()
    items = ItemTable(*inputs[1:])
    loss = gbce(inputs[0], TARGETS, SHARES, items, negatives, calibration=calibration)
    actual = gradients(loss, inputs)

    states, table, bias = inputs
    rate = 6 / 10  # six of the ten items that are not the target
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    total = 0
    for row, target in enumerate(TARGETS.tolist()):
        if target < 0:
            continue
        score = states[row] @ table[target] + bias[target]
        one = torch.sigmoid(score).pow(beta).log()
        for item in negatives.ids.tolist():
            if item != target:
                one = one + (1 - torch.sigmoid(states[row] @ table[item] + bias[item])).log()
        total = total - one / 7 / 6
    torch.testing.assert_close(actual, gradients(total, inputs))


def test_gbce_without_calibration_is_binary_cross_entropy():
    states, table, bias = make_inputs()
    negatives = Negatives(torch.tensor([3, 8]), torch.zeros(2))
    actual = gbce(states, TARGETS, SHARES, ItemTable(table, bias), negatives, calibration=0)
    chosen = torch.stack([TARGETS.clamp(min=2), *negatives.ids[:, None].expand(2, MASKED)], dim=1)
    scores = torch.einsum("mh,mch->mc", states, table[chosen]) + bias[chosen]
    truth = torch.tensor([1.0, 0.0, 0.0]).expand(MASKED, 3)
    expected = F.binary_cross_entropy_with_logits(scores, truth, reduction="none").mean(dim=1)
    torch.testing.assert_close(actual, expected @ SHARES)


def test_the_calibration_of_gbce_is_the_configured_one():
    states, table, bias = make_inputs()
    arguments = (states, TARGETS, SHARES, ItemTable(table, bias), make_negatives())
    config = BERT4RecConfig(vocab_size=len(table), objective="gbce", gbce_calibration=0.2)
    objective = build_objective(config)
    torch.testing.assert_close(objective(*arguments), gbce(*arguments, calibration=0.2))
    assert not torch.isclose(objective(*arguments), gbce(*arguments))


def test_the_gradient_of_a_shared_table_is_one_and_complete():
    weight = torch.randn(VOCAB, HIDDEN, requires_grad=True)
    table, rows = SharedTable.apply(weight, torch.tensor([[0, 3, 3, 9]]), 0, False)
    torch.testing.assert_close(rows, weight[torch.tensor([[0, 3, 3, 9]])])
    (rows.sum() * 2 + (table * table).sum()).backward()
    expected = 2 * weight.detach()
    expected[3] += 4
    expected[9] += 2
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize("keeps_rows", [True, False])
def test_the_gradient_of_lookups_alone_is_sparse_if_it_may_be(keeps_rows):
    weight = torch.randn(VOCAB, HIDDEN, requires_grad=True)
    table, rows = SharedTable.apply(weight, torch.tensor([[6, 0]]), 0, keeps_rows)
    (look_up(torch.tensor([4, 4]), table, takes_rows=True).sum() + rows.sum()).backward()
    assert weight.grad.is_sparse == keeps_rows
    if keeps_rows:  # padding is not among them
        assert weight.grad.coalesce().indices().tolist() == [[4, 6]]
    expected = torch.zeros(VOCAB, HIDDEN)
    expected[4], expected[6] = 2, 1
    torch.testing.assert_close(weight.grad.to_dense(), expected)


def test_two_uses_of_a_shared_table_in_one_backward_pass_add_up():
    weight = torch.randn(VOCAB, HIDDEN, requires_grad=True)
    total = 0
    for factor in (1, 10):
        table, rows = SharedTable.apply(weight, torch.tensor([[5]]), 0, False)
        total = total + factor * ((table * 3).sum() + rows.sum())
    total.backward()
    expected = torch.full((VOCAB, HIDDEN), 33.0)
    expected[5] = 44
    torch.testing.assert_close(weight.grad, expected)


def test_log_counts_of_a_uniform_draw_recover_the_full_softmax_on_average():
    states, table, bias = (each.detach() for each in make_inputs())
    generator = torch.Generator().manual_seed(1)
    estimates = []
    for _ in range(300):
        ids = torch.randint(2, VOCAB, (500,), generator=generator)
        negatives = Negatives(ids, torch.full((500,), math.log(500 / (VOCAB - 2))))
        estimates.append(
            sampled_softmax(states, TARGETS, SHARES, ItemTable(table, bias), negatives)
        )
    mean = torch.stack(estimates).mean()
    assert mean.item() == pytest.approx(plain_full_softmax(states, table, bias).item(), abs=0.01)
