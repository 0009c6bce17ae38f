"""BERT4Rec from embeddings to masked-item head, to be read from top to bottom."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_bert4rec import NUM_SPECIAL_IDS, BERT4RecConfig
from .objectives import OBJECTIVES

IGNORE_INDEX = -100
"""Label of a position that no loss looks at."""


def count_positions(attention_mask: Tensor, origin: str) -> Tensor:
    """Number the items of each history, whichever side its padding is on.

    >>> count_positions(torch.tensor([[0, 1, 1, 1]]), "newest").tolist()
    [[0, 2, 1, 0]]
    >>> count_positions(torch.tensor([[0, 1, 1, 1]]), "oldest").tolist()
    [[0, 0, 1, 2]]

    Args:
        attention_mask: (batch, length) 1 for items and masks, 0 for padding.
        origin: "oldest" or "newest", the end that has position 0.

    Returns:
        (batch, length) positions from 0; 0 at padding.
    """
    items = attention_mask.long()
    counted = items.flip(1).cumsum(1).flip(1) if origin == "newest" else items.cumsum(1)
    return (counted - 1) * items


class BERT4RecEmbeddings(nn.Module):
    """Item plus position, then the dropout (and, where norms come last, the norm) of BERT."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__()
        self.positions = nn.Embedding(config.max_history_length, config.hidden_size)
        self.norm = (
            nn.Identity()
            if config.norm_first
            else nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        )
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, item_embeddings: Tensor, position_ids: Tensor) -> Tensor:
        return self.dropout(self.norm(item_embeddings + self.positions(position_ids)))


def eager_attention_forward(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Attention as the paper writes it, the weights kept; the reference for the faster ones.

    Args:
        module: The attention layer that asks.
        query: (batch, heads, length, head_dim)
        key: (batch, heads, length, head_dim)
        value: (batch, heads, length, head_dim)
        attention_mask: (batch, 1, length, length) added to the products, or None.
        scaling: Factor of the products.
        dropout: Share of attention weights dropped.
        kwargs: What other attention functions want and this one does not.

    Returns:
        (batch, length, heads, head_dim) output and (batch, heads, length, length) weights.
    """
    products = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        products = products + attention_mask
    weights = products.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class BERT4RecAttention(nn.Module):
    """Every item looks at every other, older and newer alike."""

    is_causal = False

    def __init__(self, config: BERT4RecConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        heads = (*hidden.shape[:-1], -1, self.head_dim)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            self.q_proj(hidden).view(heads).transpose(1, 2),
            self.k_proj(hidden).view(heads).transpose(1, 2),
            self.v_proj(hidden).view(heads).transpose(1, 2),
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.o_proj(output.reshape(hidden.shape)), weights


class BERT4RecMLP(nn.Module):
    """The feed-forward network, the same at every position."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(hidden)))


class BERT4RecLayer(GradientCheckpointingLayer):
    """Attention, then a feed-forward network, each added to what it read."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__()
        self.norm_first = config.norm_first
        self.self_attn = BERT4RecAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = BERT4RecMLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None = None, **kwargs: object
    ) -> Tensor:
        if self.norm_first:
            attended, _ = self.self_attn(self.attention_norm(hidden), attention_mask, **kwargs)
            hidden = hidden + self.dropout(attended)
            return hidden + self.dropout(self.mlp(self.mlp_norm(hidden)))
        attended, _ = self.self_attn(hidden, attention_mask, **kwargs)
        hidden = self.attention_norm(hidden + self.dropout(attended))
        return self.mlp_norm(hidden + self.dropout(self.mlp(hidden)))


class BERT4RecPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of every BERT4Rec."""

    config: BERT4RecConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BERT4RecEmbeddings", "BERT4RecLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": BERT4RecLayer, "attentions": BERT4RecAttention}

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, for both Auto classes and not only that of this model."""
        module = BERT4RecPreTrainedModel.__module__.rpartition(".")[2]
        self.config.auto_map = {
            kind._auto_class: f"{module}.{kind.__name__}"
            for kind in (BERT4RecModel, BERT4RecForMaskedItemModeling)
        }
        super().save_pretrained(*args, **kwargs)


class BERT4RecModel(BERT4RecPreTrainedModel):
    """The encoder: a history of item ids in, one hidden state per item out."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.embeddings = BERT4RecEmbeddings(config)
        self.layers = nn.ModuleList(
            [BERT4RecLayer(config) for _ in range(config.num_hidden_layers)]
        )
        self.norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            if config.norm_first
            else nn.Identity()
        )
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode histories.

        Args:
            input_ids: (batch, length) ids, padded on either side.
            attention_mask: (batch, length) 1 for items and masks, 0 for padding; read off the
                padding ids when None.
            position_ids: (batch, length) counted from the configured end when None.
            inputs_embeds: (batch, length, hidden) in place of input_ids.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            last_hidden_state: (batch, length, hidden).

        Raises:
            ValueError: Neither or both of input_ids and inputs_embeds are given, or a history is
                longer than the positions of the model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if attention_mask is None:
            attention_mask = (
                torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
                if input_ids is None
                else (input_ids != self.config.pad_token_id).long()
            )
        if position_ids is None:
            position_ids = count_positions(attention_mask, self.config.position_origin)
        if inputs_embeds.shape[1] > self.config.max_history_length:
            raise ValueError(
                f"the input has {inputs_embeds.shape[1]} positions and the model reads at most "
                f"max_history_length = {self.config.max_history_length}; keep the newest items"
            )
        hidden = self.embeddings(inputs_embeds, position_ids)
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask
        )
        for layer in self.layers:
            hidden = layer(hidden, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.norm(hidden))


