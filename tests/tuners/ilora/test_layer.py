"""What an adapter computes, against a model of its own for each history and against PEFT's LoRA."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.func import functional_call
from transformers import BertConfig, BertModel

from bert4rec_hf.modeling import BERT4RecModel
from bert4rec_hf.tuners import ILoraConfig

NETWORKS = {
    "paper": {},
    "modern": {"norm_first": True, "position_origin": "newest", "output_transform": False},
    "one layer": {"num_hidden_layers": 1},
}


def weigh(model, embeddings):
    """(experts,) gate weights of one history, from the (length, hidden) embeddings of its items."""
    gate = model.base_model.encoder.history_gates.ilora_gate["default"]
    mean = sum(embeddings) / len(embeddings)
    centered = mean - mean.mean()
    summary = centered / (centered**2).mean().sqrt()
    exponentials = (gate.weight @ summary + gate.bias).exp()
    return exponentials / exponentials.sum()


def weights_of_its_own(model, base, gate_weights):
    """Weights of the base model, those of the target modules plus the experts, one by one."""
    config = model.peft_config["default"]
    weights = dict(base.named_parameters())
    for key in model.targeted_module_names:
        layer = model.base_model.model.get_submodule(key)
        down, up = layer.ilora_A["default"].weight, layer.ilora_B["default"].weight
        for expert, share in enumerate(gate_weights):
            first, last = expert * config.expert_rank, (expert + 1) * config.expert_rank
            update = up[:, first:last] @ down[first:last]
            scale = share * config.lora_alpha / config.expert_rank
            weights[f"{key}.weight"] = weights[f"{key}.weight"] + scale * update
    return weights


def reference(model, base, histories, targets):
    """Loss and gradients, every history read alone by a model of its own."""
    model.zero_grad()
    count = sum(target != -100 for row in targets for target in row)
    total = 0
    for history, target in zip(histories, targets, strict=True):
        ids, labels = torch.tensor([history]), torch.tensor([target])
        own = weights_of_its_own(model, base, weigh(model, base.model.embed_tokens(ids)[0]))
        inputs = {"input_ids": ids, "labels": labels, "num_items_in_batch": count}
        total = total + functional_call(base, own, kwargs=inputs).loss
    total.backward()
    named = model.named_parameters()
    grads = {name: weight.grad.clone() for name, weight in named if weight.requires_grad}
    return {"loss": total.detach(), **grads}


@pytest.mark.parametrize("layout", ["padded", "packed", "filled"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_each_history_is_read_by_a_model_of_its_own(  # noqa: PLR0913 - fixtures
    make_base, adapt, histories, batches, network, layout, loss_and_gradients
):
    base = make_base(**network)
    model = adapt(copy.deepcopy(base))
    base.requires_grad_(False)
    expected = reference(model, base, *histories)
    assert all(grad.abs().max() > 1e-4 for grad in expected.values())
    assert abs(expected["loss"] - base(**batches[layout]).loss) > 1e-2
    torch.testing.assert_close(loss_and_gradients(model, batches[layout]), expected)


def test_scores_at_all_positions_are_those_of_models_of_their_own(base, adapt, histories):
    model = adapt(copy.deepcopy(base))
    for history in histories[0]:
        ids = torch.tensor([history])
        own = weights_of_its_own(model, base, weigh(model, base.model.embed_tokens(ids)[0]))
        expected = functional_call(base, own, kwargs={"input_ids": ids}).logits
        padded = torch.tensor([[0] * (7 - len(history)) + history, [4] * 7])
        torch.testing.assert_close(model(padded).logits[:1, 7 - len(history) :], expected)


def test_next_item_states_are_the_same_padded_packed_and_alone(adapted, packed):
    histories = [[4, 9, 1], [1], [6, 1], [7, 8, 9, 2, 1]]
    expected = torch.cat([adapted.next_item_states(torch.tensor([each])) for each in histories])
    row = torch.tensor([[item for history in histories for item in history]])
    ends = torch.tensor([0, 3, 4, 6, 11]).int()
    actual = adapted.next_item_states(row, cu_seq_lens_q=ends, max_length_q=5)
    torch.testing.assert_close(actual, expected)
    padded = torch.tensor([[0] * (5 - len(each)) + each for each in histories])
    torch.testing.assert_close(adapted.next_item_states(padded), expected)
    with adapted.disable_adapter():
        base_states = adapted.next_item_states(padded)
    assert (base_states - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    "keep",
    [
        [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
        [0, 0, 0, 3, 3, 4, 4, 4, 5, 9, 9, 12, 12],
        [7, 1, 12],
        [5] * 17,
        [],
    ],
)
@pytest.mark.parametrize("is_packed", [True, False])
def test_kept_positions_are_picked_exactly_however_many(adapted, packed, keep, is_packed):
    """Among them as many as there are positions, and in another order."""
    encoder = adapted.base_model.encoder
    names = ("input_ids", "cu_seq_lens_q", "max_length_q")
    inputs = {name: packed[name] for name in names} if is_packed else {}
    inputs = inputs or {"input_ids": packed["input_ids"][:, -11:]}
    keep = torch.tensor(keep, dtype=torch.long)
    keep = keep if is_packed else keep[keep < 11]
    every = encoder(**inputs).last_hidden_state
    kept = encoder(**inputs, keep=keep).last_hidden_state
    torch.testing.assert_close(kept, every[:, keep])


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("r", "experts", "alpha"), [(6, 3, 5), (4, 1, 7), (5, 5, 16)])
def test_under_a_uniform_gate_it_is_lora(  # noqa: PLR0913 - fixtures
    make_base, adapt, packed, r, experts, alpha, dropout, loss_and_gradients
):
    shape = {"r": r, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": "all-linear"}
    network = {"output_transform": False}
    model = adapt(make_base(**network), num_experts=experts, gate="uniform", **shape)
    lora = get_peft_model(make_base(**network), LoraConfig(**shape))
    copied = {
        name.replace("ilora_", "lora_"): weight for name, weight in model.state_dict().items()
    }
    lora.load_state_dict(copied)
    measured = []
    for each in (model.train(), lora.train()):
        torch.manual_seed(2)
        measured.append(loss_and_gradients(each, packed))
    actual = {name.replace("ilora_", "lora_"): each for name, each in measured[0].items()}
    torch.testing.assert_close(actual, measured[1])
    assert len(actual) == 1 + 2 * 2 * 6


def test_a_constant_gate_weighs_all_histories_alike_and_learns(base, adapt, batches):
    model = adapt(base, gate="constant")
    gate = base.model.history_gates.ilora_gate["default"]
    weights = model.base_model.gate_weights(**batches["padded"])
    torch.testing.assert_close(weights, gate.logits.softmax(0).expand(5, -1))
    model(**batches["packed"]).loss.backward()
    assert gate.logits.grad.abs().min() > 1e-5


def test_gate_weights_are_those_that_each_history_would_have_alone(adapted, histories, batches):
    expected = torch.stack(
        [
            weigh(adapted, adapted.get_input_embeddings()(torch.tensor(history)))
            for history in histories[0]
        ]
    )
    assert (expected.max(dim=0).values - expected.min(dim=0).values).max() > 0.1
    for name, batch in batches.items():
        weights = adapted.base_model.gate_weights(**batch)
        torch.testing.assert_close(weights[:5], expected, rtol=1e-6, atol=1e-7)
        assert len(weights) == (8 if name == "filled" else 5)
        assert not weights.requires_grad


def test_threads_can_share_a_model(adapted):
    """Two forward passes, the first layer of each entered before the second layer of the other."""
    batches = [torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.tensor([[30, 31, 32], [33, 9, 11]])]
    expected = [adapted(batch).logits for batch in batches]
    meeting = threading.Barrier(2, timeout=10)

    def meet(*_):
        meeting.wait()

    hook = adapted.base_model.encoder.layers[0].register_forward_hook(meet)
    with ThreadPoolExecutor(2) as pool:
        actual = list(pool.map(lambda batch: adapted(batch).logits, batches))
    hook.remove()
    for each, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(each, other)


def test_gate_weights_do_not_know_who_else_is_in_the_batch(adapted):
    torch.manual_seed(3)
    ids = torch.randint(2, 37, (400, 9))
    ids[torch.arange(9) < torch.randint(9, (400, 1))] = 0
    weights = adapted.base_model.gate_weights(input_ids=ids)
    for row in (0, 7, 399):
        alone = adapted.base_model.gate_weights(input_ids=ids[row][ids[row] != 0].unsqueeze(0))
        torch.testing.assert_close(alone[0], weights[row], rtol=1e-6, atol=1e-7)


def test_embeddings_do_for_ids(adapted, packed):
    encoder = adapted.base_model.encoder
    lengths = {name: packed[name] for name in ("cu_seq_lens_q", "max_length_q")}
    expected = encoder(packed["input_ids"], **lengths)
    rows = encoder.embed_tokens(packed["input_ids"])
    actual = encoder(inputs_embeds=rows, **lengths)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("is_masked", [True, False])
def test_any_encoder_with_item_embeddings_will_do(is_masked):
    torch.manual_seed(0)
    shape = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20}
    base = BertModel(BertConfig(vocab_size=23, num_hidden_layers=2, **shape), False).eval()
    expected = base(torch.tensor([[3, 4, 5]])).last_hidden_state
    model = get_peft_model(base, ILoraConfig(init_weights=False)).eval()
    assert len(model.targeted_module_names) == 4
    alone = model(torch.tensor([[3, 4, 5]])).last_hidden_state
    assert (alone - expected).abs().max() > 1e-3
    ids = torch.tensor([[3, 4, 5, 0], [9, 8, 7, 6]])
    mask = (ids != 0).long() if is_masked else None
    weights = model.base_model.gate_weights(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(weights[:1], model.base_model.gate_weights(input_ids=ids[:1, :3]))
    if is_masked:
        states = model(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(states[:1, :3], alone)


def test_an_encoder_alone_can_be_adapted(make_base, adapt, packed):
    encoder = make_base(BERT4RecModel)
    model = adapt(encoder)
    assert model.base_model.encoder is encoder
    assert model(packed["input_ids"][:, :7]).last_hidden_state.shape == (1, 7, 24)


def test_a_layer_that_does_not_see_positions_is_refused():
    shape = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20}
    base = BertModel(BertConfig(vocab_size=23, num_hidden_layers=2, **shape))
    model = get_peft_model(base, ILoraConfig(target_modules=["pooler.dense"]))
    message = r"pooler.dense got an input of shape \(2,\) and hidden, .* have \(2, 3\); .* exclude"
    with pytest.raises(ValueError, match=message):
        model(torch.tensor([[3, 4, 5], [6, 7, 8]]))


def test_a_layer_by_itself_has_no_gate_weights(adapted):
    layer = adapted.base_model.encoder.layers[0].self_attn.q_proj
    with pytest.raises(
        RuntimeError, match="q_proj has adapter 'default' active, which has no gate"
    ):
        layer(torch.randn(2, 3, 24))


def test_input_without_histories_is_refused(adapted):
    with pytest.raises(ValueError, match="reads input_ids or inputs_embeds, .* called with keep"):
        adapted.base_model.encoder(keep=torch.tensor([0]))


def test_a_mask_of_another_kind_is_refused(adapted):
    ids = torch.tensor([[3, 4, 5]])
    with pytest.raises(
        ValueError, match=r"attention_mask of \(batch, length\), got .* \(1, 1, 3, 3"
    ):
        adapted(ids, attention_mask=torch.ones(1, 1, 3, 3))
