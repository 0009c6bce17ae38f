"""BERT4Rec as a transformers model; its files also run alone, inside a model repository."""

from .configuration_bert4rec import NUM_SPECIAL_IDS, BERT4RecConfig
from .modeling_bert4rec import (
    BERT4RecForMaskedItemModeling,
    BERT4RecModel,
    BERT4RecPreTrainedModel,
)
from .objectives import OBJECTIVES, SAMPLED_OBJECTIVES

__all__ = [
    "NUM_SPECIAL_IDS",
    "OBJECTIVES",
    "SAMPLED_OBJECTIVES",
    "BERT4RecConfig",
    "BERT4RecForMaskedItemModeling",
    "BERT4RecModel",
    "BERT4RecPreTrainedModel",
]