class BERT4RecTransform(nn.Module):
    """The paper's output network between encoder and scores."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(hidden)))


class BERT4RecForMaskedItemModeling(BERT4RecPreTrainedModel):
    """The encoder and the head that scores the catalog for each masked item."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: BERT4RecConfig):
        super().__init__(config)
        if config.objective not in OBJECTIVES:
            raise ValueError(
                f"objective must be one of {', '.join(OBJECTIVES)}, got {config.objective!r}"
            )
        self.model = BERT4RecModel(config)
        self.transform = BERT4RecTransform(config) if config.output_transform else nn.Identity()
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
        self.post_init()

    @can_return_tuple
    def forward(  # noqa: PLR0913 - the names of transformers, and users expect all of them
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Score the catalog at every position, or learn at the masked ones.

        With labels there are no logits: training needs scores at masked positions only, and the
        objective makes and consumes them. Without labels, padding and mask score -inf.

        Args:
            input_ids: (batch, length) ids.
            attention_mask: (batch, length) 1 for items and masks, 0 for padding.
            position_ids: (batch, length)
            inputs_embeds: (batch, length, hidden) in place of input_ids.
            labels: (batch, length) ids of masked items, -100 elsewhere.
            logits_to_keep: Score only so many last positions; 0 scores all.
            num_items_in_batch: Masked items that the loss is a mean over, where a step has several
                forward passes; those of this pass when None.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            loss: scalar, float32, with labels; logits: (batch, length, vocab) without.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        loss, logits = None, None
        if labels is None:
            states = self.transform(outputs.last_hidden_state[:, -logits_to_keep:])
            logits = self.lm_head(states)
            logits[..., :NUM_SPECIAL_IDS] = -torch.inf
        else:
            loss = self.masked_item_loss(outputs.last_hidden_state, labels, num_items_in_batch)
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def masked_item_loss(
        self, hidden: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """Mean of the objective over masked items.

        Args:
            hidden: (batch, length, hidden) output of the encoder.
            labels: (batch, length) ids of masked items, -100 elsewhere.
            num_items_in_batch: What the sum is divided by; the masked items when None.

        Returns:
            Scalar, float32.
        """
        masked = labels.flatten().ne(IGNORE_INDEX).nonzero().squeeze(1)  # (masked,)
        targets = labels.flatten()[masked] - NUM_SPECIAL_IDS
        bias = self.lm_head.bias
        total = OBJECTIVES[self.config.objective](
            self.transform(hidden.flatten(0, 1)[masked]),
            targets,
            self.lm_head.weight[NUM_SPECIAL_IDS:],
            None if bias is None else bias[NUM_SPECIAL_IDS:],
        )
        return total / (max(len(targets), 1) if num_items_in_batch is None else num_items_in_batch)

    def next_item_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """State of the mask behind each history; its product with an item's row is the score.

        Args:
            input_ids: (batch, length) ids, padded on the left, the mask last.
            attention_mask: (batch, length) 1 for items and masks, 0 for padding.

        Returns:
            (batch, hidden)
        """
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.transform(hidden[:, -1])


BERT4RecModel.register_for_auto_class("AutoModel")
BERT4RecForMaskedItemModeling.register_for_auto_class("AutoModelForMaskedLM")
AutoModel.register(BERT4RecConfig, BERT4RecModel, exist_ok=True)
AutoModelForMaskedLM.register(BERT4RecConfig, BERT4RecForMaskedItemModeling, exist_ok=True)
