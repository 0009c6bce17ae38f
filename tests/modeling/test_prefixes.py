"""Several prefixes of a history in one pass, beside each of them alone."""

import numpy as np
import pytest
import torch

from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling

HISTORIES = [np.array([5, 9, 3]), np.array([8, 2, 12, 7, 11, 4]), np.array([6, 10, 7, 3, 9, 5, 2])]


def make_model(num_layers, **settings):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 14,
        "hidden_size": 12,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "max_history_length": 7,
        "num_hidden_layers": num_layers,
        "initializer_range": 0.5,
    }
    return BERT4RecForMaskedItemModeling(BERT4RecConfig(**shape | settings)).double().eval()


def prefix_views(prefix_ratio=1.0, histories=HISTORIES, **settings):
    collator = MaskedItemCollator(
        max_history_length=7,
        last_item_ratio=0.0,
        prefix_view_ratio=1.0,
        prefix_ratio=prefix_ratio,
        **settings,
    )
    return collator([{"items": items, "view": 3} for items in histories])


def prefixes():
    """Every prefix of a history with a mask after it, as a user would ask, and what follows."""
    for items in sorted(HISTORIES, key=len):
        for end in range(1, len(items)):
            yield torch.tensor([[*items[:end], 1]]), items[end]


POSITIONS = {
    "rotary": {"position_type": "rotary"},
    "oldest": {"position_origin": "oldest"},
}


@pytest.mark.parametrize("settings", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("attention_dropout", [0.0, 0.5], ids=["by length", "padded"])
def test_one_layer_reads_all_prefixes_at_once_as_it_reads_each_alone(settings, attention_dropout):
    model = make_model(1, norm_first=True, attention_dropout=attention_dropout, **settings)
    if attention_dropout:  # takes the way of padded rows, with nothing dropped
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.config.attention_dropout = 1e-300
    losses = []
    for input_ids, target in prefixes():
        scores = model.next_item_states(input_ids) @ model.lm_head.weight.T + model.lm_head.bias
        losses.append(-scores[0, 2:].log_softmax(dim=0)[target - 2])
    expected = torch.stack(losses).mean()
    actual = model(**prefix_views()).loss
    assert len(losses) == 2 + 5 + 6
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6)


def test_positions_that_count_from_the_newest_item_are_refused():
    """Each prefix has another newest item, and an item that several read has but one position."""
    model = make_model(1, position_origin="newest")
    with pytest.raises(ValueError, match="no one position .* got position_origin='newest'; use"):
        model(**prefix_views())
    rotary = make_model(1, position_origin="newest", position_type="rotary")
    expected = make_model(1, position_type="rotary")(**prefix_views()).loss
    assert rotary(**prefix_views()).loss.item() == expected.item()


def test_prefixes_of_padded_histories_are_refused():
    model = make_model(1).model
    ids = torch.tensor([[5, 1, 9, 1]])
    prefixes = {"prefix_ids": torch.tensor([[0, 0, 1, 1]]), "is_query": ids == 1}
    with pytest.raises(ValueError, match="prefix_ids go with packed histories, got padded ones"):
        model(input_ids=ids, **prefixes)


def test_no_query_knows_what_comes_after_its_prefix():
    model = make_model(3, position_type="rotary")
    batch = prefix_views(prefix_ratio=0.5)

    def states(input_ids):
        masks = batch["masked_positions"]
        names = ("cu_seq_lens_q", "prefix_ids", "is_query", "position_ids")
        packing = {name: batch[name] for name in names}
        return model.model(input_ids=input_ids, keep=masks, **packing).last_hidden_state[0]

    before, is_query = states(batch["input_ids"]), batch["is_query"][0]
    ends, places = batch["cu_seq_lens_q"].tolist(), batch["position_ids"][0]
    masks = batch["masked_positions"]
    num_changed = 0
    for token in (~is_query).nonzero().squeeze(1).tolist():
        changed = batch["input_ids"].clone()
        changed[0, token] = 13
        moved = (states(changed) - before).abs().sum(dim=1) > 1e-9
        start = max(end for end in ends if end <= token)
        stop = min(end for end in ends if end > token)
        expected = (masks >= start) & (masks < stop) & (places[masks] > places[token])
        assert torch.equal(moved, expected)
        num_changed += int(moved.sum())
    assert num_changed > 20


