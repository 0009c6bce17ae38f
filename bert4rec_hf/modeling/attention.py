"""Attention within packed histories: every item sees the items of its own history, and no padding.

Three ways, one result. On CUDA `varlen_attn` takes the packed row as it is. On CPU, histories of
equal length that lie side by side are one call of the fused kernel; the collator sorts them so.
Where neither can be used (attention dropout, float32 or older devices on CUDA, blocks on CUDA), the
histories are laid out in padded rows for attention alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor, library
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

# A copy of this file inside a model repository must not redefine the operators of another.
_NAMESPACE = __name__.replace(".", "_").replace("-", "_")

_flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Packing(NamedTuple):
    """Where each history lies in a packed row."""

    cu_seq_lens: Tensor
    """(histories + 1,) int32; history i has the items from cu_seq_lens[i] to cu_seq_lens[i + 1]."""

    max_length: int
    """Items of the longest history."""

    histories: Tensor
    """(tokens,) the history that an item belongs to."""

    places: Tensor
    """(tokens,) place of a token in its history, from the first."""

    blocks: Tensor | None = None
    """(tokens,) see `sees_by_block`; None where all see all."""


def sees_by_block(blocks: Tensor) -> Tensor:
    """Which tokens of a history see which, where it is read as several of its beginnings at once.

    A token sees those whose block is not after its own. Masks that nobody but themselves sees, of
    block b, have the number ~b = -1 - b.

    >>> sees_by_block(torch.tensor([0, 0, ~0, 1])).int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]

    Args:
        blocks: (…, length)

    Returns:
        (…, length, length) True where the row's token sees the column's.
    """
    own = torch.where(blocks < 0, ~blocks, blocks).unsqueeze(-1)
    others = blocks.unsqueeze(-2)
    itself = torch.eye(blocks.shape[-1], dtype=torch.bool, device=blocks.device)
    return (others >= 0) & (others <= own) | itself


def describe_packing(
    cu_seq_lens: Tensor, max_length: int | None, num_tokens: int, block_ids: Tensor | None = None
) -> Packing:
    """Say of each item of a packed row which history it belongs to, and where it stands there.

    >>> packing = describe_packing(torch.tensor([0, 2, 5]), 3, 5)
    >>> packing.histories.tolist(), packing.places.tolist()
    ([0, 0, 1, 1, 1], [0, 1, 0, 1, 2])

    Args:
        cu_seq_lens: (histories + 1,) cumulative lengths, from 0 to num_tokens.
        max_length: Items of the longest history; looked up when None.
        num_tokens: Items of the row.
        block_ids: (1, tokens) who sees whom, see `sees_by_block`; None where all see all.
    """
    if max_length is None:
        max_length = int(cu_seq_lens.diff().max())
    blocks = None if block_ids is None else block_ids[0]
    tokens = torch.arange(num_tokens, device=cu_seq_lens.device, dtype=cu_seq_lens.dtype)
    histories = torch.searchsorted(cu_seq_lens[1:], tokens, right=True)
    return Packing(cu_seq_lens, max_length, histories, tokens - cu_seq_lens[histories], blocks)


def packed_attention(  # noqa: PLR0913 - what every attention takes
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scaling: float,
    dropout: float = 0.0,
    *,
    is_causal: bool = False,
) -> Tensor:
    """Attend within each history, by the fastest way that the device and the settings allow.

    Args:
        query: (tokens, heads, head_dim)
        key: (tokens, heads, head_dim)
        value: (tokens, heads, head_dim)
        packing: Where the histories lie.
        scaling: Factor of the products.
        dropout: Share of attention weights dropped.
        is_causal: Whether items see themselves and older ones only.

    Returns:
        (tokens, heads, head_dim)
    """
    if dropout == 0 and query.device.type == "cpu":
        return _attend_by_length(
            query, key, value, packing.cu_seq_lens, packing.blocks, scaling, is_causal
        )[0]
    if dropout == 0 and packing.blocks is None and _has_varlen(query):
        lengths, longest = packing.cu_seq_lens, packing.max_length
        window = (-1, 0 if is_causal else -1)
        return varlen_attn(
            *(query, key, value, lengths, lengths, longest, longest),
            scale=scaling,
            window_size=window,
        )
    return _attend_padded(query, key, value, packing, scaling, dropout, is_causal)


def _has_varlen(query: Tensor) -> bool:
    """Whether torch's kernel for packed rows takes such a query."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and query.shape[-1] % 8 == 0
    )


