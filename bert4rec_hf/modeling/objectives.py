"""What training minimizes, as a function of the states at masked positions.

None of them holds the (masked, catalog) scores whole. All have one signature; `negatives` are
drawn by the collator, and only the sampled objectives look at them. `neighbors` are what is mixed
into the scores.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, library
from torch.nn import functional as F

from .configuration_bert4rec import NUM_SPECIAL_IDS, BERT4RecConfig
from .neighbors import TargetNeighbors

MAX_SCORES = {"cpu": 2**26, "cuda": 2**27}
"""Scores that the full softmax holds at once. On a CPU these are 400 masked items at 160,000
candidates and 64 at a million, as products of few rows are slow; twice as many on a GPU, which
wants to be kept busy."""

# A copy of this file inside a model repository must not redefine the operators of another.
_NAMESPACE = __name__.replace(".", "_").replace("-", "_")


class ItemTable(NamedTuple):
    """What items are scored by."""

    weight: Tensor
    """(vocab, hidden) one vector per id."""

    bias: Tensor | None
    """(vocab,) one number per id, or None."""

    takes_rows: bool = False
    """Whether the gradient of the vectors may be row-sparse."""

    def look_up(self, ids: Tensor) -> Tensor:
        """(…, hidden) the vectors of some ids."""
        return look_up(ids, self.weight, takes_rows=self.takes_rows)


class Negatives(NamedTuple):
    """Items drawn as wrong answers, shared by all masked items of a forward pass."""

    ids: Tensor
    """(negatives,) drawn with replacement."""

    log_counts: Tensor
    """(negatives,) logarithm of how often each was expected among them."""


class SoftTargets(NamedTuple):
    """What teachers expect at masked positions, beside the masked items themselves."""

    ids: Tensor
    """(masked, kept) items."""

    weights: Tensor
    """(masked, kept) what each counts; the masked item has the rest of 1."""


class SharedTable(torch.autograd.Function):
    """Look rows of the item table up and hand the table on to the head, under one gradient.

    The gradient of the rows is added to that of the head in place, so that there is never a second
    one of the size of the table. `keeps_rows` leaves it row-sparse where the head's is.
    """

    @staticmethod
    def forward(
        ctx: object, weight: Tensor, ids: Tensor, padding_id: int, keeps_rows: bool
    ) -> tuple[Tensor, Tensor]:
        """(vocab, hidden) the table, and (batch, length, hidden) its rows."""
        ctx.save_for_backward(ids)
        ctx.padding_id, ctx.keeps_rows = padding_id, keeps_rows
        return weight.view_as(weight), F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: object, head: Tensor, rows: Tensor) -> tuple[Tensor, None, None, None]:
        ids, rows = ctx.saved_tensors[0].flatten(), rows.flatten(0, 1)
        if ctx.keeps_rows and head.is_sparse:
            is_item = ids != ctx.padding_id
            rows = torch.sparse_coo_tensor(
                ids[is_item].unsqueeze(0), rows[is_item], head.shape, check_invariants=False
            )
            return head + rows, None, None, None
        rows = rows.masked_fill((ids == ctx.padding_id).unsqueeze(1), 0)
        head = head.to_dense() if head.is_sparse else head
        return head.index_add_(0, ids, rows), None, None, None


def look_up(
    ids: Tensor, weight: Tensor, padding_id: int | None = None, *, takes_rows: bool
) -> Tensor:
    """Rows of a table, their gradient row-sparse if it may be; a compiler cannot have it so."""
    is_sparse = takes_rows and not torch.compiler.is_compiling()
    return F.embedding(ids, weight, padding_id, sparse=is_sparse)


def full_softmax(
    states: Tensor,
    targets: Tensor,
    weights: Tensor,
    items: ItemTable,
    negatives: Negatives | None = None,
    neighbors: TargetNeighbors | None = None,
) -> Tensor:
    """Cross-entropy of the masked items against the whole catalog.

    The scores of a run of masked items are made, turned into their own gradient in place and used
    up before the next run: three matrix products in all, two where the table is frozen.

    Args:
        states: (masked, hidden) output of the head at masked positions.
        targets: (masked,) ids of the masked items; anything where the weight is 0.
        weights: (masked,) float32 what each masked item counts; 0 leaves it out.
        items: What they are scored by; padding and mask are no candidates.
        negatives: Not used.
        neighbors: What is mixed into the scores; None if nothing is.

    Returns:
        Scalar, float32: the weighted sum.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    trains = [
        torch.is_grad_enabled() and each is not None and each.requires_grad
        for each in (states, items.weight, items.bias)
    ]
    total, of_targets = (
        (None, None) if neighbors is None else (each.float() for each in neighbors[:2])
    )
    trains.append(torch.is_grad_enabled() and total is not None and total.requires_grad)
    return _full_softmax(
        states.to(dtype), targets, weights, items.weight, items.bias, total, of_targets, trains
    )[0]


