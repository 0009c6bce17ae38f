"""Adapters for a frozen model: those of PEFT, and iLoRA."""

from peft import IA3Config, LoraConfig, PeftConfig

from .ilora import ILoraConfig, ILoraModel

__all__ = ["TUNERS", "ILoraConfig", "ILoraModel"]

TUNERS: dict[str, type[PeftConfig]] = {
    "lora": LoraConfig,  # DoRA is its `use_dora`
    "ia3": IA3Config,
    "ilora": ILoraConfig,
}
