import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from bert4rec_hf.modeling import (
    BERT4RecConfig,
    BERT4RecForMaskedItemModeling,
    BERT4RecModel,
)

SHAPE = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_history_length": 11,
}
MODERN = {
    "norm_first": True,
    "position_origin": "newest",
    "output_transform": False,
    "output_bias": False,
}
NETWORKS = {"paper": {}, "modern": MODERN, "untied": {"tie_word_embeddings": False}}


def make_model(**settings):
    torch.manual_seed(0)
    model = BERT4RecForMaskedItemModeling(BERT4RecConfig(**SHAPE | settings)).eval()
    with torch.no_grad():  # fresh biases are zero and would hide a missing one
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) / 10)
    return model


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def model(request):
    return make_model(**request.param)


def test_the_paper_network_computes_what_bert_computes():
    model = make_model()
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=37,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            max_position_embeddings=11,
            type_vocab_size=1,
            layer_norm_eps=model.config.layer_norm_eps,
        )
    ).eval()
    bert.load_state_dict(named_as_in_bert(model, bert))
    ids = torch.tensor([[5, 9, 1, 12, 36], [2, 1, 0, 0, 0]])
    mask = (ids != 0).long()
    expected = bert(input_ids=ids, attention_mask=mask).logits
    actual = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(actual[mask.bool()][:, 2:], expected[mask.bool()][:, 2:])


def named_as_in_bert(model, bert):
    """The weights of our model under the names that transformers' BERT gives them."""
    names = {
        "model.embed_tokens": "bert.embeddings.word_embeddings",
        "model.embeddings.positions": "bert.embeddings.position_embeddings",
        "model.embeddings.norm": "bert.embeddings.LayerNorm",
        "model.layers": "bert.encoder.layer",
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.o_proj": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "mlp.up_proj": "intermediate.dense",
        "mlp.down_proj": "output.dense",
        "mlp_norm": "output.LayerNorm",
        "transform.dense": "cls.predictions.transform.dense",
        "transform.norm": "cls.predictions.transform.LayerNorm",
        "lm_head": "cls.predictions.decoder",
    }
    state = {}
    for name, weight in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = weight
    state["cls.predictions.bias"] = state["cls.predictions.decoder.bias"]
    state["bert.embeddings.token_type_embeddings.weight"] = torch.zeros(1, 24)
    assert state.keys() == bert.state_dict().keys()
    return state


def test_the_modern_network_computes_its_formula():
    model = make_model(**MODERN)
    encoder = model.model
    ids = torch.tensor([[7, 3, 20, 1]])
    hidden = encoder.embed_tokens(ids) + encoder.embeddings.positions.weight[[3, 2, 1, 0]]
    for layer in encoder.layers:
        normed = layer.attention_norm(hidden)
        heads = [
            getattr(layer.self_attn, name)(normed)[0].reshape(4, 3, 8).permute(1, 0, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        ]
        weights = torch.softmax(heads[0] @ heads[1].transpose(1, 2) / math.sqrt(8), dim=-1)
        attended = (weights @ heads[2]).permute(1, 0, 2).reshape(1, 4, 24)
        hidden = hidden + layer.self_attn.o_proj(attended)
        hidden = hidden + layer.mlp.down_proj(F.gelu(layer.mlp.up_proj(layer.mlp_norm(hidden))))
    expected = encoder.norm(hidden) @ encoder.embed_tokens.weight.T
    torch.testing.assert_close(model(ids).logits[..., 2:], expected[..., 2:])


def test_neither_padding_nor_neighbors_change_a_score(model):
    alone = model(torch.tensor([[5, 3, 1]])).logits[0]
    left = model(torch.tensor([[0, 0, 5, 3, 1], [7, 8, 9, 2, 1]])).logits[0, 2:]
    right = model(torch.tensor([[4, 6, 8, 9, 2, 1], [5, 3, 1, 0, 0, 0]])).logits[1, :3]
    torch.testing.assert_close(left, alone)
    torch.testing.assert_close(right, alone)


def test_attention_looks_at_older_and_newer_items(model):
    first = model(torch.tensor([[5, 1, 7]])).logits[0, 1]
    assert not torch.allclose(first[2:], model(torch.tensor([[6, 1, 7]])).logits[0, 1, 2:])
    assert not torch.allclose(first[2:], model(torch.tensor([[5, 1, 8]])).logits[0, 1, 2:])


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS.keys())
def test_sdpa_equals_eager(settings):
    ids = torch.tensor([[0, 0, 5, 3, 1], [7, 8, 9, 2, 1]])
    results = []
    for implementation in ("eager", "sdpa"):
        model = make_model(**settings)
        model.set_attn_implementation(implementation)
        results.append(model(ids).logits[ids != 0][:, 2:])
    torch.testing.assert_close(*results)


def test_padding_and_mask_are_never_recommended(model):
    logits = model(torch.tensor([[5, 3, 1]])).logits
    assert logits.isfinite().all()
    least = logits[..., 2:].amin(dim=-1, keepdim=True)
    torch.testing.assert_close(logits[..., :2], (least - 20).expand(1, 3, 2))


