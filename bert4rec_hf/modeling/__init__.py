"""BERT4Rec as a transformers model; its files also run alone, inside a model repository."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from .configuration_bert4rec import NUM_SPECIAL_IDS, BERT4RecConfig
from .modeling_bert4rec import (
    BERT4RecForMaskedItemModeling,
    BERT4RecModel,
    BERT4RecPreTrainedModel,
)
from .objectives import OBJECTIVES, SAMPLED_OBJECTIVES
from .pipeline_bert4rec import NextItemRecommendationPipeline
from .tokenization_bert4rec import BERT4RecTokenizer
from .trainer_card import describe_trained  # noqa: F401 - it makes itself known to Trainer

__all__ = [
    "NUM_SPECIAL_IDS",
    "OBJECTIVES",
    "SAMPLED_OBJECTIVES",
    "BERT4RecConfig",
    "BERT4RecForMaskedItemModeling",
    "BERT4RecModel",
    "BERT4RecPreTrainedModel",
    "BERT4RecTokenizer",
    "NextItemRecommendationPipeline",
]

# Here and not in the files that are shipped: the first repository loaded would register its code
# for all later ones of the process.
AutoConfig.register(BERT4RecConfig.model_type, BERT4RecConfig, exist_ok=True)
AutoModel.register(BERT4RecConfig, BERT4RecModel, exist_ok=True)
AutoModelForMaskedLM.register(BERT4RecConfig, BERT4RecForMaskedItemModeling, exist_ok=True)
AutoTokenizer.register(BERT4RecConfig, fast_tokenizer_class=BERT4RecTokenizer, exist_ok=True)
