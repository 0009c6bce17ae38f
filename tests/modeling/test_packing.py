"""A packed batch and its padded twin are the same batch; and neither breaks a compiled graph."""

import pytest
import torch
from torch import nn

from bert4rec_hf.modeling import OBJECTIVES, BERT4RecConfig, BERT4RecForMaskedItemModeling

HISTORIES = [[5, 1], [9, 3], [1], [7, 1, 12, 1, 30], [1, 4, 4]]
TARGETS = [[-100, 8], [-100, -100], [22], [-100, 9, -100, 36, -100], [17, -100, -100]]
NEGATIVES = {
    "negatives": torch.tensor([3, 8, 8, 31, 25]),
    "negative_log_counts": torch.tensor([0.3, 0.5, 0.5, 0.1, 0.2]).log(),
}
NETWORKS = {
    "paper": {},
    "modern": {
        "norm_first": True,
        "position_origin": "newest",
        "output_transform": False,
        "output_bias": False,
    },
    "untied": {"tie_word_embeddings": False},
}


def make_model(**settings):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 37,
        "hidden_size": 24,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_history_length": 11,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        # Large enough for attention to matter.
        "initializer_range": 0.3,
    }
    return BERT4RecForMaskedItemModeling(BERT4RecConfig(**shape | settings))


def pad(rows, fill):
    return torch.tensor([[fill] * (5 - len(row)) + row for row in rows])


def pack(rows):
    return torch.tensor([[value for row in rows for value in row]])


def padded_batch():
    return {"input_ids": pad(HISTORIES, 0), "labels": pad(TARGETS, -100)}


def packed_batch():
    ends = torch.tensor([0, *map(len, HISTORIES)]).cumsum(0).int()
    return {
        "input_ids": pack(HISTORIES),
        "labels": pack(TARGETS),
        "position_ids": pack([list(range(len(row))) for row in HISTORIES]),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": 5,
        "max_length_k": 5,
        "masked_positions": (pack(TARGETS)[0] != -100).nonzero()[:, 0],
    }


def filled_batch():
    """The packed batch with two histories of padding, an empty one, and a masked item in excess."""
    batch = packed_batch()
    for name, fill in (("input_ids", 0), ("labels", -100), ("position_ids", 0)):
        batch[name] = torch.cat([batch[name], torch.full((1, 4), fill)], dim=1)
    ends = batch["cu_seq_lens_q"]
    batch["cu_seq_lens_q"] = torch.cat([ends, ends[-1] + torch.tensor([3, 4, 4])]).int()
    batch["masked_positions"] = torch.cat([batch["masked_positions"], torch.tensor([16])])
    return batch


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    grads = {name: weight.grad.to_dense().clone() for name, weight in model.named_parameters()}
    return {"loss": loss.detach(), **grads}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_packed_and_padded_histories_give_the_same_loss_and_gradient(network, objective):
    model = make_model(objective=objective, **network)
    drawn = {} if objective == "full_softmax" else NEGATIVES
    expected = loss_and_gradients(model, padded_batch() | drawn)
    assert expected["model.layers.0.self_attn.q_proj.weight"].abs().max() > 1e-4
    for batch in (packed_batch(), filled_batch()):
        torch.testing.assert_close(loss_and_gradients(model, batch | drawn), expected)


def test_positions_and_lengths_are_counted_where_they_are_not_given():
    model = make_model(position_origin="newest")
    batch = packed_batch()
    expected = model(**batch).loss
    for name in ("position_ids", "max_length_q", "max_length_k", "masked_positions"):
        del batch[name]
    torch.testing.assert_close(model(**batch).loss, expected)


def test_given_positions_count_from_the_oldest_item_padded_or_packed():
    model = make_model(position_origin="newest")
    ids = torch.tensor([[0, 0, 5, 3, 1], [7, 8, 9, 2, 1]])
    places = torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])
    expected = model(ids).logits[ids != 0]
    torch.testing.assert_close(model(ids, position_ids=places).logits[ids != 0], expected)


def test_dropped_attention_leaves_packed_and_padded_the_same_on_average():
    model = make_model(attention_dropout=0.4, norm_first=True).train()
    torch.manual_seed(0)
    with torch.no_grad():
        means = [
            torch.stack([model(**batch()).loss for _ in range(600)]).mean()
            for batch in (padded_batch, packed_batch)
        ]
        single = model(**packed_batch()).loss
    assert single != means[1]
    torch.testing.assert_close(*means, rtol=0.02, atol=0)


@pytest.mark.parametrize("is_packed", [True, False])
def test_next_item_states_are_the_states_of_the_last_positions(is_packed):
    model = make_model().eval()
    histories = [[4, 9, 1], [1], [6, 1], [7, 8, 9, 2, 1]]
    expected = [
        model.transform(model.model(pack([row])).last_hidden_state)[0, -1] for row in histories
    ]
    if is_packed:
        ends = torch.tensor([0, 3, 4, 6, 11]).int()
        actual = model.next_item_states(pack(histories), cu_seq_lens_q=ends, max_length_q=5)
    else:
        actual = model.next_item_states(pad(histories, 0))
    torch.testing.assert_close(actual, torch.stack(expected))


