"""Rows of the item table that travel with an adapter, where the table embeds and scores."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from bert4rec_hf.tuners import ILoraConfig

ITEMS = [3, 8, 30, 36]
CONFIGS = {"lora": LoraConfig, "ilora": ILoraConfig}


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def make(make_base, request):
    """A base model whose items have biases of some size, or none."""

    def make_one(**settings):
        base = make_base(output_bias=request.param, **settings)
        if request.param:
            with torch.no_grad():
                base.lm_head.bias.copy_(torch.linspace(-1, 1, 37))
        return base

    return make_one


def both_ways(model, batch):
    """The loss, and the logits."""
    names = ("input_ids", "cu_seq_lens_q", "max_length_q")
    logits = model(**{name: batch[name] for name in names}).logits[..., 2:]
    return model(**batch).loss.detach(), logits.detach()


def shifted(base, *tables):
    """The base model after its rows of some items have moved."""
    base.requires_grad_(False)
    for table in tables:
        table.weight[ITEMS] += 0.5
    return base


@pytest.mark.parametrize("tuner", CONFIGS)
@pytest.mark.parametrize("tied", [True, False])
def test_some_rows_are_trained_and_saved_with_the_adapter(
    make, packed, tmp_path, tuner, tied, loss_and_gradients
):
    plain = make(tie_word_embeddings=tied)
    grads = loss_and_gradients(plain, packed)
    base = make(tie_word_embeddings=tied)
    model = get_peft_model(base, CONFIGS[tuner](trainable_token_indices=ITEMS)).eval()
    actual = loss_and_gradients(model, packed)
    torch.testing.assert_close(actual["loss"], grads["loss"])
    (name,) = [name for name in actual if "trainable_tokens" in name]
    torch.testing.assert_close(actual[name], grads["model.embed_tokens.weight"][ITEMS])
    with torch.no_grad():
        model.get_parameter(name).add_(0.5)
    expected = both_ways(shifted(plain, plain.model.embed_tokens), packed)
    torch.testing.assert_close(both_ways(model, packed), expected)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    base = make(tie_word_embeddings=tied)
    loaded = PeftModel.from_pretrained(base, tmp_path, "another")
    torch.testing.assert_close(both_ways(loaded, packed), expected)


@pytest.mark.parametrize("tuner", CONFIGS)
@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_a_table_of_its_own_is_trained_whole_and_saved_with_the_adapter(
    make, packed, tmp_path, tuner, modules, loss_and_gradients
):
    plain = make(tie_word_embeddings=False)
    plain.lm_head.weight.data.copy_(plain.model.embed_tokens.weight)
    grads = loss_and_gradients(plain, packed)
    model = get_peft_model(make(), CONFIGS[tuner](modules_to_save=modules)).eval()
    actual = loss_and_gradients(model, packed)
    tables = {"lm_head": plain.lm_head, "embed_tokens": plain.model.embed_tokens}
    paths = {"lm_head": "lm_head", "embed_tokens": "model.embed_tokens"}
    for module in modules:
        path = f"{paths[module]}.modules_to_save.default.weight"
        (name,) = [name for name in actual if name.endswith(path)]
        torch.testing.assert_close(actual[name], grads[f"{paths[module]}.weight"])
        with torch.no_grad():
            model.get_parameter(name)[ITEMS] += 0.5
    expected = both_ways(shifted(plain, *(tables[module] for module in modules)), packed)
    torch.testing.assert_close(both_ways(model, packed), expected)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make(), tmp_path, "another")
    torch.testing.assert_close(both_ways(loaded, packed), expected)


@pytest.mark.parametrize("tuner", CONFIGS)
def test_the_two_uses_of_a_table_that_is_trained_whole_can_be_tied(
    make, packed, tuner, loss_and_gradients
):
    grads = loss_and_gradients(make(), packed)
    config = CONFIGS[tuner](modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    model = get_peft_model(make(), config).eval()
    actual = loss_and_gradients(model, packed)
    torch.testing.assert_close(actual["loss"], grads["loss"])
    (name,) = [name for name in actual if "modules_to_save" in name]
    torch.testing.assert_close(actual[name], grads["model.embed_tokens.weight"])


def test_an_adapter_on_the_head_is_refused(make, packed):
    model = get_peft_model(make(), LoraConfig(target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ValueError, match="lm_head has an adapter, .* by its weight alone; leave"):
        both_ways(model, packed)
