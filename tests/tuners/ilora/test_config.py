import json

import pytest
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

from bert4rec_hf.tuners import TUNERS, ILoraConfig, ILoraModel


def test_defaults_are_those_of_the_paper():
    config = ILoraConfig()
    assert (config.r, config.lora_alpha, config.num_experts, config.lora_dropout) == (8, 32, 4, 0.1)
    assert (config.gate, config.expert_rank) == ("instance", 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 3}, "r must be a multiple of num_experts, .* got 8 and 3"),
        ({"rank_pattern": {"q_proj": 6}}, "in rank_pattern too, .* got 6 and 4"),
        ({"r": 0}, "r must be a multiple of num_experts, .* got 0 and 4"),
        ({"num_experts": 0}, "num_experts must be at least 1, got 0"),
        ({"lora_alpha": 0}, "lora_alpha must be positive, got 0"),
        ({"alpha_pattern": {"q_proj": -2}}, "lora_alpha must be positive, got -2"),
        ({"lora_dropout": 1}, r"lora_dropout must be in \[0, 1\), got 1"),
        ({"gate": "soft"}, "gate must be one of instance, constant, uniform, got 'soft'"),
        ({"bias": "lora_only"}, "bias must be one of none, all, ilora_only, got 'lora_only'"),
        (
            {"layers_to_transform": [1], "target_modules": ".*q_proj"},
            r"as a list, got the expression '\.\*q_proj'",
        ),
        ({"layers_pattern": "layers"}, "layers_pattern 'layers' goes with layers_to_transform"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ILoraConfig(**settings)


@pytest.mark.parametrize(
    "option",
    ["use_dora", "use_rslora", "fan_in_fan_out", "loftq_config", "target_parameters", "lora_bias"],
)
def test_an_option_of_lora_that_ilora_has_not_is_refused(option):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        ILoraConfig(**{option: True})


def test_the_folder_of_an_adapter_says_what_it_is(tmp_path):
    config = ILoraConfig(r=6, num_experts=3, gate="constant", target_modules=["v_proj"])
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "ILORA"
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is ILoraConfig
    assert loaded == config


def test_peft_finds_the_tuner_by_its_name():
    assert PEFT_TYPE_TO_TUNER_MAPPING["ILORA"] is ILoraModel
    assert TUNERS["ilora"] is ILoraConfig
