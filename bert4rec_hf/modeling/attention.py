"""Attention within packed histories: every item sees the items of its own history, and no padding.

Three ways, one result. On CUDA `varlen_attn` takes the packed row as it is. On CPU, neighbouring
histories of nearly equal length are one call of the fused kernel; the collator sorts them so.
Where neither can be used (attention dropout; on CUDA also float32, older devices and prefixes), the
histories are laid out in padded rows for attention alone.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, library
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

# A copy of this file inside a model repository must not redefine the operators of another.
_NAMESPACE = __name__.replace(".", "_").replace("-", "_")

_flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


BUCKET = 16
"""Histories whose lengths are the same in multiples of this are attended to together."""


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


class _Bucket(NamedTuple):
    """Neighbouring histories of nearly equal length, which are attended to in one call."""

    tokens: Tensor
    """(histories, length) place of each token in the packed row; that of another where is_token is
    False."""

    is_token: Tensor
    """(histories, length) False after the end of the shorter histories."""

    mask: Tensor | None
    """(histories, 1, length, length) added to the products; None where all see all."""

    def read(self, packed: Tensor) -> Tensor:
        """(histories, heads, length, …) rows of the bucket."""
        return packed[self.tokens].transpose(1, 2)

    def write(self, packed: Tensor, rows: Tensor) -> None:
        """Put rows of the bucket back where they belong."""
        packed[self.tokens[self.is_token]] = rows.transpose(1, 2)[self.is_token]


def _make_buckets(
    cu_seq_lens: Tensor,
    prefix_ids: Tensor | None,
    is_query: Tensor | None,
    dtype: torch.dtype,
    is_causal: bool,
) -> list[_Bucket]:
    """Group the histories of a packed row, once for all layers and both directions."""
    prefixes = (None, None)
    if prefix_ids is not None:
        prefixes = (prefix_ids.long().numpy().tobytes(), is_query.numpy().tobytes())
    return _remember_buckets(cu_seq_lens.long().numpy().tobytes(), *prefixes, dtype, is_causal)


@lru_cache(maxsize=2)
def _remember_buckets(
    cu_seq_lens: bytes,
    prefix_ids: bytes | None,
    is_query: bytes | None,
    dtype: torch.dtype,
    is_causal: bool,
) -> list[_Bucket]:
    ends = torch.frombuffer(bytearray(cu_seq_lens), dtype=torch.int64)
    starts, lengths = ends[:-1], ends.diff()
    if prefix_ids is not None:
        numbers = torch.frombuffer(bytearray(prefix_ids), dtype=torch.int64)
        queries = torch.frombuffer(bytearray(is_query), dtype=torch.bool)
    _, counts = (-(-lengths // BUCKET)).unique_consecutive(return_counts=True)
    sizes, buckets = counts.tolist(), []
    for first, own in zip(starts.split(sizes), lengths.split(sizes), strict=True):
        length = int(own.max())
        if not length:
            continue
        columns = torch.arange(length)
        is_token = columns < own.unsqueeze(1)
        tokens = (first.unsqueeze(1) + columns).clamp(max=int(ends[-1]) - 1)
        seen = None
        if prefix_ids is not None:
            seen = sees(numbers[tokens], queries[tokens])
        # Causal tokens see nothing after themselves, so not the end of a shorter history either.
        if not is_causal and not is_token.all():
            of_history = is_token.unsqueeze(1) | torch.eye(length, dtype=torch.bool)
            seen = of_history if seen is None else seen & of_history
        mask = None
        if seen is not None and not seen.all():
            mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
            mask = mask.unsqueeze(1)
        buckets.append(_Bucket(tokens, is_token, mask))
    return buckets


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
    for bucket in _make_buckets(cu_seq_lens, prefix_ids, is_query, query.dtype, is_causal):
        inputs = (bucket.read(each) for each in (query, key, value))
        attended, own_sums = _flash_forward(
            *inputs, 0.0, is_causal, attn_mask=bucket.mask, scale=scaling
        )
        bucket.write(output, attended)
        bucket.write(sums, own_sums)
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
    for bucket in _make_buckets(cu_seq_lens, prefix_ids, is_query, query.dtype, is_causal):
        own_grad, *inputs = (bucket.read(each) for each in (grad, query, key, value, output, sums))
        if not bucket.is_token.all():
            own_grad = own_grad * bucket.is_token[:, None, :, None]
        parts = _flash_backward(
            own_grad, *inputs, 0.0, is_causal, attn_mask=bucket.mask, scale=scaling
        )
        for whole, part in zip(grads, parts, strict=True):
            bucket.write(whole, part)
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
