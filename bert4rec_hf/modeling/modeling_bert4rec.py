"""BERT4Rec from embeddings to masked-item head, to be read from top to bottom."""

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.initialization import constant_, no_init_weights, zeros_
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .adapter_targets import register_targets
from .attention import Packing, describe_packing, packed_attention
from .configuration_bert4rec import NUM_SPECIAL_IDS, BERT4RecConfig
from .layout import count_positions, find_items, lay_out_packed, lay_out_padded
from .neighbors import ItemNeighbors, NeighborShares, newest_items
from .objectives import (
    OBJECTIVES,
    SAMPLED_OBJECTIVES,
    ItemTable,
    Negatives,
    SharedTable,
    SoftTargets,
    build_objective,
    look_up,
    soften,
)
from .publishing import (
    complete_folder,
    copy_handler,
    keep_written_card,
    name_in_config,
    name_pipelines,
)
from .repository import open_repository, push_folder

logger = logging.get_logger(__name__)

SPECIAL_MARGIN = 20.0
"""Padding and mask are exp(-20) times as likely as the least likely item: 2e-9 times."""

IGNORE_INDEX = -100
"""Label of a position that no loss looks at."""


class Dropout(nn.Dropout):
    """Dropout as ever; on CPU from 16 random bits per number, where torch's own is slow.

    The share that is dropped is p to the nearest 1/65,536, and what is kept is scaled by just that
    share.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        if not (self.training and self.p and hidden.device.type == "cpu"):
            return super().forward(hidden)
        words = torch.randint(-(2**63), 2**63 - 1, ((hidden.numel() + 3) // 4,))
        bits = words.view(torch.int16)[: hidden.numel()].view(hidden.shape)
        dropped = round(self.p * 2**16)
        kept = (bits >= dropped - 2**15).to(hidden.dtype)
        return hidden * kept.mul_(2**16 / (2**16 - dropped))


class ItemEmbedding(nn.Embedding):
    """The item table; its gradient can be row-sparse, where the optimizer takes such."""

    has_row_gradients = False

    def forward(self, input_ids: Tensor) -> Tensor:
        takes_rows = self.has_row_gradients
        return look_up(input_ids, self.weight, self.padding_idx, takes_rows=takes_rows)


class BERT4RecEmbeddings(nn.Module):
    """Item plus learned position, dropout, and the norm of BERT where norms come last."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__()
        self.positions = (
            nn.Embedding(config.max_history_length, config.hidden_size)
            if config.position_type == "learned"
            else None
        )
        self.norm = (
            nn.Identity()
            if config.norm_first
            else nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        )
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, item_embeddings: Tensor, position_ids: Tensor) -> Tensor:
        if self.positions is not None:
            item_embeddings = item_embeddings + self.positions(position_ids)
        return self.dropout(self.norm(item_embeddings))