def sampled_softmax(
    states: Tensor,
    targets: Tensor,
    weights: Tensor,
    items: ItemTable,
    negatives: Negatives | None,
    neighbors: TargetNeighbors | None = None,
) -> Tensor:
    """Cross-entropy of the masked items against the negatives, an estimate of the full one.

    Each negative stands for 1 / (expected count) items of the catalog (log-q correction); those
    that equal the target are left out, as the target stands for itself. So the expected sum of
    exponentials is that of the full softmax, whatever the distribution (Bengio and Senécal, 2008,
    https://doi.org/10.1109/TNN.2007.912312).

    Takes the arguments of full_softmax, and needs the negatives.
    """
    of_targets, of_negatives = _score_some(states, targets, items, negatives.ids)
    of_negatives = of_negatives.float() - negatives.log_counts
    of_negatives = of_negatives.masked_fill(targets.unsqueeze(1) == negatives.ids, -torch.inf)
    of_targets = of_targets.float()
    log_sums = torch.logaddexp(of_targets, of_negatives.logsumexp(dim=1))
    if neighbors is not None:  # known, so that nothing of it is estimated
        log_sums = torch.logaddexp(log_sums, neighbors.total)
        of_targets = torch.logaddexp(of_targets, neighbors.target)
    return weighted_sum(log_sums - of_targets, weights)


def gbce(  # noqa: PLR0913 - what all objectives take, and a setting of its own
    states: Tensor,
    targets: Tensor,
    weights: Tensor,
    items: ItemTable,
    negatives: Negatives | None,
    neighbors: TargetNeighbors | None = None,
    *,
    calibration: float = 0.75,
    num_items: int | None = None,
) -> Tensor:
    """Binary cross-entropy whose positives are tempered against overconfidence.

    Petrov and Macdonald, 2023, https://arxiv.org/abs/2308.07192: the probability of a target is
    taken to the power beta, a function of the share of the catalog that is drawn and of the
    calibration t. Here all masked items share their negatives.

    Takes the arguments of full_softmax, needs the negatives, and

        calibration: The paper's t; 0 is plain binary cross-entropy, 1 wholly calibrated.
        num_items: Of the catalog; those of the table when None.
    """
    of_targets, of_negatives = _score_some(states, targets, items, negatives.ids)
    num_items, drawn = num_items or len(items.weight) - NUM_SPECIAL_IDS, len(negatives.ids)
    rate = min(drawn / max(num_items - 1, 1), 1.0)
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    of_targets, of_negatives = of_targets.float(), of_negatives.float()
    if neighbors is not None:
        of_targets = torch.logaddexp(of_targets, neighbors.target)
        of_negatives = torch.logaddexp(of_negatives, neighbors.negatives)
    wrong = F.softplus(of_negatives)  # -log(1 - probability)
    wrong = wrong.masked_fill(targets.unsqueeze(1) == negatives.ids, 0).sum(dim=1)
    losses = wrong - beta * F.logsigmoid(of_targets)
    return weighted_sum(losses, weights) / (drawn + 1)


def soften(
    states: Tensor, targets: Tensor, weights: Tensor, items: ItemTable, soft: SoftTargets
) -> Tensor:
    """What cross-entropy against soft targets has beyond that against the masked items alone.

    Either is the logarithm of the sum of exponentials less the expected score of a target (Hinton
    et al., 2015, https://arxiv.org/abs/1503.02531). That sum is the same, so that the scores of the
    few items that are expected make all the difference, and the catalog is gone through only once.

    Args:
        states: (masked, hidden) output of the head at masked positions.
        targets: (masked,) ids of the masked items; anything where the weight is 0.
        weights: (masked,) float32 what each masked item counts.
        items: What they are scored by.
        soft: What is expected.

    Returns:
        Scalar, float32: the weighted sum.
    """
    ids = torch.cat([targets.clamp(min=NUM_SPECIAL_IDS).unsqueeze(1), soft.ids], dim=1)
    shares = torch.cat([soft.weights.sum(dim=1, keepdim=True), -soft.weights], dim=1)
    shares = shares.to(items.weight.dtype)
    rows = F.embedding_bag(ids, items.weight, mode="sum", per_sample_weights=shares)
    differences = (states * rows).sum(dim=1)
    if items.bias is not None:
        differences = differences + (items.bias[ids] * shares).sum(dim=1)
    return weighted_sum(differences.float(), weights)


