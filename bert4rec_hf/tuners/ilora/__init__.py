"""iLoRA: low-rank experts, mixed for each history by a gate that reads it (Kong et al., 2024)."""

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from .config import ILoraConfig, ILoraPeftType
from .model import ILoraModel

__all__ = ["ILoraConfig", "ILoraModel"]

# peft.utils.register_peft_method accepts only names of its own PeftType enum.
PEFT_TYPE_TO_CONFIG_MAPPING[ILoraPeftType.ILORA] = ILoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[ILoraPeftType.ILORA] = ILoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[ILoraPeftType.ILORA] = ILoraModel.prefix
