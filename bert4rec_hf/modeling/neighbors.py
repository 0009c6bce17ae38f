"""Items that stand close to the newest ones of a history: counted, not learned, and mixed in.

A network has to learn from few examples what a table of co-occurrence just knows; a table knows
nothing of the history as a whole. The two are mixed as unnormalized probabilities, as language
models mix in what they can copy (Gu et al., 2016, https://arxiv.org/abs/1603.06393):

    exp(score of an item) = exp(network's score) + exp(gate) * (the item's share)

The shares are a distribution over the neighbors of the newest items, the newest counting most; the
gate is learned, one number per history. An item that is no neighbor keeps the network's score.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .configuration_bert4rec import BERT4RecConfig

NO_EVIDENCE = 1e-3
"""Share of one meeting below which what is left of a similarity is rounding."""


class TargetNeighbors(NamedTuple):
    """What neighbors add to the sum of exponentials and to that of the target, as logarithms."""

    total: Tensor
    """(masked,) the gate; -inf where the history has no neighbors."""

    target: Tensor
    """(masked,) gate and share of the target; -inf where it is no neighbor."""

    negatives: Tensor | None = None
    """(masked, negatives) the same of drawn items."""


@dataclass(frozen=True)
class NeighborShares:
    """The neighbors of some histories, ready to be mixed into the network's scores."""

    ids: Tensor
    """(batch, entries) items, one of them in several entries where it has several neighbors."""

    shares: Tensor
    """(batch, entries) what each entry adds to the share of its item; 0 where there is none."""

    gate: Tensor
    """(batch,) logarithm of what all shares together weigh."""

    def __getitem__(self, rows: slice | Tensor) -> "NeighborShares":
        return NeighborShares(self.ids[rows], self.shares[rows], self.gate[rows])

    def __len__(self) -> int:
        return len(self.ids)

    def renumber(self, columns: Tensor) -> "NeighborShares":
        """The same where the scores of items stand elsewhere.

        Args:
            columns: (vocab,) where the score of each item stands; below 0 if it is not there.
        """
        return NeighborShares(columns[self.ids], self.shares, self.gate)

    def mix(self, scores: Tensor) -> Tensor:
        """Mix the shares into the network's scores of the whole vocabulary.

        Args:
            scores: (batch, vocab)
        """
        total = torch.zeros_like(scores, dtype=self.shares.dtype)
        total = total.scatter_add(1, self.ids, self.shares)
        is_neighbor = total > 0
        added = torch.where(is_neighbor, total, 1).log() + self.gate.unsqueeze(1)
        mixed = torch.logaddexp(scores.to(added.dtype), added).to(scores.dtype)
        return torch.where(is_neighbor, mixed, scores)

    @torch.no_grad()
    def mix_run(self, scores: Tensor, first_id: int) -> Tensor:
        """Mix the shares into a run of the catalog, in place, at the cost of the neighbors alone.

        Args:
            scores: (batch, candidates) of the network.
            first_id: The item of the first column.

        Returns:
            The same scores.
        """
        columns = self.ids - first_id
        rows, entries = ((columns >= 0) & (columns < scores.shape[1])).nonzero(as_tuple=True)
        places = rows * scores.shape[1] + columns[rows, entries]
        flat = scores.view(-1)
        total = torch.zeros_like(flat, dtype=self.shares.dtype)
        total.index_add_(0, places, self.shares[rows, entries])
        added = self.gate[rows] + total[places].log()
        # An item of several entries is written several times, the same number each time.
        flat[places] = torch.logaddexp(flat[places].to(added.dtype), added).to(flat.dtype)
        return scores

    def look_up(self, ids: Tensor) -> Tensor:
        """Find what is added to the exponentials of a few items, the same for all histories.

        Args:
            ids: (candidates,) may hold an item more than once.

        Returns:
            (batch, candidates) logarithms; -inf where an item is no neighbor.
        """
        some = ids.sort().values
        places = torch.searchsorted(some, self.ids).clamp(max=len(some) - 1)
        shares = self.shares * (some[places] == self.ids)
        total = shares.new_zeros(len(shares), len(some)).scatter_add(1, places, shares)
        total = total[:, torch.searchsorted(some, ids)]
        return total.log() + self.gate.unsqueeze(1)