def rotary_angles(places: Tensor, config: BERT4RecConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles of rotary positions, a pair of numbers each.

    Args:
        places: (batch, length) place of each item in its history.
        config: Tells the size of a head and the base.

    Returns:
        Two of (batch, length, 1, head_dim / 2), float32.
    """
    head_dim = config.hidden_size // config.num_attention_heads
    pairs = torch.arange(head_dim // 2, device=places.device)
    angles = places.unsqueeze(-1) * config.rotary_base ** (-2 * pairs / head_dim)
    return angles.cos().unsqueeze(2), angles.sin().unsqueeze(2)


def apply_rotary(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate queries or keys, (batch, length, heads, head_dim), by the angles of their places."""
    cosine, sine = (each.to(heads.dtype) for each in rotary)
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


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


def select(hidden: Tensor, keep: Tensor | None) -> Tensor:
    """Those positions that are asked for, of all histories.

    Args:
        hidden: (batch, length, hidden)
        keep: (kept,) positions in the batch, counted through its rows; None keeps all.

    Returns:
        (1, kept, hidden), or what came in.
    """
    return hidden if keep is None else hidden.flatten(0, 1)[keep].unsqueeze(0)


class BERT4RecAttention(nn.Module):
    """Every item looks at every other, older and newer alike; in a causal model, at older ones."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__()
        self.config = config
        self.is_causal = config.is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        packing: Packing | None = None,
        keep: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        heads = (*hidden.shape[:-1], -1, self.head_dim)
        query, key, value = (
            project(hidden).view(heads) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        dropout = self.config.attention_dropout if self.training else 0.0
        if packing is not None:
            output = packed_attention(
                *(query[0], key[0], value[0], packing, self.scaling, dropout),
                is_causal=self.is_causal,
            )
            weights = None
        else:
            attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
            output, weights = attend(
                self,
                *(each.transpose(1, 2) for each in (query, key, value)),
                attention_mask,
                scaling=self.scaling,
                dropout=dropout,
                **kwargs,
            )
        return self.o_proj(select(output.reshape(hidden.shape), keep)), weights


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
        self.dropout = Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None = None,
        keep: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        read = self.attention_norm(hidden) if self.norm_first else hidden
        attended, _ = self.self_attn(read, attention_mask, keep=keep, **kwargs)
        hidden = select(hidden, keep) + self.dropout(attended)
        if self.norm_first:
            return hidden + self.dropout(self.mlp(self.mlp_norm(hidden)))
        hidden = self.attention_norm(hidden)
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

    def save_pretrained(
        self,
        save_directory: str | Path,
        *args: Any,
        push_to_hub: bool = False,
        repo_id: str = "",
        **kwargs: Any,
    ) -> None:
        """Save as transformers does, for both Auto classes and not only that of this model."""
        self.config.auto_map = {
            kind._auto_class: name_in_config(kind)
            for kind in (BERT4RecModel, BERT4RecForMaskedItemModeling)
        }
        name_pipelines(self.config)
        super().save_pretrained(save_directory, *args, **kwargs)
        copy_handler(Path(save_directory))
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).name, token=kwargs.get("token"))

    def push_to_hub(  # noqa: PLR0913 - the signature is transformers'
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
    ) -> str:
        """Upload the model with its code, and what lies beside the weights it was loaded from.

        Vocabulary, titles and card come along; the card with its figures only if the weights are
        still those that were measured. A card that somebody wrote into the repository stays.

        Args:
            repo_id: `user/name`, or `name` for one of one's own; made where there is none.
            commit_message: Of the one commit.
            private: Whether a repository that is made now is.
            token: The one of `hf auth login` when None.
            revision: The branch, made where there is none; `main` when None.
            create_pr: Ask for the change to be merged and do not make it.
            max_shard_size: Larger weights are written as several files.

        Returns:
            Address of the commit.
        """
        with TemporaryDirectory() as name:
            folder = Path(name)
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            for missing in complete_folder(folder, self.name_or_path, self.config):
                logger.warning(
                    f"{repo_id} is pushed without {missing}, as the model was not loaded from a "
                    "folder that has it; push it too: tokenizer.push_to_hub(…)"
                )
            repo_id = open_repository(repo_id, private=private, revision=revision, token=token)
            keep_written_card(folder, repo_id, token)
            return push_folder(
                folder,
                repo_id,
                revision=revision,
                token=token,
                message=commit_message or "Upload model",
                create_pr=create_pr,
            )


class BERT4RecModel(BERT4RecPreTrainedModel):
    """The encoder: a history of item ids in, one hidden state per item out."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__(config)
        self.embed_tokens = ItemEmbedding(
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
    def forward(  # noqa: PLR0913 - the names of transformers, and users expect all of them
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        max_length_q: int | None = None,
        prefix_ids: Tensor | None = None,
        is_query: Tensor | None = None,
        keep: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode histories, padded to a rectangle or packed end to end in one row.

        Args:
            input_ids: (batch, length) ids, padded on either side; or (1, tokens), packed.
            attention_mask: (batch, length) 1 for items and masks, 0 for padding; read off the
                padding ids when None. Packed histories have none.
            position_ids: (batch, length) or (1, tokens) place of each item in its history, from
                the oldest; counted when None. `position_origin` is applied to it.
            inputs_embeds: (batch, length, hidden) or (1, tokens, hidden) in place of input_ids.
            cu_seq_lens_q: (histories + 1,) cumulative lengths of packed histories, from 0 to
                tokens; its presence says that the histories are packed.
            max_length_q: Items of the longest packed history; looked up when None.
            prefix_ids: (1, tokens) where packed histories are read as several of their prefixes at
                once: the shortest prefix that has the token, see `sees`. All see all when None.
                Needs position_ids, as several tokens have one place.
            is_query: (1, tokens) True at the masks that ask for the item after a prefix.
            keep: (kept,) positions whose states are wanted, counted through the rows of the
                batch; the last layer computes no others. All when None.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            last_hidden_state: (batch, length, hidden), or (1, kept, hidden).

        Raises:
            ValueError: Neither or both of input_ids and inputs_embeds are given; a history is
                longer than the positions of the model; or it cannot read histories as several of
                their prefixes at once.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if prefix_ids is not None:
            self._check_prefixes(is_packed=cu_seq_lens_q is not None)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if cu_seq_lens_q is None:
            if attention_mask is None:
                attention_mask = find_items(input_ids, inputs_embeds, self.config.pad_token_id)
            layout = lay_out_padded(self.config, inputs_embeds, attention_mask)
        else:
            tokens = inputs_embeds.shape[1]
            packing = describe_packing(cu_seq_lens_q, max_length_q, tokens, prefix_ids, is_query)
            layout = lay_out_packed(self.config, packing)
        if layout.longest > self.config.max_history_length:
            raise ValueError(
                f"the input has {layout.longest} positions and the model reads at most "
                f"max_history_length = {self.config.max_history_length}; keep the newest items"
            )
        places = layout.places if position_ids is None else position_ids
        positions = count_positions(places, layout.lengths, self.config.position_origin)
        hidden = self.embeddings(inputs_embeds, positions)
        rotary = (
            rotary_angles(places, self.config) if self.config.position_type == "rotary" else None
        )
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            hidden = layer(
                hidden,
                layout.mask,
                packing=layout.packing,
                rotary=rotary,
                keep=keep if is_last else None,
                **kwargs,
            )
        return BaseModelOutput(last_hidden_state=self.norm(hidden))

    def _check_prefixes(self, is_packed: bool) -> None:
        if not is_packed:
            raise ValueError(
                "prefix_ids go with packed histories, got padded ones, whose items would all see "
                "each other; give cu_seq_lens_q"
            )
        if self.config.position_type == "learned" and self.config.position_origin == "newest":
            raise ValueError(
                "several prefixes of a history have several newest items, so that an item has no "
                "one position counted from there, got position_origin='newest'; use "
                "position_origin='oldest' or position_type='rotary'"
            )


def put_special_last(logits: Tensor) -> Tensor:
    """Let padding and mask score less than any item, by so much that it never matters.

    Args:
        logits: (…, vocab)

    Returns:
        The same, changed in place.
    """
    lowest = logits.detach()[..., NUM_SPECIAL_IDS:].amin(dim=-1, keepdim=True)
    logits[..., :NUM_SPECIAL_IDS] = lowest - SPECIAL_MARGIN
    return logits


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

    has_row_gradients: bool
    """Whether a sampled objective gives the table a row-sparse gradient; see use_row_gradients."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__(config)
        if config.objective not in OBJECTIVES:
            raise ValueError(
                f"objective must be one of {', '.join(OBJECTIVES)}, got {config.objective!r}"
            )
        with no_init_weights():  # post_init draws all once, and memory is taken as it is drawn
            self.model = BERT4RecModel(config)
            self.transform = BERT4RecTransform(config) if config.output_transform else nn.Identity()
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
            self.neighbors = ItemNeighbors(config) if config.num_neighbors else None
        self.has_row_gradients = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Draw as transformers does, but no table for a tied head, which would be a second one.

        Neighbors are none, and what they weigh begins as all items do whose score is 0.
        """
        if isinstance(module, ItemNeighbors):
            for tensor in (module.ids, module.similarities, module.scales, module.gate.weight):
                zeros_(tensor)
            constant_(module.gate.bias, math.log(self.config.num_items))
        elif module is not self.lm_head or not self.config.tie_word_embeddings:
            super()._init_weights(module)
        elif module.bias is not None:
            zeros_(module.bias)

    @can_return_tuple
    def forward(  # noqa: PLR0913 - the names of transformers, and users expect all of them
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        negatives: Tensor | None = None,
        negative_log_counts: Tensor | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        soft_target_ids: Tensor | None = None,
        soft_target_weights: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Score the catalog at every position, or learn at the masked ones.

        With labels there are no logits in training, which needs scores at masked positions only,
        and the objective makes and consumes them; the last layer computes no other states, either.
        In evaluation the logits are those of the masked positions, in the order of the labels.
        Padding and mask score less than any item, and still so much that log-probabilities are
        finite, for label smoothing and distillation.

        Args:
            input_ids: (batch, length) ids, padded; or (1, tokens), packed.
            attention_mask: (batch, length) 1 for items and masks, 0 for padding.
            position_ids: (batch, length) or (1, tokens), see BERT4RecModel.
            inputs_embeds: (batch, length, hidden) in place of input_ids.
            labels: (batch, length) or (1, tokens) ids of masked items, -100 elsewhere.
            masked_positions: (masked,) where the labels are, counted through the rows of the
                batch; filled up with positions of label -100 where shapes are to stay put. Looked
                up when None, which breaks the graph of a compiler.
            negatives: (negatives,) ids drawn for a sampled objective.
            negative_log_counts: (negatives,) logarithm of how often each was expected.
            logits_to_keep: Score only so many last positions; 0 scores all.
            num_items_in_batch: Masked items that the loss is a mean over, where a step has several
                forward passes; those of this pass when None.
            soft_target_ids: (masked, kept) items that teachers expect at masked positions.
            soft_target_weights: (masked, kept) their share in what is learned; the masked item has
                the rest of 1.
            kwargs: `cu_seq_lens_q` and `max_length_q` of packed histories, see BERT4RecModel;
                `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            loss: scalar, float32, with labels; logits: (batch, length, vocab) without labels,
            (masked, vocab) with labels in evaluation, None in training.

        Raises:
            ValueError: The objective needs negatives and there are none, or cannot be softened.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            **kwargs,
        }
        loss, logits = None, None
        if labels is None:
            outputs = self.model(**inputs)
            states = self.transform(outputs.last_hidden_state[:, -logits_to_keep:])
            logits = nn.functional.linear(states, *self.read_head())
            if self.neighbors is not None:
                logits = self._mix_neighbors(logits, states, inputs)
            logits = put_special_last(logits)
        else:
            labels = labels.flatten()
            if masked_positions is None:
                masked_positions = labels.ne(IGNORE_INDEX).nonzero().squeeze(1)
            recent = self._newest_items(masked_positions, **inputs)
            items = self._share_table(inputs)
            outputs = self.model(**inputs, keep=masked_positions)
            drawn = None if negatives is None else Negatives(negatives, negative_log_counts)
            has_soft = soft_target_ids is not None
            soft = SoftTargets(soft_target_ids, soft_target_weights) if has_soft else None
            loss = self.masked_item_loss(
                outputs.last_hidden_state[0],
                labels[masked_positions],
                items,
                drawn,
                num_items_in_batch,
                recent,
                soft,
            )
            if not self.training:
                is_masked = labels[masked_positions] != IGNORE_INDEX
                logits = self.score_masked(outputs.last_hidden_state[0], recent)[is_masked]
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def encode_masked(
        self, masked_positions: Tensor, **inputs: Tensor | int
    ) -> tuple[Tensor, Tensor | None]:
        """Encode histories, to score the catalog at masked positions with score_masked.

        Args:
            masked_positions: (masked,) counted through the rows of the batch.
            inputs: What forward takes besides, but labels and negatives.

        Returns:
            (masked, hidden) output of the encoder, and (masked, recent) ids of the newest items
            before each position, or None where no neighbors are mixed in.
        """
        recent = self._newest_items(masked_positions, **inputs)
        return self.model(**inputs, keep=masked_positions).last_hidden_state[0], recent

    def score_masked(
        self, hidden: Tensor, recent: Tensor | None, targets: Tensor | None = None
    ) -> Tensor:
        """Score the catalog at masked positions.

        Args:
            hidden: (masked, hidden) output of the encoder.
            recent: (masked, recent) ids, as encode_masked gives them.
            targets: (masked,) ids of the masked items where their histories were counted for the
                neighbors, see ItemNeighbors.read.

        Returns:
            (masked, vocab)
        """
        states = self.transform(hidden)
        logits = nn.functional.linear(states, *self.read_head())
        if self.neighbors is not None:
            logits = self.neighbors.read(recent, states, targets).mix(logits)
        return put_special_last(logits)

    def use_row_gradients(self, takes_rows: bool = True) -> None:
        """Give the item table a row-sparse gradient, for an optimizer that takes such, or not."""
        self.has_row_gradients = takes_rows
        # For a table of its own; the head looks up from a shared one.
        is_shared = self.config.tie_word_embeddings
        self.model.embed_tokens.has_row_gradients = takes_rows and not is_shared

    def read_head(self) -> tuple[Tensor, Tensor | None]:
        """What items are scored by, also where a tuner has put another module in the head's place.

        Returns:
            (vocab, hidden) weight and (vocab,) bias, or None.

        Raises:
            ValueError: The head has an adapter, which is not in its weight.
        """
        head = self.lm_head
        if hasattr(head, "base_layer"):
            raise ValueError(
                "lm_head has an adapter, and items are scored by its weight alone; leave it out "
                "of target_modules, and train it by modules_to_save or trainable_token_indices"
            )
        bias = getattr(head, "bias", None)
        if bias is None and self.config.output_bias:
            # PEFT's modules for some rows, and for tied ones, know of no bias.
            bias = head.original_module.bias
        return head.weight, bias

    def _share_table(self, inputs: dict[str, Any]) -> ItemTable:
        """What the head scores by; looks the inputs up as well if they are rows of that table."""
        (weight, bias), embedding = self.read_head(), self.model.embed_tokens
        ids, pad = inputs["input_ids"], self.config.pad_token_id
        # A tuner may have put another module in its place, which is then asked as usual.
        is_shared = type(embedding) is ItemEmbedding and embedding.weight is weight
        if not (is_shared and weight.requires_grad and ids is not None):
            return ItemTable(weight, bias, self.has_row_gradients)
        weight, rows = SharedTable.apply(weight, ids, pad, self.has_row_gradients)
        inputs["input_ids"], inputs["inputs_embeds"] = None, rows
        if inputs["attention_mask"] is None and "cu_seq_lens_q" not in inputs:
            inputs["attention_mask"] = find_items(ids, rows, pad)
        return ItemTable(weight, bias, takes_rows=True)

    def masked_item_loss(  # noqa: PLR0913 - all that a loss can depend on
        self,
        hidden: Tensor,
        targets: Tensor,
        items: ItemTable,
        negatives: Negatives | None,
        num_items_in_batch: Tensor | int | None,
        recent: Tensor | None = None,
        soft: SoftTargets | None = None,
    ) -> Tensor:
        """Mean of the objective over masked items.

        Args:
            hidden: (masked, hidden) output of the encoder.
            targets: (masked,) ids of the masked items; -100 where there is none.
            items: What they are scored by.
            negatives: Drawn for a sampled objective.
            num_items_in_batch: What the sum is divided by; the masked items when None.
            recent: (masked, recent) ids of the newest items before each, the newest first, where
                neighbors are mixed in.
            soft: What teachers expect at masked positions.

        Returns:
            Scalar, float32.

        Raises:
            ValueError: The objective needs negatives and there are none, or cannot be softened.
        """
        if negatives is None and self.config.objective in SAMPLED_OBJECTIVES:
            raise ValueError(
                f"objective {self.config.objective} needs negatives and negative_log_counts in the "
                "batch; give MaskedItemCollator its `negatives`, or use full_softmax"
            )
        is_plain = self.config.objective == "full_softmax" and self.neighbors is None
        if soft is not None and not is_plain:
            raise ValueError(
                "soft targets go with the objective full_softmax and without neighbors, got "
                f"{self.config.objective} and num_neighbors = {self.config.num_neighbors}; change "
                "these, or leave soft_target_ids out"
            )
        weights = targets.ne(IGNORE_INDEX).float()
        total = weights.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        states = self.transform(hidden)
        neighbors = None
        if self.neighbors is not None:
            looked_up = negatives.ids if self.config.objective == "gbce" else None
            neighbors = self.neighbors.of_targets(recent, states, targets.clamp(min=0), looked_up)
        objective = build_objective(self.config)
        loss = objective(states, targets, weights / total, items, negatives, neighbors)
        if soft is not None:
            loss = loss + soften(states, targets, weights / total, items, soft)
        return loss

    def next_item_states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **packing: Tensor | int
    ) -> Tensor:
        """State of the mask after each history; its product with an item's row is the score.

        In a causal model, the state of the newest item.

        Args:
            input_ids: (batch, length) ids, padded on the left, the mask last; or (1, tokens),
                packed, a mask at the end of each history.
            attention_mask: (batch, length) 1 for items and masks, 0 for padding.
            packing: `cu_seq_lens_q` and `max_length_q` of packed histories.

        Returns:
            (batch, hidden)
        """
        last = self._last_positions(input_ids, **packing)
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, keep=last, **packing
        )
        return self.transform(outputs.last_hidden_state[0])

    def next_item_neighbors(
        self,
        states: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **packing: Tensor | int,
    ) -> NeighborShares | None:
        """What is to be mixed into the scores by `next_item_states`; None if there is nothing.

        Args:
            states: (batch, hidden) as next_item_states gave them.
            input_ids: As next_item_states took them, and so on.
            attention_mask: (batch, length)
            packing: `cu_seq_lens_q` and `max_length_q` of packed histories.
        """
        if self.neighbors is None:
            return None
        last = self._last_positions(input_ids, **packing)
        recent = self._newest_items(last, input_ids, attention_mask, **packing)
        return self.neighbors.read(recent, states)

    def _last_positions(self, input_ids: Tensor, **packing: Tensor | int) -> Tensor:
        """(batch,) where the next item is asked for, counted through the rows of the batch."""
        if "cu_seq_lens_q" in packing:
            last = packing["cu_seq_lens_q"][1:] - 1
            lengths = packing["cu_seq_lens_q"].diff()
        else:
            last = torch.arange(1, input_ids.shape[0] + 1, device=input_ids.device)
            last = last * input_ids.shape[1] - 1
            lengths = input_ids.ne(self.config.pad_token_id).sum(dim=1)
        if self.config.is_causal:
            last = last - lengths.gt(1).long()  # of a history without items, the mask after all
        return last

    def _newest_items(
        self,
        positions: Tensor,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor | None:
        """(asked, recent) items whose neighbors are mixed in at positions; None if there are none.

        Raises:
            ValueError: There are no ids to look up.
        """
        if self.neighbors is None:
            return None
        if input_ids is None:
            raise ValueError(
                "the model mixes in item neighbors (num_neighbors = "
                f"{self.config.num_neighbors}), which it looks up by input_ids; give input_ids "
                "and not inputs_embeds"
            )
        is_item = input_ids >= NUM_SPECIAL_IDS
        if attention_mask is not None:
            is_item = is_item & attention_mask.bool()
        if cu_seq_lens_q is None:
            firsts = torch.arange(len(input_ids), device=input_ids.device) * input_ids.shape[1]
            is_before = firsts <= positions.unsqueeze(1)
            starts = torch.where(is_before, firsts, 0).amax(dim=1)
        else:
            histories = torch.searchsorted(cu_seq_lens_q[1:], positions, right=True)
            starts = cu_seq_lens_q[histories]
        count = self.config.num_recent_items
        return newest_items(input_ids, is_item, starts, positions, count)

    def _mix_neighbors(self, logits: Tensor, states: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Mix neighbors into the (batch, kept, vocab) scores at the last positions of each row."""
        ids, (batch, kept) = inputs["input_ids"], logits.shape[:2]
        length = inputs["inputs_embeds"].shape[1] if ids is None else ids.shape[1]
        ends = torch.arange(1, batch + 1, device=logits.device) * length
        positions = ends.unsqueeze(1) - torch.arange(kept, 0, -1, device=logits.device)
        recent = self._newest_items(positions.flatten(), **inputs)
        neighbors = self.neighbors.read(recent, states.flatten(0, 1))
        return neighbors.mix(logits.flatten(0, 1)).view_as(logits)

    def add_neighbors(self, num_neighbors: int) -> None:
        """Make room for the neighbors of items in a model that was trained without them.

        Args:
            num_neighbors: Of each item; `neighbors.set_table` takes them.
        """
        self.config.num_neighbors = num_neighbors
        weight = self.lm_head.weight
        self.neighbors = ItemNeighbors(self.config).to(weight.device, weight.dtype)
        self._init_weights(self.neighbors)

    def remove_neighbors(self) -> None:
        """Score by the network alone."""
        self.config.num_neighbors = 0
        self.neighbors = None

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize as transformers does; new items have no neighbors until `neighbors` is set."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.neighbors is not None:
            self.neighbors.resize(self.config.vocab_size)
        return embeddings


register_targets()
BERT4RecModel.register_for_auto_class("AutoModel")
BERT4RecForMaskedItemModeling.register_for_auto_class("AutoModelForMaskedLM")