def _attend_padded(  # noqa: PLR0913 - what every attention takes
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scaling: float,
    dropout: float,
    is_causal: bool = False,
) -> Tensor:
    """Pad the histories, attend, and pack the result; shapes as in packed_attention."""
    starts = packing.cu_seq_lens[:-1, None]
    lengths = packing.cu_seq_lens.diff()[:, None]
    columns = torch.arange(packing.max_length, device=query.device)
    tokens = (starts + columns).clamp(max=len(query) - 1)  # (histories, length)
    # An empty history sees one item, so that no row is without any; nothing reads its output.
    sees = (columns < lengths.clamp(min=1))[:, None, None]
    if is_causal:
        sees = sees & (columns <= columns[:, None])
    if packing.blocks is not None:
        sees = sees & sees_by_block(packing.blocks[tokens]).unsqueeze(1)
    padded = F.scaled_dot_product_attention(
        *(each[tokens].transpose(1, 2) for each in (query, key, value)),
        attn_mask=sees,
        dropout_p=dropout,
        scale=scaling,
    )
    return padded.transpose(1, 2)[packing.histories, packing.places.long()]


def _runs(cu_seq_lens: Tensor) -> list[tuple[int, int, int]]:
    """First item, one past the last, and length of each run of neighbours of equal length."""
    ends = cu_seq_lens.tolist()
    runs: list[tuple[int, int, int]] = []
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        length = end - start
        if runs and runs[-1][2] == length:
            runs[-1] = (runs[-1][0], end, length)
        elif length:
            runs.append((start, end, length))
    return runs


def _rows(packed: Tensor, run: tuple[int, int, int]) -> Tensor:
    """(histories, heads, length, …) view of a run of histories of equal length."""
    start, end, length = run
    return packed[start:end].unflatten(0, (-1, length)).transpose(1, 2)


def _mask(blocks: Tensor | None, run: tuple[int, int, int], dtype: torch.dtype) -> Tensor | None:
    """(histories, 1, length, length) added to the products; None where all see all."""
    start, end, length = run
    if blocks is None or not blocks[start:end].any():
        return None
    sees = sees_by_block(blocks[start:end].view(-1, 1, length))
    return torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, -torch.inf)


@library.custom_op(f"{_NAMESPACE}::attend_by_length", mutates_args=())
def _attend_by_length(  # noqa: PLR0913 - operators take no tuples
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_lens: Tensor,
    blocks: Tensor | None,
    scaling: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """Output (tokens, heads, head_dim) and log-sum-exp (tokens, heads); opaque to the compiler."""
    output = torch.empty(query.shape, dtype=query.dtype)
    sums = torch.empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
    for run in _runs(cu_seq_lens):
        attended, run_sums = _flash_forward(
            *(_rows(each, run) for each in (query, key, value)),
            0.0,
            is_causal,
            attn_mask=_mask(blocks, run, query.dtype),
            scale=scaling,
        )
        _rows(output, run).copy_(attended)
        _rows(sums, run).copy_(run_sums)
    return output, sums


@_attend_by_length.register_fake
def _(  # noqa: PLR0913 - as above
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_lens: Tensor,
    blocks: Tensor | None,
    scaling: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    sums = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
    return query.new_empty(query.shape), sums


@library.custom_op(f"{_NAMESPACE}::attend_by_length_backward", mutates_args=())
def _attend_by_length_backward(  # noqa: PLR0913 - what the forward had and made
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    sums: Tensor,
    cu_seq_lens: Tensor,
    blocks: Tensor | None,
    scaling: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each (tokens, heads, head_dim)."""
    grads = tuple(torch.empty(each.shape, dtype=each.dtype) for each in (query, key, value))
    for run in _runs(cu_seq_lens):
        inputs = (_rows(each, run) for each in (grad, query, key, value, output, sums))
        mask = _mask(blocks, run, query.dtype)
        parts = _flash_backward(*inputs, 0.0, is_causal, attn_mask=mask, scale=scaling)
        for whole, part in zip(grads, parts, strict=True):
            _rows(whole, run).copy_(part)
    return grads


@_attend_by_length_backward.register_fake
def _(  # noqa: PLR0913 - as above
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    sums: Tensor,
    cu_seq_lens: Tensor,
    blocks: Tensor | None,
    scaling: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(each.new_empty(each.shape) for each in (query, key, value))


def _save(ctx: object, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scaling, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: object, grad: Tensor, _: Tensor) -> tuple:
    query, key, value, cu_seq_lens, blocks, output, sums = ctx.saved_tensors
    grads = _attend_by_length_backward(
        grad, query, key, value, output, sums, cu_seq_lens, blocks, ctx.scaling, ctx.is_causal
    )
    return *grads, None, None, None, None


_attend_by_length.register_autograd(_backward, setup_context=_save)
