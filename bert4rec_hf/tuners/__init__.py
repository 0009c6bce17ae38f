"""Adapters for a frozen model: those of PEFT, taught where they sit in a BERT4Rec, and iLoRA."""

from peft import IA3Config, LoraConfig, PeftConfig
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)

from .ilora import ILoraConfig, ILoraModel

__all__ = ["TUNERS", "ILoraConfig", "ILoraModel"]

TUNERS: dict[str, type[PeftConfig]] = {
    "lora": LoraConfig,  # DoRA is its `use_dora`
    "ia3": IA3Config,
    "ilora": ILoraConfig,
}

# What an adapter is put on where its config names no modules, as PEFT has it for other encoders.
TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["bert4rec"] = ["q_proj", "v_proj"]
TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING["bert4rec"] = ["k_proj", "v_proj", "down_proj"]
TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING["bert4rec"] = ["down_proj"]
