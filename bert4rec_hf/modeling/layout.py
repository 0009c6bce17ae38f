"""How histories lie in a batch: where each item stands, and what may see what."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from .attention import Packing
from .configuration_bert4rec import BERT4RecConfig


class Layout(NamedTuple):
    """How histories lie in a batch, padded or packed."""

    places: Tensor
    """(batch, length) place of each item in its history, from the oldest; -1 at padding."""

    lengths: Tensor
    """(batch, 1) or (1, tokens) items of the history that a position belongs to."""

    longest: int
    """Positions that the longest history takes."""

    mask: Tensor | None = None
    """What the attention functions of transformers take; None where nothing is padded."""

    packing: Packing | None = None


def find_items(input_ids: Tensor | None, inputs_embeds: Tensor, pad_token_id: int) -> Tensor:
    """(batch, length) attention mask: 0 where ids are padding; all 1 where there are no ids."""
    if input_ids is None:
        return torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
    return (input_ids != pad_token_id).long()


def count_positions(places: Tensor, lengths: Tensor, origin: str) -> Tensor:
    """Number the items of histories from the end that the model counts from.

    >>> count_positions(torch.tensor([0, 1, 2]), torch.tensor(3), "newest").tolist()
    [2, 1, 0]

    Args:
        places: Place of each item in its history, from the oldest; below 0 at padding.
        lengths: Items of its history, of a shape that goes with places.
        origin: "oldest" or "newest", the end that has position 0.

    Returns:
        Positions from 0, of the shape of places; 0 at padding.
    """
    positions = lengths - 1 - places if origin == "newest" else places
    return torch.where(places < 0, 0, positions)


def lay_out_padded(config: BERT4RecConfig, inputs_embeds: Tensor, attention_mask: Tensor) -> Layout:
    """Say where the items of padded histories are: (batch, length, hidden) and (batch, length)."""
    is_item = attention_mask.long()
    if config.is_causal:
        mask = create_causal_mask(config, inputs_embeds, attention_mask, past_key_values=None)
    else:
        mask = create_bidirectional_mask(config, inputs_embeds, attention_mask)
    return Layout(
        places=is_item.cumsum(1) * is_item - 1,
        lengths=is_item.sum(dim=1, keepdim=True),
        longest=inputs_embeds.shape[1],
        mask=mask,
    )


def lay_out_packed(config: BERT4RecConfig, packing: Packing) -> Layout:
    """Say where the items of packed histories are."""
    lengths, longest = packing.cu_seq_lens.diff(), packing.max_length
    if packing.prefix_ids is not None:  # several tokens have one place
        longest = min(longest, config.max_history_length)
    return Layout(
        places=packing.places.unsqueeze(0),
        lengths=lengths[packing.histories].unsqueeze(0),
        longest=longest,
        packing=packing,
    )
