"""The life of an adapter: made, saved, loaded, switched, merged and removed."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn

from bert4rec_hf.tuners import ILoraConfig
from bert4rec_hf.tuners.ilora.history_gates import ILoraLayer


def trainable(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def scores(model, batch):
    model.eval()
    names = ("input_ids", "cu_seq_lens_q", "max_length_q")
    return model(**{name: batch[name] for name in names}).logits[..., 2:]


def differ(left, right):
    return (left - right).abs().max() > 1e-2


def test_a_new_adapter_changes_nothing(base, packed):
    expected = scores(base, packed)
    model = get_peft_model(base, ILoraConfig())
    torch.testing.assert_close(scores(model, packed), expected, rtol=0, atol=0)


def test_only_the_adapter_is_trained_and_counted(base, adapt, capsys):
    model = adapt(base, target_modules=["v_proj", "down_proj"])
    pairs = 2 * (6 * (24 + 24) + 6 * (40 + 24))
    gate = 24 * 3 + 3
    assert model.get_nb_trainable_parameters()[0] == pairs + gate
    assert all("ilora_" in name for name in trainable(model))
    model.print_trainable_parameters()
    assert f"trainable params: {pairs + gate:,}" in capsys.readouterr().out


def test_settings_choose_modules_layers_and_their_channels(base, adapt):
    model = adapt(
        base,
        target_modules=["q_proj", "v_proj"],
        exclude_modules=["layers.0.self_attn.v_proj"],
        rank_pattern={"v_proj": 9},
        alpha_pattern={"q_proj": 8},
    )
    layers = dict(model.base_model.model.named_modules())
    assert model.targeted_module_names == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    found = {
        name.removeprefix("model.layers."): (len(layer.ilora_A["default"].weight), layer.scaling)
        for name, layer in layers.items()
        if name in model.targeted_module_names
    }
    assert found == {
        "0.self_attn.q_proj": (6, {"default": 8 / 2}),
        "1.self_attn.q_proj": (6, {"default": 8 / 2}),
        "1.self_attn.v_proj": (9, {"default": 5 / 3}),
    }


def test_layers_are_chosen_by_number(base, adapt, packed):
    model = adapt(base, layers_to_transform=[1], layers_pattern="layers")
    assert {name.split(".")[2] for name in model.targeted_module_names} == {"1"}
    scores(model, packed)


@pytest.mark.parametrize("name", ["default", "another"])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("gate", ["instance", "constant", "uniform"])
def test_a_saved_adapter_computes_the_same_under_any_name(  # noqa: PLR0913 - fixtures
    make_base, adapt, packed, tmp_path, name, low_cpu_mem_usage, gate
):
    model = adapt(make_base(), gate=gate)
    expected = scores(model, packed)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    of_gates = {key.rpartition(".")[2] for key in saved if "gate" in key}
    assert of_gates == {"instance": {"weight", "bias"}, "constant": {"logits"}}.get(gate, set())
    assert not any("default" in key for key in saved)
    options = {"adapter_name": name, "low_cpu_mem_usage": low_cpu_mem_usage}
    loaded = PeftModel.from_pretrained(make_base(), tmp_path, **options)
    torch.testing.assert_close(scores(loaded, packed), expected, rtol=0, atol=0)
    assert trainable(loaded) == set()
    resumed = PeftModel.from_pretrained(make_base(), tmp_path, is_trainable=True, **options)
    torch.testing.assert_close(scores(resumed, packed), expected, rtol=0, atol=0)
    assert len(trainable(resumed)) == len(trainable(model))


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_adapters_of_different_settings_live_side_by_side(
    make_base, adapt, packed, tmp_path, low_cpu_mem_usage
):
    others = {"r": 4, "num_experts": 2, "gate": "constant", "target_modules": ["k_proj", "q_proj"]}
    alone = {"first": adapt(make_base(), "first"), "second": adapt(make_base(), "second", **others)}
    expected = {name: scores(model, packed) for name, model in alone.items()}
    for name, model in alone.items():
        model.save_pretrained(tmp_path)
        assert (tmp_path / name / "adapter_config.json").is_file()
    model = PeftModel.from_pretrained(make_base(), tmp_path / "first", "first")
    options = {"adapter_name": "second", "low_cpu_mem_usage": low_cpu_mem_usage}
    result = model.load_adapter(tmp_path / "second", **options)
    assert result.missing_keys == result.unexpected_keys == []
    for name in ("first", "second", "first"):
        model.set_adapter(name)
        torch.testing.assert_close(scores(model, packed), expected[name], rtol=0, atol=0)
        weights = model.base_model.gate_weights(**packed)
        torch.testing.assert_close(weights, alone[name].base_model.gate_weights(**packed))
    with model.disable_adapter():
        torch.testing.assert_close(scores(model, packed), scores(make_base(), packed))
    torch.testing.assert_close(scores(model, packed), expected["first"], rtol=0, atol=0)


def test_adapters_that_are_active_together_add_up(base, packed, adapt):
    """On the first layer that they touch; those behind it read something else."""
    where = {"target_modules": ["o_proj"], "layers_to_transform": [1]}
    model = adapt(base, "first", **where)
    other = ILoraConfig(r=4, num_experts=2, init_weights=False, lora_dropout=0, **where)
    model.add_adapter("second", other)
    seen = []
    layer = base.model.layers[1].self_attn.o_proj
    layer.register_forward_hook(lambda *args: seen.append(args[-1]))
    for chosen in ([], ["first"], ["second"], ["first", "second"]):
        model.base_model.set_adapter(chosen)
        scores(model, packed)
    plain, first, second, both = seen
    assert differ(first, plain)
    assert differ(second, plain)
    torch.testing.assert_close(both - plain, (first - plain) + (second - plain))
    with pytest.raises(
        ValueError, match=r"of one adapter, and the active ones are \['first', 'sec"
    ):
        model.base_model.gate_weights(**packed)


def test_an_added_adapter_waits_until_it_is_chosen(base, adapt, packed):
    model = adapt(base)
    expected = scores(model, packed)
    model.add_adapter("other", ILoraConfig(init_weights=False))
    torch.testing.assert_close(scores(model, packed), expected, rtol=0, atol=0)
    assert not any("other" in name for name in trainable(model))
    model.set_adapter("other")
    assert trainable(model)
    assert all("other" in name for name in trainable(model))
    assert any("ilora_gate" in name for name in trainable(model))
    model.set_requires_grad("other", requires_grad=False)
    assert trainable(model) == set()
    model.set_requires_grad(["default"])
    assert {name.split(".")[-2] for name in trainable(model)} == {"default"}
    with model.disable_adapter():
        assert trainable(model) == set()


def test_a_deleted_adapter_leaves_nothing_behind(base, adapt, packed):
    model = adapt(base)
    expected = scores(model, packed)
    model.add_adapter("other", ILoraConfig(init_weights=False))
    model.set_adapter("other")
    with pytest.warns(UserWarning, match="other was active which is now deleted"):
        model.delete_adapter("other")
    assert not any("other" in name for name in model.state_dict())
    torch.testing.assert_close(scores(model, packed), expected, rtol=0, atol=0)
    model.delete_adapter("default")
    assert not any("default" in name for name in model.state_dict())


def test_peft_counts_the_gates_among_its_layers(base, adapt):
    model = adapt(base)
    status = model.get_model_status()
    assert (status.peft_types, status.enabled) == ({"default": "ILORA"}, True)
    assert status.num_adapter_layers == 2 * 5 + 1
    assert status.requires_grad == {"default": True}


def test_what_is_unloaded_is_the_base_model_as_it_was(make_base, adapt, packed):
    base = make_base()
    expected = scores(base, packed)
    model = adapt(base, modules_to_save=["transform"], trainable_token_indices=[3, 8])
    scores(model, packed)
    restored = model.unload()
    assert restored is base
    assert restored.state_dict().keys() == make_base().state_dict().keys()
    assert not any(isinstance(module, BaseTunerLayer) for module in restored.modules())
    assert not restored.model._forward_pre_hooks
    assert not restored.model._forward_hooks
    torch.testing.assert_close(scores(restored, packed), expected, rtol=0, atol=0)
    again = adapt(restored)
    assert differ(scores(again, packed), expected)


def test_merging_is_refused_with_the_reason(base, adapt, packed):
    model = adapt(base)
    expected = scores(model, packed)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(NotImplementedError, match="mixes its experts for each history"):
            merge()
    torch.testing.assert_close(scores(model, packed), expected, rtol=0, atol=0)


def test_under_a_fixed_gate_it_can_be_merged(make_base, adapt, packed):
    model = adapt(make_base(), gate="constant")
    expected = scores(model, packed)
    gate_weights = model.base_model.gate_weights(**packed)[0]
    merged = model.merge_and_unload(gate_weights=gate_weights, safe_merge=True)
    assert merged.state_dict().keys() == make_base().state_dict().keys()
    torch.testing.assert_close(scores(merged, packed), expected)


def test_one_of_several_adapters_is_merged_by_name(base, adapt, packed):
    model = adapt(base, "first", gate="constant")
    gate_weights = model.base_model.gate_weights(**packed)[0]
    expected = scores(model, packed)
    model.add_adapter("second", ILoraConfig(init_weights=False))
    model.set_adapter("second")
    merged = model.merge_and_unload(adapter_names=["first"], gate_weights=gate_weights)
    torch.testing.assert_close(scores(merged, packed), expected)


def test_a_merge_that_cannot_be_is_refused(base, adapt):
    model = adapt(base)
    with pytest.raises(
        ValueError, match=r"must be \(3,\), one per expert of 'default', got \(4,\)"
    ):
        model.merge_and_unload(gate_weights=torch.ones(4) / 4)
    with pytest.raises(ValueError, match=r"for one adapter, got \['default', 'other'\]"):
        model.merge_and_unload(adapter_names=["default", "other"], gate_weights=torch.ones(3) / 3)
    with pytest.raises(
        ValueError, match="'default' has weights that are not finite in model.layers"
    ):
        model.merge_and_unload(gate_weights=torch.tensor([torch.inf, 0, 0]), safe_merge=True)


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        ("ilora_only", {"q_proj.base_layer.bias"}),
        ("all", {"q_proj.base_layer.bias", "k_proj.bias", "lm_head.bias", "norm.bias"}),
    ],
)
def test_biases_are_trained_and_saved(make_base, adapt, packed, tmp_path, bias, expected):
    model = adapt(make_base(), bias=bias, target_modules=["q_proj"])
    names = [name for name in trainable(model) if "ilora_" not in name]
    assert all(any(name.endswith(each) for name in names) for each in expected)
    assert len(names) == (2 if bias == "ilora_only" else len(biases_of(make_base())))
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).add_(0.5)
    expected_scores = scores(model, packed)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base(), tmp_path, "another")
    torch.testing.assert_close(scores(loaded, packed), expected_scores, rtol=0, atol=0)


def biases_of(model):
    return [name for name, _ in model.named_parameters() if name.endswith("bias")]


def test_modules_to_save_are_trained_whole_and_travel_along(make_base, adapt, packed, tmp_path):
    model = adapt(make_base(), modules_to_save=["transform"])
    with torch.no_grad():
        model.get_submodule("base_model.model.transform.modules_to_save.default.dense").weight += 1
    expected = scores(model, packed)
    assert any("transform.modules_to_save" in name for name in trainable(model))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base(), tmp_path, "another")
    torch.testing.assert_close(scores(loaded, packed), expected, rtol=0, atol=0)


@pytest.mark.parametrize("cast", [True, False])
def test_adapters_of_a_half_precise_base_are_precise_unless_told_otherwise(
    make_base, adapt, packed, tmp_path, cast
):
    expected = torch.float32 if cast else torch.bfloat16
    adapt(make_base()).save_pretrained(tmp_path)
    base = make_base().to(torch.bfloat16)
    model = PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=cast)
    dtypes = {name: weight.dtype for name, weight in model.named_parameters() if "ilora_" in name}
    assert set(dtypes.values()) == {expected}
    assert any("ilora_gate" in name for name in dtypes)
    model.load_adapter(tmp_path, "other", autocast_adapter_dtype=cast, low_cpu_mem_usage=True)
    assert model.get_parameter(next(n for n in dtypes if "gate" in n)).dtype == expected
    assert scores(model, packed).dtype == torch.bfloat16
    model.set_requires_grad("default")
    model(**packed).loss.backward()
    assert all(model.get_parameter(name).grad is not None for name in dtypes)


def test_a_copy_is_a_model_of_its_own(base, adapt, packed):
    model = adapt(base)
    expected = scores(model, packed)
    with pytest.raises(IndexError):
        model(torch.tensor([[99]]))  # a forward pass that fails leaves nothing behind either
    with pytest.raises(RuntimeError, match="size"):
        model(input_ids=torch.tensor([[3, 4]]), attention_mask=torch.ones(1, 7))
    copied = copy.deepcopy(model)
    torch.testing.assert_close(scores(copied, packed), expected, rtol=0, atol=0)
    with torch.no_grad():
        copied.base_model.encoder.history_gates.ilora_gate["default"].weight.mul_(-1)
    assert differ(scores(copied, packed), expected)
    torch.testing.assert_close(scores(model, packed), expected, rtol=0, atol=0)


def test_transformers_can_add_it_by_itself(make_base, adapt, packed, tmp_path):
    expected = scores(adapt(make_base()), packed)
    adapt(make_base()).save_pretrained(tmp_path)
    model = make_base()
    model.load_adapter(tmp_path)
    torch.testing.assert_close(scores(model, packed), expected, rtol=0, atol=0)
    model.disable_adapters()
    torch.testing.assert_close(scores(model, packed), scores(make_base(), packed))


def test_it_can_be_injected_in_place(base, packed):
    expected = scores(base, packed)
    model = inject_adapter_in_model(ILoraConfig(init_weights=False), base)
    assert model is base
    assert differ(scores(model, packed), expected)


def test_it_does_not_mix_with_other_tuners(base):
    with pytest.raises(ValueError, match="'ILORA' is not compatible with the `PeftMixedModel`"):
        get_peft_model(base, ILoraConfig(), mixed=True)


def test_adapters_per_history_are_refused(adapted, packed):
    with pytest.raises(ValueError, match=r"one adapter per batch, got adapter_names \['default'\]"):
        adapted(**packed, adapter_names=["default"])


@pytest.mark.parametrize(("module", "kind"), [("lm_head", "Linear"), ("transform.dense", "Linear")])
def test_a_target_outside_of_the_encoder_is_refused(base, module, kind):
    with pytest.raises(
        ValueError, match=f"{module} lies outside of the encoder, .* exclude_modules"
    ):
        get_peft_model(base, ILoraConfig(target_modules=[module]))


def test_a_target_that_is_not_linear_is_refused(base):
    with pytest.raises(
        TypeError, match="model.embed_tokens is a ItemEmbedding; name it in exclude"
    ):
        get_peft_model(base, ILoraConfig(target_modules=["embed_tokens"]))


def test_a_model_without_item_embeddings_is_refused():
    with pytest.raises(TypeError, match="Sequential has no get_input_embeddings"):
        get_peft_model(nn.Sequential(nn.Linear(3, 5)), ILoraConfig(target_modules=["0"]))


def test_a_weighted_sum_of_adapters_is_refused_with_a_way_out(adapted):
    message = r"add_weighted_adapter sums weights, .* merge_and_unload\(gate_weights=…\)"
    with pytest.raises(NotImplementedError, match=message):
        adapted.add_weighted_adapter(["default"], [1.0], "sum")


def test_every_layer_of_the_tuner_says_what_it_reads(adapted):
    layers = [each for each in adapted.modules() if isinstance(each, ILoraLayer)]
    assert all(layer.in_features in (24, 40) for layer in layers)