def weighted_sum(losses: Tensor, weights: Tensor) -> Tensor:
    """Sum in single precision; autocast would have a product of vectors in half."""
    return (losses * weights).sum()


def _score_some(
    states: Tensor, targets: Tensor, items: ItemTable, ids: Tensor
) -> tuple[Tensor, Tensor]:
    """(masked,) scores of the targets and (masked, negatives) scores of the drawn items."""
    targets = targets.clamp(min=NUM_SPECIAL_IDS)
    of_targets = (states * items.look_up(targets)).sum(dim=1)
    of_negatives = states @ items.look_up(ids).t()
    if items.bias is None:
        return of_targets, of_negatives
    return of_targets + items.bias[targets], of_negatives + items.bias[ids]


@library.custom_op(f"{_NAMESPACE}::full_softmax", mutates_args=())
def _full_softmax(  # noqa: PLR0913 - operators take no tuples
    states: Tensor,
    targets: Tensor,
    weights: Tensor,
    table: Tensor,
    bias: Tensor | None,
    total: Tensor | None,
    of_targets: Tensor | None,
    trains: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss and its gradients by states, table, bias and neighbors; those not needed are empty.

    total and of_targets are those of TargetNeighbors.
    """
    loss, by_states, by_table, by_bias, by_total, by_targets = _make_outputs(states, table, trains)
    by_table[: NUM_SPECIAL_IDS if len(states) else None] = 0
    # In half precision a share of the mean would underflow; there it comes in at the end.
    factor = weights.new_ones(()) if states.dtype == table.dtype else weights.amax()
    shares = (weights / factor).to(states.dtype).unsqueeze(1)  # (masked, 1)
    rows = table[NUM_SPECIAL_IDS:].to(states.dtype)
    run = max(1, max_scores(states.device) // len(rows))
    buffer = states.new_empty(min(run, len(states)), len(rows))
    for start in range(0, len(states), run):
        part = slice(start, start + run)
        scores = torch.mm(states[part], rows.t(), out=buffer[: len(states[part])])
        if bias is not None:
            scores += bias[NUM_SPECIAL_IDS:]
        columns = (targets[part] - NUM_SPECIAL_IDS).clamp(min=0).unsqueeze(1)
        neighbors = None if total is None else (total[part], of_targets[part])
        losses, by_neighbors = cross_entropy_gradient_(scores, columns, neighbors)
        loss += weighted_sum(losses, weights[part])
        if trains[0]:
            by_states[part] = torch.mm(scores, rows) * weights[part].unsqueeze(1)
        if trains[1]:
            _add_product(by_table[NUM_SPECIAL_IDS:], scores.t(), states[part] * shares[part], start)
        if trains[2]:
            by_bias[NUM_SPECIAL_IDS:] += (scores.t() @ shares[part]).squeeze(1)
        if trains[3]:
            by_total[part], by_targets[part] = by_neighbors * weights[part]
    if states.dtype != table.dtype:
        by_table *= factor
        by_bias *= factor
    return loss, by_states, by_table, by_bias, by_total, by_targets


def max_scores(device: torch.device) -> int:
    """How many scores the full softmax holds at once, at most."""
    return MAX_SCORES.get(device.type, MAX_SCORES["cuda"])


def cross_entropy_gradient_(
    scores: Tensor, columns: Tensor, neighbors: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """Turn scores into the gradient of the cross-entropy by themselves, in place.

    Args:
        scores: (masked, candidates) of the network.
        columns: (masked, 1) place of each target among the candidates.
        neighbors: (masked,) total and target of TargetNeighbors, where they are mixed in.

    Returns:
        (masked,) float32 cross-entropy, and (2, masked) its gradient by total and target.
    """
    if neighbors is None:
        losses = softmax_cross_entropy_(scores, columns)
        scores.scatter_add_(1, columns, scores.new_full(columns.shape, -1))
        return losses, None
    total, target = neighbors
    own = scores.gather(1, columns).squeeze(1).float()
    log_sums = softmax_cross_entropy_(scores, columns) + own
    # The network's share in the sum of all exponentials, and in that of the target.
    in_sum, in_target = torch.sigmoid(log_sums - total), torch.sigmoid(own - target)
    scores *= in_sum.to(scores.dtype).unsqueeze(1)
    scores.scatter_add_(1, columns, -in_target.to(scores.dtype).unsqueeze(1))
    losses = torch.logaddexp(log_sums, total) - torch.logaddexp(own, target)
    return losses, torch.stack([1 - in_sum, in_target - 1])


def softmax_cross_entropy_(scores: Tensor, columns: Tensor) -> Tensor:
    """Turn scores into probabilities in place, and say how unlikely the targets are.

    Args:
        scores: (masked, candidates)
        columns: (masked, 1) place of each target among the candidates.

    Returns:
        (masked,) float32 cross-entropy.
    """
    own, largest = scores.gather(1, columns), scores.amax(dim=1, keepdim=True)
    if scores.dtype == torch.float32:
        probabilities = torch.softmax(scores, dim=1, out=scores)
    else:
        probabilities = torch.softmax(scores, dim=1, dtype=torch.float32)
    # By the largest, whose probability does not underflow: that of the target may.
    log_sums = largest.float() - probabilities.amax(dim=1, keepdim=True).log()
    scores.copy_(probabilities)  # onto itself, which is no work, in single precision
    return (log_sums - own.float()).squeeze(1)


def _add_product(total: Tensor, left: Tensor, right: Tensor, is_begun: int) -> None:
    """Add left @ right to what is begun, or begin with it."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, beta=1 if is_begun else 0, out=total)
    elif is_begun:
        total += left @ right
    else:
        total.copy_(left @ right)


def _make_outputs(
    states: Tensor, table: Tensor, trains: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss and gradients before any work, each of the size it needs; the table's is not filled."""
    return (
        states.new_zeros((), dtype=torch.float32),
        states.new_empty(states.shape if trains[0] else (0,), dtype=torch.float32),
        table.new_empty(table.shape if trains[1] else (0, table.shape[1])),
        table.new_zeros(table.shape[:1] if trains[2] else (0,)),
        *(states.new_empty(len(states) if trains[3] else 0, dtype=torch.float32) for _ in range(2)),
    )


@_full_softmax.register_fake
def _(  # noqa: PLR0913 - as above
    states: Tensor,
    targets: Tensor,
    weights: Tensor,
    table: Tensor,
    bias: Tensor | None,
    total: Tensor | None,
    of_targets: Tensor | None,
    trains: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _make_outputs(states, table, trains)


def _save_gradients(ctx: object, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.trains = inputs[-1]
    ctx.set_materialize_grads(False)  # or there would be zeros of the size of the table
    ctx.save_for_backward(*output[1:])


def _scale_gradients(ctx: object, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """Multiply what the forward pass made by the gradient of the loss, which is mostly 1."""
    is_one = not torch.compiler.is_compiling() and grad.device.type == "cpu" and grad.item() == 1
    by_states, by_table, by_bias, by_total, by_targets = (
        None if not trains else each if is_one else each.mul_(grad)
        for each, trains in zip(ctx.saved_tensors, (*ctx.trains, ctx.trains[3]), strict=True)
    )
    return by_states, None, None, by_table, by_bias, by_total, by_targets, None


_full_softmax.register_autograd(_scale_gradients, setup_context=_save_gradients)

Objective = Callable[
    [Tensor, Tensor, Tensor, ItemTable, Negatives | None, TargetNeighbors | None], Tensor
]

OBJECTIVES: dict[str, Objective] = {
    "full_softmax": full_softmax,
    "sampled_softmax": sampled_softmax,
    "gbce": gbce,
}

SAMPLED_OBJECTIVES = ("sampled_softmax", "gbce")
"""Those that need negatives, and give a gradient to few rows of the table."""


def build_objective(config: BERT4RecConfig) -> Objective:
    """The objective that a configuration names, with its settings."""
    if config.objective == "gbce":
        # The table that the model sees may be a part of the catalog, see ItemShards.
        settings = {"calibration": config.gbce_calibration, "num_items": config.num_items}
        return partial(gbce, **settings)
    return OBJECTIVES[config.objective]
