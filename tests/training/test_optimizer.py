import pytest
import torch
from torch import nn
from transformers import get_scheduler

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.optimizer import RowAdamW, build_optimizer, learning_rate, rows_of


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_schedule_is_that_of_transformers(schedule):
    config = TrainingConfig(learning_rate=0.3, max_steps=20, warmup_ratio=0.25, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    reference = get_scheduler(schedule, optimizer, num_warmup_steps=5, num_training_steps=20)
    for step in range(20):
        # Theirs begins at zero, so that its first step is lost; ours is one step ahead in warmup.
        if step >= 5:
            assert learning_rate(step, config) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert [learning_rate(step, config) for step in range(5)] == pytest.approx(
        [0.06, 0.12, 0.18, 0.24, 0.3]
    )


def test_a_constant_schedule_stays_at_its_peak():
    config = TrainingConfig(learning_rate=0.3, max_steps=4, warmup_ratio=0, schedule="constant")
    assert [learning_rate(step, config) for step in range(4)] == [0.3] * 4


SHAPE = {"vocab_size": 9, "hidden_size": 4, "intermediate_size": 6, "max_history_length": 5}


def test_weight_decay_spares_norms_biases_and_what_is_frozen():
    model = BERT4RecForMaskedItemModeling(BERT4RecConfig(**SHAPE, num_hidden_layers=1))
    for weight in model.model.layers.parameters():
        weight.requires_grad_(False)
    config = TrainingConfig(learning_rate=1e-3, weight_decay=0.7)
    decayed, spared, tables = build_optimizer(model, config).param_groups
    assert {tuple(weight.shape) for weight in decayed["params"]} == {(5, 4), (4, 4)}
    assert {tuple(weight.shape) for weight in spared["params"]} == {(4,), (9,)}
    assert [tuple(weight.shape) for weight in tables["params"]] == [(9, 4)]
    decays = [group["weight_decay"] for group in (decayed, spared, tables)]
    assert decays == [0.7, 0.0, 0.7]


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("by_row", [True, False])
def test_item_tables_have_a_rate_of_their_own(is_tied, by_row):
    model = BERT4RecForMaskedItemModeling(
        BERT4RecConfig(**SHAPE, objective="gbce", tie_word_embeddings=is_tied)
    )
    if by_row:
        model.use_row_gradients()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    config = TrainingConfig(learning_rate=1e-3, item_learning_rate_factor=5, weight_decay=0)
    optimizer = build_optimizer(model, config)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    # The first step of Adam is as long as its rate, whatever the gradient.
    for name, weight in model.named_parameters():
        rate = 5e-3 if weight.shape == (9, 4) else 1e-3
        torch.testing.assert_close(weight, before[name] - rate, rtol=0, atol=1e-6)


ROWS, WIDTH = 7, 3
TOUCHED = [[1, 4], [4], [0, 1, 4], [6], [], [1, 6]]


def row_gradient(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(rows), WIDTH, generator=generator)
    indices = torch.tensor([rows], dtype=torch.long)
    return torch.sparse_coo_tensor(indices, values, (ROWS, WIDTH), check_invariants=True)


@pytest.mark.parametrize("is_sparse", [True, False], ids=["row-sparse", "dense"])
def test_a_row_is_stepped_as_a_parameter_of_its_own_that_often_has_no_gradient(is_sparse):
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(ROWS, WIDTH))
    rows = [nn.Parameter(row.clone()) for row in table.detach()]
    settings = {"lr": 0.1, "weight_decay": 0.3}
    optimizer = RowAdamW([{"params": [table], "by_row": True}], **settings, fused=True)
    reference = torch.optim.AdamW(rows, **settings)
    for step, touched in enumerate(TOUCHED):
        gradient = row_gradient(touched, step)
        table.grad = gradient if is_sparse else gradient.to_dense()
        for index, row in enumerate(rows):
            row.grad = gradient.to_dense()[index] if index in touched else None
        for each in (optimizer, reference):
            each.param_groups[0]["lr"] = 0.1 / (step + 1)
            each.step()
        torch.testing.assert_close(table, torch.stack(rows))
    assert optimizer.state[table]["step"].tolist() == [1, 3, 0, 0, 3, 0, 2]
    assert table.grad is not None


def test_what_is_not_stepped_by_row_is_stepped_by_adamw():
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    table = nn.Parameter(torch.ones(ROWS, WIDTH))
    groups = [{"params": [ours]}, {"params": [table], "by_row": True}]
    optimizer = RowAdamW(groups, lr=0.1, fused=True)
    reference = torch.optim.AdamW([theirs], lr=0.1)
    for step in range(3):
        ours.grad = theirs.grad = torch.randn(4, 3)
        table.grad = row_gradient([2], step)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(table[2], torch.ones(WIDTH))


def test_repeated_rows_count_once_with_their_sum():
    values = torch.tensor([[1.0], [2.0], [4.0]])
    gradient = torch.sparse_coo_tensor([[5, 2, 5]], values, (7, 1), check_invariants=True)
    rows, values = rows_of(gradient)
    assert (rows.tolist(), values.tolist()) == ([2, 5], [[2.0], [5.0]])


def test_tables_of_a_model_with_row_gradients_are_stepped_by_row():
    for tied, count in ((True, 1), (False, 2)):
        model = BERT4RecForMaskedItemModeling(
            BERT4RecConfig(**SHAPE, objective="gbce", tie_word_embeddings=tied)
        )
        config = TrainingConfig(learning_rate=1e-3, weight_decay=0.7)
        assert type(build_optimizer(model, config)) is torch.optim.AdamW
        model.use_row_gradients()
        optimizer = build_optimizer(model, config)
        assert type(optimizer) is RowAdamW
        matrices, vectors, tables = optimizer.param_groups
        assert [weight.shape for weight in tables["params"]] == [(9, 4)] * count
        assert tables["by_row"]
        assert tables["weight_decay"] == 0.7
        chosen = [id(w) for group in (matrices, vectors, tables) for w in group["params"]]
        assert sorted(chosen) == sorted(id(weight) for weight in model.parameters())
