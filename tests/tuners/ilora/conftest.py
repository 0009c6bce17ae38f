import pytest
import torch
from peft import get_peft_model

from bert4rec_hf.tuners import ILoraConfig

WHERE = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="session")
def adapt():
    """Put an iLoRA adapter on a base model that differs from it, its gates far from uniform."""

    def put(base, adapter_name="default", **settings):
        torch.manual_seed(1)
        shape = {
            "r": 6,
            "lora_alpha": 5,
            "num_experts": 3,
            "lora_dropout": 0.0,
            "target_modules": WHERE,
            "init_weights": False,
        }
        model = get_peft_model(base, ILoraConfig(**shape | settings), adapter_name)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "ilora_gate" in name:
                    weight.normal_()
        return model.eval()

    return put


@pytest.fixture
def adapted(base, adapt):
    return adapt(base)
