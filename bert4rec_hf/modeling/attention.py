"""Attention within packed histories: every item sees the items of its own history, and no padding.

Three ways, one result. On CUDA `varlen_attn` takes the packed row as it is. On CPU, histories of
equal length that lie side by side are one call of the fused kernel; the collator sorts them so.
Where neither can be used (attention dropout; on CUDA also float32, older devices and prefixes), the
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

    prefix_ids: Tensor | None = None
    """(tokens,) see `sees`; None where all tokens of a history see one another."""

    is_query: Tensor | None = None
    """(tokens,) see `sees`."""


def sees(prefix_ids: Tensor, is_query: Tensor) -> Tensor:
    """Which tokens see which in a history that is read as several of its prefixes at once.

    Items see the items of their own prefix and of shorter ones. A query, a mask that asks for the
    item after a prefix, sees the items of that prefix and itself; nobody else sees it.

    >>> is_query = torch.tensor([False, False, True, False])
    >>> sees(torch.tensor([0, 0, 0, 1]), is_query).int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]

    Args:
        prefix_ids: (…, length) number of the shortest prefix that has the token, from 0.
        is_query: (…, length) True where the token is a query.

    Returns:
        (…, length, length) True where the row's token sees the column's.
    """
    is_before = prefix_ids.unsqueeze(-2) <= prefix_ids.unsqueeze(-1)
    itself = torch.eye(prefix_ids.shape[-1], dtype=torch.bool, device=prefix_ids.device)
    return ~is_query.unsqueeze(-2) & is_before | itself


def describe_packing(
    cu_seq_lens: Tensor,
    max_length: int | None,
    num_tokens: int,
    prefix_ids: Tensor | None = None,
    is_query: Tensor | None = None,
) -> Packing:
    """Say of each item of a packed row which history it belongs to, and where it stands there.

    >>> packing = describe_packing(torch.tensor([0, 2, 5]), 3, 5)
    >>> packing.histories.tolist(), packing.places.tolist()
    ([0, 0, 1, 1, 1], [0, 1, 0, 1, 2])

    Args:
        cu_seq_lens: (histories + 1,) cumulative lengths, from 0 to num_tokens.
        max_length: Items of the longest history; looked up when None.
        num_tokens: Items of the row.
        prefix_ids: (1, tokens) see `sees`; None where all see all.
        is_query: (1, tokens) see `sees`.
    """
    if max_length is None:
        max_length = int(cu_seq_lens.diff().max())
    tokens = torch.arange(num_tokens, device=cu_seq_lens.device, dtype=cu_seq_lens.dtype)
    histories = torch.searchsorted(cu_seq_lens[1:], tokens, right=True)
    return Packing(
        cu_seq_lens,
        max_length,
        histories,
        tokens - cu_seq_lens[histories],
        *(None if each is None else each[0] for each in (prefix_ids, is_query)),
    )


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
        rows = (packing.cu_seq_lens, packing.prefix_ids, packing.is_query)
        return _attend_by_length(query, key, value, *rows, scaling, is_causal)[0]
    if dropout == 0 and packing.prefix_ids is None and _has_varlen(query):
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
    seen = (columns < lengths.clamp(min=1))[:, None, None]
    if is_causal:
        seen = seen & (columns <= columns[:, None])
    if packing.prefix_ids is not None:
        seen = seen & sees(packing.prefix_ids[tokens], packing.is_query[tokens]).unsqueeze(1)
    padded = F.scaled_dot_product_attention(
        *(each[tokens].transpose(1, 2) for each in (query, key, value)),
        attn_mask=seen,
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


def _mask(
    prefix_ids: Tensor | None,
    is_query: Tensor | None,
    run: tuple[int, int, int],
    dtype: torch.dtype,
) -> Tensor | None:
    """(histories, 1, length, length) added to the products; None where all see all."""
    start, end, length = run
    if prefix_ids is None or not (prefix_ids[start:end].any() or is_query[start:end].any()):
        return None
    seen = sees(*(each[start:end].view(-1, 1, length) for each in (prefix_ids, is_query)))
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)


@library.custom_op(f"{_NAMESPACE}::attend_by_length", mutates_args=())
def _attend_by_length(  # noqa: PLR0913 - operators take no tuples
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_lens: Tensor,
    prefix_ids: Tensor | None,
    is_query: Tensor | None,
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
            attn_mask=_mask(prefix_ids, is_query, run, query.dtype),
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
    prefix_ids: Tensor | None,
    is_query: Tensor | None,
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
    prefix_ids: Tensor | None,
    is_query: Tensor | None,
    scaling: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each (tokens, heads, head_dim)."""
    grads = tuple(torch.empty(each.shape, dtype=each.dtype) for each in (query, key, value))
    for run in _runs(cu_seq_lens):
        inputs = (_rows(each, run) for each in (grad, query, key, value, output, sums))
        mask = _mask(prefix_ids, is_query, run, query.dtype)
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
    prefix_ids: Tensor | None,
    is_query: Tensor | None,
    scaling: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(each.new_empty(each.shape) for each in (query, key, value))


def _save(ctx: object, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scaling, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: object, grad: Tensor, _: Tensor) -> tuple:
    query, key, value, *rows, output, sums = ctx.saved_tensors
    grads = _attend_by_length_backward(
        grad, query, key, value, output, sums, *rows, ctx.scaling, ctx.is_causal
    )
    return *grads, None, None, None, None, None


_attend_by_length.register_autograd(_backward, setup_context=_save)
