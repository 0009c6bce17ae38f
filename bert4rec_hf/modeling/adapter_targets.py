"""Where PEFT puts an adapter whose config names no modules, as it has it for other encoders."""

from .configuration_bert4rec import BERT4RecConfig

ATTENTION = ["q_proj", "v_proj"]
OTHERS = {
    "IA3_TARGET": ["k_proj", "v_proj", "down_proj"],
    "IA3_FEEDFORWARD": ["down_proj"],
    "LNTUNING_TARGET": ["attention_norm", "mlp_norm"],
    "BEFT_TARGET": ["v_proj"],
}
PREFIX, SUFFIX = "TRANSFORMERS_MODELS_TO_", "_MODULES_MAPPING"


def register_targets() -> None:
    """Enter BERT4Rec into each table of PEFT, from types of models to names of their modules."""
    try:
        import peft.utils
    except ImportError:  # a model is loaded without PEFT, too
        return
    for name, table in vars(peft.utils).items():
        if name.startswith(PREFIX) and name.endswith(SUFFIX):
            tuner = name.removeprefix(PREFIX).removesuffix(SUFFIX)
            table.setdefault(BERT4RecConfig.model_type, list(OTHERS.get(tuner, ATTENTION)))