def test_the_loss_is_the_mean_over_masked_items_of_the_whole_catalog(model):
    ids = torch.tensor([[0, 5, 1, 1], [7, 1, 9, 2]])
    labels = torch.tensor([[-100, -100, 8, 3], [-100, 36, -100, -100]])
    logits = model(ids).logits
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)


def test_training_scores_masked_positions_only(model):
    read = []
    model.transform.register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].shape)
    )
    labels = torch.full((2, 4), -100)
    labels[0, 2] = labels[1, 1] = labels[1, 3] = 6
    output = model(torch.tensor([[0, 5, 1, 4], [7, 1, 9, 1]]), labels=labels)
    assert read[0] == (3, 24)
    assert model.train()(torch.tensor([[0, 5, 1, 4], [7, 1, 9, 1]]), labels=labels).logits is None
    assert output.logits.shape == (3, 37)


def test_a_loss_over_parts_of_a_batch_sums_to_the_loss_of_the_batch(model):
    ids = torch.tensor([[4, 5, 1, 1], [7, 1, 9, 2]])
    labels = torch.tensor([[-100, -100, 8, 3], [-100, 36, -100, -100]])
    parts = [model(ids[[i]], labels=labels[[i]], num_items_in_batch=3).loss for i in (0, 1)]
    torch.testing.assert_close(sum(parts), model(ids, labels=labels).loss)


def test_logits_to_keep_gives_the_last_positions(model):
    ids = torch.tensor([[5, 3, 7, 1]])
    kept = model(ids, logits_to_keep=2).logits
    torch.testing.assert_close(kept, model(ids).logits[:, -2:])


def test_next_item_states_times_the_table_are_the_scores(model):
    ids = torch.tensor([[0, 0, 5, 3, 1], [7, 8, 9, 2, 1]])
    head = model.get_output_embeddings()
    scores = F.linear(model.next_item_states(ids, (ids != 0).long()), head.weight, head.bias)
    torch.testing.assert_close(scores[:, 2:], model(ids).logits[:, -1, 2:])


def test_hidden_states_and_attentions_come_on_request():
    model = make_model()
    model.set_attn_implementation("eager")
    ids = torch.tensor([[5, 3, 7, 1]])
    output = model(ids, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(1, 4, 24)] * 3
    assert [weights.shape for weights in output.attentions] == [(1, 3, 4, 4)] * 2
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 3, 4))


def test_gradient_checkpointing_changes_no_gradient(model):
    ids = torch.tensor([[0, 5, 1, 4], [7, 1, 9, 1]])
    labels = torch.where(ids == 1, 9, -100)
    gradients = []
    for is_on in (False, True):
        if is_on:
            model.gradient_checkpointing_enable()
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.config.attention_dropout = 0.0
        model.zero_grad()
        model(ids, labels=labels).loss.backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    assert model.is_gradient_checkpointing
    torch.testing.assert_close(*gradients)


def test_tied_models_have_one_table_and_untied_ones_two():
    tied, untied = make_model(), make_model(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    difference = untied.num_parameters() - tied.num_parameters()
    assert difference == 37 * 24


def test_new_items_leave_the_scores_of_old_ones_alone(model):
    ids = torch.tensor([[5, 3, 7, 1]])
    before = model(ids).logits
    model.resize_token_embeddings(41)
    after = model(ids).logits
    assert model.config.vocab_size == 41
    assert after.shape == (1, 4, 41)
    torch.testing.assert_close(after[..., :37], before)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": torch.full((1, 12), 5)}, "has 12 positions .* max_history_length = 11"),
    ],
)
def test_impossible_inputs_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        BERT4RecModel(BERT4RecConfig(**SHAPE))(**inputs)


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="objective must be one of full_softmax.*, got 'bpr'"):
        BERT4RecForMaskedItemModeling(BERT4RecConfig(**SHAPE, objective="bpr"))


def test_saved_weights_load_through_the_auto_classes(model, tmp_path):
    ids = torch.tensor([[0, 5, 3, 1]])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(loaded) is BERT4RecForMaskedItemModeling
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=0)
    encoder = AutoModel.from_pretrained(tmp_path)
    expected = model.model(ids).last_hidden_state
    torch.testing.assert_close(encoder(ids).last_hidden_state, expected, rtol=0, atol=0)


LOAD_ELSEWHERE = """
import sys
sys.modules["bert4rec_hf"] = None  # importing it fails
import numpy, torch
from transformers import AutoModel, AutoModelForMaskedLM
folder, ids = sys.argv[1], torch.tensor([[5, 3, 1]])
encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    numpy.save(folder + "/logits.npy", model(ids).logits.numpy())
    numpy.save(folder + "/hidden.npy", encoder(ids).last_hidden_state.numpy())
"""


def test_a_saved_model_loads_in_a_process_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    model, folder = make_model(), tmp_path / "model"
    model.save_pretrained(folder)
    subprocess.run([sys.executable, "-c", LOAD_ELSEWHERE, folder], cwd=tmp_path, check=True)
    ids = torch.tensor([[5, 3, 1]])
    with torch.no_grad():
        logits, hidden = model(ids).logits.numpy(), model.model(ids).last_hidden_state.numpy()
    np.testing.assert_array_equal(np.load(folder / "logits.npy"), logits)
    np.testing.assert_array_equal(np.load(folder / "hidden.npy"), hidden)