def newest_items(
    input_ids: Tensor, is_item: Tensor, starts: Tensor, positions: Tensor, count: int
) -> Tensor:
    """Find the newest items at or before positions of a batch; masks and padding are passed over.

    >>> ids = torch.tensor([[7, 8, 1, 9, 5, 1]])
    >>> starts, positions = torch.tensor([0, 4]), torch.tensor([3, 5])
    >>> newest_items(ids, ids > 1, starts, positions, 2).tolist()
    [[9, 8], [5, 0]]

    Args:
        input_ids: (batch, length) ids, or (1, tokens) where histories are packed.
        is_item: (batch, length) or (1, tokens) True for items.
        starts: (asked,) where the history of each position begins.
        positions: (asked,) counted, as starts are, through the rows of the batch.
        count: How many to find.

    Returns:
        (asked, count) ids, the newest first; 0 where there are no more.
    """
    is_item = is_item.flatten()
    num_items = is_item.cumsum(0)  # up to each token, itself included
    places = torch.where(is_item, num_items - 1, len(is_item))
    items = input_ids.new_zeros(len(is_item) + 1).scatter(0, places, input_ids.flatten())
    first = num_items[starts] - is_item[starts].long()
    found = num_items[positions].unsqueeze(1) - 1 - torch.arange(count, device=input_ids.device)
    return torch.where(found >= first.unsqueeze(1), items[found.clamp(min=0)], 0)


