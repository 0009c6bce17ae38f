"""Neighbors mixed into the scores, beside plain loops over the same formula."""

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.ranking import CatalogScores
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.training.neighbors import count_neighbors

HISTORIES = [
    np.array([5, 9, 3]),
    np.array([8, 2, 12, 7, 11, 4]),
    np.array([6, 10, 7, 3, 9, 5, 2]),
    np.array([9, 3, 7, 13]),
]
VOCAB_SIZE = 15


def make_model(**settings):
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 12,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "max_history_length": 8,
        "initializer_range": 0.5,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "num_neighbors": 4,
        "neighbor_distance": 3,
        "num_recent_items": 3,
        "position_type": "rotary",
    }
    model = BERT4RecForMaskedItemModeling(BERT4RecConfig(**shape | settings)).eval()
    if model.neighbors is not None:
        fill(model, HISTORIES)
    return model


def fill(model, histories):
    options = {"max_distance": model.config.neighbor_distance, "exponent": 0.5}
    table = count_neighbors(histories, VOCAB_SIZE, model.config.num_neighbors, **options)
    model.neighbors.set_table(*table)
    torch.nn.init.normal_(model.neighbors.gate.weight)


def shares_of(model, history):
    """Shares of all items, by plain loops over the table."""
    table, shares = model.neighbors, np.zeros(VOCAB_SIZE)
    for age, item in enumerate(history[::-1][: model.config.num_recent_items]):
        for neighbor, similarity in zip(table.ids[item], table.similarities[item], strict=True):
            shares[int(neighbor)] += 0.7**age * float(similarity)
    return shares / (shares.sum() or 1)


@torch.no_grad()
def expected_scores(model, history):
    """Scores of the catalog for the next item, the formula of the module written out."""
    inputs = torch.tensor([[*history, 1]])
    state = model.next_item_states(inputs)
    network = model.lm_head(state)[0].double().numpy()
    gate = float(model.neighbors.gate(state))
    shares = shares_of(model, history)
    return [
        math.log(math.exp(network[item]) + math.exp(gate) * shares[item])
        for item in range(2, VOCAB_SIZE)
    ]


@pytest.fixture(params=[False, True], ids=["both ways", "causal"])
def model(request):
    return make_model(is_causal=request.param)


def test_the_scorer_mixes_neighbors_in_whatever_the_chunks_are(model):
    histories = [np.array([7, 3]), np.array([2, 13, 9, 10, 5]), np.array([], dtype=np.int64)]
    scorer = ModelScorer(model)
    with torch.no_grad():
        encoded = scorer.encode(histories)
        for size in (3, 50):
            chunks = CatalogScores(scorer, encoded, chunk_size=size)
            scores = torch.cat([scores for _, scores in chunks], dim=1)
            for row, history in zip(scores, histories, strict=True):
                assert row.tolist() == pytest.approx(expected_scores(model, history), abs=1e-5)
            part = torch.cat([scorer.score(encoded[1:2], start, start + 3) for start in (2, 5)], 1)
            torch.testing.assert_close(part[0], scores[1, :6])
    plain = scores[0] - model.lm_head(model.next_item_states(torch.tensor([[7, 3, 1]])))[0, 2:]
    assert (plain > 0.01).any(), "neighbors that change nothing show nothing"


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_those_of_the_scorer_on_either_side_of_padding(model, side):
    history = [2, 13, 9, 10, 5]
    tokens = [*history, 1] if not model.config.is_causal else history
    padding = [0, 0]
    row = padding + tokens if side == "left" else tokens + padding
    last = len(row) - 1 if side == "left" else len(tokens) - 1
    other = [3] * len(row)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([other, row])).logits[1, last]
    expected = expected_scores(model, history)
    assert logits[2:].tolist() == pytest.approx(expected, rel=1e-5)
    assert logits[:2].max() < logits[2:].min()


def test_masks_and_what_the_attention_mask_hides_are_no_items():
    model = make_model()
    inputs = {"input_ids": torch.tensor([[4, 7, 1, 3, 1]])}
    hidden = {"attention_mask": torch.tensor([[0, 1, 1, 1, 1]])}
    seen = model._newest_items(torch.tensor([2, 4]), **inputs)
    assert seen.tolist() == [[7, 4, 0], [3, 7, 4]]
    seen = model._newest_items(torch.tensor([2, 4]), **inputs, **hidden)
    assert seen.tolist() == [[7, 0, 0], [3, 7, 0]]


def cross_entropy(model, history, target):
    return -torch.tensor(expected_scores(model, history)).log_softmax(dim=0)[target - 2].item()


def cut_views(**settings):
    views = {"max_history_length": 7, "last_item_ratio": 0.0, "prefix_view_ratio": 1.0}
    collator = MaskedItemCollator(**views, prefix_ratio=1.0, **settings)
    return collator([{"items": items, "view": 3} for items in HISTORIES])