def test_two_passes_before_one_backward_pass_give_the_sum_of_their_gradients():
    model = make_model()
    alone = [loss_and_gradients(model, batch) for batch in (packed_batch(), filled_batch())]
    model.zero_grad()
    (model(**packed_batch()).loss + 3 * model(**filled_batch()).loss).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, alone[0][name] + 3 * alone[1][name])


def test_gradients_accumulate_over_passes():
    model = make_model()
    once = loss_and_gradients(model, packed_batch())
    model(**packed_batch()).loss.backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, 2 * once[name])


@pytest.mark.parametrize("tied", [True, False])
def test_row_gradients_hold_the_rows_of_the_batch_and_nothing_else(tied):
    model = make_model(objective="sampled_softmax", tie_word_embeddings=tied)
    expected = loss_and_gradients(model, packed_batch() | NEGATIVES)
    model.use_row_gradients()
    actual = loss_and_gradients(model, packed_batch() | NEGATIVES)
    torch.testing.assert_close(actual, expected)
    read = {value for row in HISTORIES for value in row}
    scored = {8, 22, 9, 36, 17, 3, 31, 25}
    for table, rows in (
        (model.model.embed_tokens.weight, read | scored if tied else read),
        (model.lm_head.weight, read | scored if tied else scored),
    ):
        assert table.grad.is_sparse
        assert set(table.grad.coalesce().indices()[0].tolist()) == rows


def test_the_table_of_a_full_softmax_gets_no_second_dense_gradient():
    """The head's gradient becomes the parameter's, lookups added to it in place."""
    model = make_model(output_bias=False)
    made = []
    hook = lambda module, inputs, output: made.append(output)  # noqa: E731
    model.model.embed_tokens.register_forward_hook(hook)
    model(**packed_batch()).loss.backward()
    assert made == []  # looked up through the shared table
    assert not model.lm_head.weight.grad.is_sparse


def test_a_frozen_table_gets_no_gradient():
    model = make_model()
    expected = loss_and_gradients(model, packed_batch())
    model.zero_grad()
    model.lm_head.weight.requires_grad_(False)
    model(**packed_batch()).loss.backward()
    assert model.lm_head.weight.grad is None
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(model.get_parameter(name).grad, expected[name])


def test_gradient_checkpointing_changes_no_gradient_of_a_packed_batch():
    model = make_model().train()
    expected = loss_and_gradients(model, packed_batch())
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(loss_and_gradients(model, packed_batch()), expected)


def test_a_packed_history_beyond_the_positions_is_refused():
    batch = packed_batch() | {"max_length_q": 12}
    with pytest.raises(ValueError, match="has 12 positions .* max_history_length = 11"):
        make_model()(**batch)


@pytest.mark.parametrize("objective", ["sampled_softmax", "gbce"])
def test_a_sampled_objective_without_negatives_is_refused(objective):
    with pytest.raises(ValueError, match=f"objective {objective} needs negatives"):
        make_model(objective=objective)(**packed_batch())


def batch_of(count, seed):
    """A packed batch of some histories, of lengths and masks of its own."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 11, (count,), generator=generator).sort().values
    ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    num_items = int(ends[-1])
    ids = torch.randint(2, 37, (1, num_items), generator=generator)
    is_masked = torch.rand(1, num_items, generator=generator) < 0.4
    is_masked[0, 0] = True
    return {
        "input_ids": ids.masked_fill(is_masked, 1),
        "labels": ids.masked_fill(~is_masked, -100),
        "cu_seq_lens_q": ends,
        "max_length_q": int(lengths.max()),
        "masked_positions": is_masked[0].nonzero()[:, 0],
    }


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["no dropout", "dropout"])
def test_a_training_step_compiles_to_one_graph_whatever_the_lengths(objective, dropout):
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = make_model(objective=objective, attention_dropout=dropout, hidden_dropout=dropout)
    compiled = torch.compile(model, backend=count, fullgraph=True, dynamic=True)
    drawn = {} if objective == "full_softmax" else NEGATIVES
    for seed in range(12):
        compiled(**batch_of(7, seed) | drawn).loss.backward()
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_compiled_step_is_the_eager_one(objective):
    torch._dynamo.reset()
    model = make_model(objective=objective)
    drawn = {} if objective == "full_softmax" else NEGATIVES
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (packed_batch(), filled_batch(), batch_of(9, seed=1)):
        expected = loss_and_gradients(model, batch | drawn)
        model.zero_grad()
        loss = compiled(**batch | drawn).loss
        loss.backward()
        torch.testing.assert_close(loss.detach(), expected["loss"])
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.grad, expected[name])


def test_dropout_drops_its_share_and_makes_up_for_it():
    layer = make_model(hidden_dropout=0.3).model.embeddings.dropout
    assert isinstance(layer, nn.Dropout)
    torch.manual_seed(0)
    hidden = torch.full((401, 499), 2.0, requires_grad=True)
    dropped = layer(hidden)
    share = (dropped == 0).double().mean().item()
    # 200,000 draws: three standard deviations are 0.003.
    assert share == pytest.approx(0.3, abs=0.004)
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 2 / 0.7), rtol=1e-4, atol=0)
    dropped.sum().backward()
    torch.testing.assert_close(hidden.grad, dropped.detach() / 2)
    assert layer.eval()(hidden) is hidden


def test_dropout_follows_the_seed_of_torch():
    layer = make_model(hidden_dropout=0.3).model.embeddings.dropout
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(layer(torch.ones(7, 13)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