class ItemNeighbors(nn.Module):
    """The table of neighbors and the gate; without its table, no item has any.

    What stands in the table is counted by `set_table`'s caller and never trained. The newest
    `num_recent_items` items of a history are looked up, each counting `neighbor_decay` times as
    much as the one after it.
    """

    def __init__(self, config: BERT4RecConfig):
        super().__init__()
        self.num_recent_items, self.decay = config.num_recent_items, config.neighbor_decay
        self.max_distance = config.neighbor_distance
        shape = (config.vocab_size, config.num_neighbors)
        self.register_buffer("ids", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("similarities", torch.zeros(shape))
        self.register_buffer("scales", torch.zeros(config.vocab_size, 2))
        self.gate = nn.Linear(config.hidden_size, 1)

    @torch.no_grad()
    def set_table(self, ids: Tensor, similarities: Tensor, scales: Tensor) -> None:
        """Take over what was counted.

        Args:
            ids: (vocab, neighbors) the neighbors of each item; anything where the similarity is 0.
            similarities: (vocab, neighbors) to them, 0 or more.
            scales: (vocab, 2) a meeting of items i and j, w places apart, has added
                scales[i, 0] * scales[j, 1] / w to the similarity of j among the neighbors of i.

        Raises:
            ValueError: The shapes are not those of the model.
        """
        for name, given in (("ids", ids), ("similarities", similarities), ("scales", scales)):
            table = getattr(self, name)
            if given.shape != table.shape:
                raise ValueError(
                    f"neighbors: {name} must be {tuple(table.shape)}, as vocab_size and "
                    f"num_neighbors of the model are, got {tuple(given.shape)}"
                )
            table.copy_(given)

    def resize(self, vocab_size: int) -> None:
        """Keep the neighbors among the first ids; items that are new have none."""
        kept = min(vocab_size, len(self.ids))
        for name in ("ids", "similarities", "scales"):
            table = getattr(self, name)
            resized = table.new_zeros(vocab_size, *table.shape[1:])
            resized[:kept] = table[:kept]
            setattr(self, name, resized)
        is_gone = self.ids >= vocab_size
        self.ids[is_gone], self.similarities[is_gone] = 0, 0

    def read(self, recent: Tensor, states: Tensor, targets: Tensor | None = None) -> NeighborShares:
        """Look up the neighbors of the newest items of histories.

        Args:
            recent: (batch, recent) ids, the newest first; 0 where there are no more.
            states: (batch, hidden) what the network scores by.
            targets: (batch,) ids, of histories that were counted: their meetings with the newest
                items are taken out, as in of_targets.
        """
        weights = self._weights(recent)
        if targets is not None:
            is_target = self.ids[recent] == targets[:, None, None]
            rest = self._without_own((weights * is_target).sum(dim=2), recent, targets)
            weights = torch.where(is_target, rest.unsqueeze(2), weights)
        weights = weights.flatten(1)
        total = weights.sum(dim=1, keepdim=True)
        shares = weights / torch.where(total > 0, total, 1)
        return NeighborShares(self.ids[recent].flatten(1).long(), shares, self._gate(states))

    def of_targets(
        self, recent: Tensor, states: Tensor, targets: Tensor, negatives: Tensor | None = None
    ) -> TargetNeighbors:
        """Look up what neighbors say of the targets only, which is all that most losses need.

        While training, the history's own meetings of the target with the newest items are taken
        out: they were counted, and say what is to be found out. (Those of an item that occurs
        elsewhere in the history as well are not.)

        Args:
            recent: (masked, recent) ids, the newest first; 0 where there are no more.
            states: (masked, hidden) what the network scores by.
            targets: (masked,) ids.
            negatives: (negatives,) ids that are looked up for all.
        """
        weights = self._weights(recent)  # (masked, recent, neighbors)
        is_target = self.ids[recent] == targets[:, None, None]
        by_item = (weights * is_target).sum(dim=2)  # (masked, recent)
        share, total = by_item.sum(dim=1), weights.sum(dim=(1, 2))
        if self.training:
            rest = self._without_own(by_item, recent, targets).sum(dim=1)
            left = total - share + rest
            share, total = rest, torch.where(left > NO_EVIDENCE * total, left, 0)
        gate = self._gate(states).masked_fill(total == 0, -torch.inf)
        share = share / torch.where(total > 0, total, 1)
        looked_up = None if negatives is None else self.read(recent, states).look_up(negatives)
        return TargetNeighbors(gate, gate + share.log(), looked_up)

    def _weights(self, recent: Tensor) -> Tensor:
        """(batch, recent, neighbors) similarity to each item times what the item counts."""
        return self.similarities[recent] * self._decays(recent).unsqueeze(1)

    def _decays(self, recent: Tensor) -> Tensor:
        """(recent,) what each of the newest items counts."""
        ages = torch.arange(recent.shape[1], device=recent.device, dtype=self.similarities.dtype)
        return self.decay**ages

    def _gate(self, states: Tensor) -> Tensor:
        """(batch,) in the precision of the table, whatever autocast does."""
        return self.gate(states).squeeze(1).to(self.similarities.dtype)

    def _without_own(self, by_item: Tensor, recent: Tensor, targets: Tensor) -> Tensor:
        """Take the meetings that the target is about to have out of what was counted.

        Args:
            by_item: (masked, recent) weighted similarity of the target to each of the newest items.
            recent: (masked, recent) their ids.
            targets: (masked,) ids.
        """
        near = recent[:, : self.max_distance]
        meetings = 1 / torch.arange(1, near.shape[1] + 1, device=recent.device)
        met = ((recent.unsqueeze(2) == near.unsqueeze(1)) * meetings).sum(dim=2)
        scale = self.scales[recent, 0] * self.scales[targets, 1].unsqueeze(1)
        own = met * scale * self._decays(recent)
        rest = by_item - own
        return torch.where(rest > NO_EVIDENCE * own, rest, 0)