def test_the_loss_is_the_cross_entropy_of_the_mixed_scores_of_every_beginning(model):
    is_causal = model.config.is_causal
    batch = cut_views(is_causal=is_causal)
    asked = [(items[:end], items[end]) for items in HISTORIES for end in range(1, len(items))]
    losses = [cross_entropy(model, list(history), target) for history, target in asked]
    assert model(**batch).loss.item() == pytest.approx(np.mean(losses), rel=1e-5)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_the_gradients_are_those_of_the_mixed_scores():
    model = make_model()
    inputs = torch.tensor([[0, 7, 3, 1], [2, 13, 9, 1], [0, 0, 6, 1]])
    labels = torch.full_like(inputs, -100)
    labels[:, -1] = torch.tensor([9, 12, 10])
    expected = torch.nn.functional.cross_entropy(
        model(input_ids=inputs).logits[:, -1, 2:], labels[:, -1] - 2
    )
    expected_gradients = gradients(model, expected)
    loss = model(input_ids=inputs, labels=labels).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, gradient in gradients(model, loss).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6)


def test_a_sampled_softmax_over_the_whole_catalog_is_the_full_one():
    inputs = torch.tensor([[0, 7, 3, 1], [2, 13, 9, 1]])
    labels = torch.full_like(inputs, -100)
    labels[:, -1] = torch.tensor([9, 12])
    catalog = torch.arange(2, VOCAB_SIZE)
    drawn = {"negatives": catalog, "negative_log_counts": torch.zeros(len(catalog))}
    full = make_model()(input_ids=inputs, labels=labels).loss
    sampled = make_model(objective="sampled_softmax")(input_ids=inputs, labels=labels, **drawn).loss
    assert sampled.item() == pytest.approx(full.item(), rel=1e-6)


def test_gbce_is_its_formula_of_the_mixed_scores():
    model = make_model(objective="gbce", gbce_calibration=0)
    history, target = [2, 13, 9], 3
    labels = torch.tensor([[-100, -100, -100, target]])
    negatives = torch.tensor([12, 7, 3, 12])
    loss = model(
        input_ids=torch.tensor([[*history, 1]]),
        labels=labels,
        negatives=negatives,
        negative_log_counts=torch.zeros(4),
    ).loss
    scores = [0, 0, *expected_scores(model, history)]
    wrong = sum(math.log1p(math.exp(scores[item])) for item in (12, 7, 12))
    expected = (wrong + math.log1p(math.exp(-scores[target]))) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_training_takes_out_what_the_history_itself_has_counted():
    model = make_model(num_neighbors=13).train()
    history, target = [6, 10, 7, 3, 9], 5
    # 5 stands 1, 2 and 3 places behind 9, 3 and 7 in this history; all three are looked up.
    counts = np.bincount(np.concatenate(HISTORIES), minlength=VOCAB_SIZE) + 5
    table = model.neighbors
    left = {name: getattr(table, name).clone() for name in ("ids", "similarities", "scales")}
    for distance, item in enumerate((9, 3, 7), start=1):
        column = (left["ids"][item] == target).nonzero().item()
        left["similarities"][item, column] -= (
            1 / distance / math.sqrt(counts[item] * counts[target])
        )
    inputs, labels = torch.tensor([[*history, 1]]), torch.tensor([[-100] * 5 + [target]])
    loss = model(input_ids=inputs, labels=labels).loss.item()
    kept = model.eval()(input_ids=inputs, labels=labels).loss.item()
    table.set_table(**left)
    expected = cross_entropy(model, history, target)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert kept < loss - 0.01


@torch.no_grad()
def test_a_teacher_takes_out_what_the_history_itself_has_counted():
    model = make_model(num_neighbors=13)
    inputs = torch.tensor([[6, 10, 7, 3, 9, 1], [0, 8, 2, 12, 7, 1]])
    positions, targets = torch.tensor([5, 11]), torch.tensor([5, 11])
    read = model.encode_masked(positions, input_ids=inputs)
    kept, left = model.score_masked(*read), model.score_masked(*read, targets)
    torch.testing.assert_close(kept, model(input_ids=inputs).logits[:, -1])
    labels = torch.full_like(inputs, -100)
    labels[:, -1] = targets
    loss = model.train()(input_ids=inputs, labels=labels).loss  # which knows of targets alone
    torch.testing.assert_close(F.cross_entropy(left, targets), loss)
    assert F.cross_entropy(kept, targets) < loss - 0.01


def test_a_target_that_only_this_history_knows_is_no_neighbor_while_training():
    model = make_model(num_neighbors=13).train()
    fill(model, HISTORIES[:1])  # 5, 9, 3
    inputs, labels = torch.tensor([[5, 9, 1]]), torch.tensor([[-100, -100, 3]])
    loss = model(input_ids=inputs, labels=labels).loss
    left = torch.tensor(expected_scores(model, [5, 9]))
    network = model.lm_head(model.next_item_states(inputs))[0, 2:]
    # 5 and 9 stay neighbors of each other, and 3 is left to the network.
    shares = np.zeros(VOCAB_SIZE)
    shares[5], shares[9] = 1, 0.7
    gate = model.neighbors.gate(model.next_item_states(inputs)).item()
    added = math.exp(gate)
    expected = math.log(network.exp().sum().item() + added) - network[1].item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert left[1] > network[1]
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


