"""PEFT's own adapters on our model: where they sit by default, and that they train."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bert4rec_hf.tuners import TUNERS


def targets_of(model):
    return {name.rpartition(".")[2] for name in model.targeted_module_names}


@pytest.mark.parametrize(
    ("tuner", "modules"),
    [
        ("lora", {"q_proj", "v_proj"}),
        ("ia3", {"k_proj", "v_proj", "down_proj"}),
        ("ilora", {"q_proj", "v_proj"}),
    ],
)
def test_an_adapter_knows_where_it_sits_and_changes_nothing_at_first(
    base, packed, tuner, modules, loss_and_gradients
):
    expected = base(**packed).loss
    model = get_peft_model(base, TUNERS[tuner]()).eval()
    assert targets_of(model) == modules
    assert len(model.targeted_module_names) == 2 * len(modules)
    actual = loss_and_gradients(model, packed)
    torch.testing.assert_close(actual.pop("loss"), expected.detach())
    assert all(tuner.replace("ia3", "ia3_") in name for name in actual)
    assert max(grad.abs().max() for grad in actual.values()) > 1e-3


def test_dora_trains_on_packed_and_padded_batches_alike(base, batches, loss_and_gradients):
    model = get_peft_model(base, LoraConfig(use_dora=True, init_lora_weights=False))
    expected = loss_and_gradients(model, batches["padded"])
    assert any("lora_magnitude_vector" in name for name in expected)
    torch.testing.assert_close(loss_and_gradients(model, batches["packed"]), expected)