def test_gradients_of_prefix_views_are_those_of_finite_differences():
    model = make_model(2, position_type="rotary", norm_first=True)
    batch = prefix_views(prefix_ratio=0.5)
    weight = model.model.layers[0].self_attn.k_proj.weight
    model(**batch).loss.backward()
    for place in [(0, 0), (5, 7), (11, 3)]:
        with torch.no_grad():
            losses = []
            for step in (1e-3, -2e-3):
                weight[place] += step
                losses.append(model(**batch).loss.item())
            weight[place] += 1e-3
        slope = (losses[0] - losses[1]) / 2e-3
        assert weight.grad[place].item() == pytest.approx(slope, rel=2e-2, abs=1e-6)


def test_rotary_positions_know_distances_and_not_places():
    model = make_model(2, position_type="rotary").model
    ids, shifted = torch.tensor([[5, 9, 3, 1]]), torch.arange(4).unsqueeze(0) + 2
    alone = model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(model(input_ids=ids, position_ids=shifted).last_hidden_state, alone)
    swapped = model(input_ids=ids[:, [1, 0, 2, 3]]).last_hidden_state
    assert (swapped[0, 3] - alone[0, 3]).abs().max() > 1e-3


def test_rotary_positions_of_padded_and_packed_histories_agree():
    model = make_model(2, position_type="rotary")
    examples = [{"items": items, "view": 3} for items in HISTORIES]
    losses = [
        model(**MaskedItemCollator(max_history_length=7, is_packed=is_packed)(examples)).loss
        for is_packed in (True, False)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)


def test_filler_changes_nothing():
    model = make_model(2, position_type="rotary")
    plain, filled = prefix_views(0.5), prefix_views(0.5, pad_to_multiple_of=32)
    assert filled["input_ids"].shape[1] % 32 == 0
    assert model(**filled).loss.item() == pytest.approx(model(**plain).loss.item(), rel=1e-6)


def test_a_causal_model_learns_the_next_item_at_every_item_and_reads_the_newest():
    model = make_model(2, is_causal=True)
    collator = MaskedItemCollator(max_history_length=7, is_causal=True)
    losses = []
    for input_ids, target in prefixes():
        hidden = model.model(input_ids=input_ids[:, :-1])  # no mask
        state = model.transform(hidden.last_hidden_state[0, -1])
        scores = model.lm_head.weight @ state + model.lm_head.bias
        losses.append(-scores[2:].log_softmax(dim=0)[target - 2])
    batch = collator([{"items": items, "view": 3} for items in HISTORIES])
    assert (batch["labels"] >= 0).sum() == len(losses)
    loss = model(**batch).loss.item()
    assert loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
    padded = MaskedItemCollator(max_history_length=7, is_causal=True, is_packed=False)
    examples = [{"items": items, "view": 3} for items in HISTORIES]
    assert model(**padded(examples)).loss.item() == pytest.approx(loss, rel=1e-6)


def test_the_next_item_states_of_a_causal_model_stand_at_the_newest_item():
    model = make_model(2, is_causal=True)
    ids = torch.tensor([[0, 5, 9, 1], [3, 8, 7, 1], [0, 0, 0, 1]])
    hidden = model.model(input_ids=ids).last_hidden_state
    expected = model.transform(torch.stack([hidden[0, 2], hidden[1, 2], hidden[2, 3]]))
    torch.testing.assert_close(model.next_item_states(ids), expected)
    packed = model.next_item_states(
        torch.tensor([[5, 9, 1, 3, 8, 7, 1, 1]]), cu_seq_lens_q=torch.tensor([0, 3, 7, 8]).int()
    )
    torch.testing.assert_close(packed, expected)