def test_a_history_without_neighbors_is_scored_by_the_network_alone():
    model = make_model()
    inputs, labels = torch.tensor([[14, 1]]), torch.tensor([[-100, 3]])
    network = model.lm_head(model.next_item_states(inputs))[0]
    torch.testing.assert_close(model(input_ids=inputs).logits[0, -1, 2:], network[2:])
    loss = model.train()(input_ids=inputs, labels=labels).loss
    expected = -network[2:].log_softmax(dim=0)[1]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(grad.isfinite().all() for grad in gradients(model, loss).values())


def test_new_items_have_no_neighbors_and_leave_the_scores_of_old_ones_alone():
    model = make_model()
    inputs = torch.tensor([[2, 13, 9, 1]])
    before = model(input_ids=inputs).logits
    model.resize_token_embeddings(VOCAB_SIZE + 3)
    torch.testing.assert_close(model(input_ids=inputs).logits[..., :VOCAB_SIZE], before)
    assert not model.neighbors.similarities[VOCAB_SIZE:].any()
    model.resize_token_embeddings(9)
    assert model.neighbors.ids.shape == (9, 4)
    assert model.neighbors.ids.max() < 9
    assert model(input_ids=torch.tensor([[2, 7, 1]])).logits.shape[-1] == 9


def test_an_adapter_sees_the_same_neighbors():
    model = make_model()
    history = [2, 13, 9]
    expected = expected_scores(model, history)
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"])).eval()
    scorer = ModelScorer(tuned)
    with torch.no_grad():
        scores = scorer.score(scorer.encode([np.array(history)]), 2, VOCAB_SIZE)[0]
    assert scores.tolist() == pytest.approx(expected, rel=1e-5)
    trained = [name for name, weight in tuned.named_parameters() if weight.requires_grad]
    assert trained
    assert not any("neighbors" in name for name in trained)


def test_the_table_is_saved_and_loaded(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = BERT4RecForMaskedItemModeling.from_pretrained(tmp_path)
    inputs = torch.tensor([[2, 13, 9, 1]])
    assert torch.equal(loaded(input_ids=inputs).logits, model(input_ids=inputs).logits)
    assert loaded.neighbors.ids.dtype == torch.int32
    assert (tmp_path / "neighbors.py").is_file()


def test_a_model_without_neighbors_knows_nothing_of_them():
    model = make_model(num_neighbors=0)
    assert not any("neighbors" in name for name in model.state_dict())
    states = model.next_item_states(torch.tensor([[2, 13, 9, 1]]))
    assert model.next_item_neighbors(states, torch.tensor([[2, 13, 9, 1]])) is None
    assert torch.is_tensor(ModelScorer(model).encode([np.array([2, 13, 9])]))


def test_a_model_begins_without_neighbors():
    torch.manual_seed(0)
    model = BERT4RecForMaskedItemModeling(BERT4RecConfig(vocab_size=9, num_neighbors=2))
    assert not model.neighbors.similarities.any()
    assert model.neighbors.gate.bias.item() == pytest.approx(math.log(7))
    inputs = torch.tensor([[3, 8, 1]])
    network = model.lm_head(model.transform(model.model(inputs).last_hidden_state))
    torch.testing.assert_close(model.eval()(inputs).logits.shape, network.shape)


def test_neighbors_can_be_added_to_a_trained_model_and_taken_away_again():
    model = make_model(num_neighbors=0)
    inputs = torch.tensor([[2, 13, 9, 1]])
    alone = model(input_ids=inputs).logits
    model.config.neighbor_distance = 3
    model.add_neighbors(4)
    assert torch.equal(model(input_ids=inputs).logits, alone), "there are none yet"
    fill(model, HISTORIES)
    mixed = model(input_ids=inputs).logits
    assert mixed[0, -1, 2:].tolist() == pytest.approx(expected_scores(model, [2, 13, 9]), abs=1e-5)
    model.remove_neighbors()
    assert torch.equal(model(input_ids=inputs).logits, alone)
    assert model.config.num_neighbors == 0


def test_embeddings_in_place_of_ids_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match=r"num_neighbors = 4\), which it looks up by input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 12))


def test_a_table_of_another_shape_is_refused():
    model = make_model()
    table = count_neighbors(HISTORIES, VOCAB_SIZE, 5)
    with pytest.raises(ValueError, match=r"ids must be \(15, 4\), .* got \(15, 5\)"):
        model.neighbors.set_table(*table)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_neighbors": -1}, "num_neighbors must be 0 or more, got -1"),
        ({"neighbor_distance": 0}, "neighbor_distance must be at least 1, got 0"),
        ({"num_recent_items": 0}, "num_recent_items must be at least 1, got 0"),
        ({"neighbor_decay": 1.5}, r"neighbor_decay must be in \(0, 1\], got 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(Exception, match=message):
        BERT4RecConfig(**settings)
