"""An item table that no process holds whole: each owns a run of its rows, and their moments.

A step names few items. Each process fetches their rows from the owners, every row once, learns from
a small table that has no others, and sends the gradients back, which the owners sum up. What is
sent grows with the batch and not with the catalog, and the owners step their rows as one process
steps all (`RowAdamW`).

TorchRec does the same, row-wise, with kernels of FBGEMM that are compiled for one minor version of
torch each; its Adam counts the steps of a table and not those of a row.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from bert4rec_hf.config import TrainingConfig
from bert4rec_hf.training.gradients import exchange_rows
from bert4rec_hf.training.row_shard import RowShard, shard_of
from bert4rec_hf.training.sharding import is_sharded

Batch = dict[str, Tensor | int]

NUM_SPECIAL_IDS = 2
"""Padding and mask, which keep their ids in the small table as well."""

ID_FIELDS = ("input_ids", "labels", "negatives")
"""What of a batch names rows of the table; negative numbers are none."""

ROWS_AT_ONCE = 2**16
"""Rows in one message, where a whole table goes from process to process."""


def check_item_shards(model: nn.Module, config: TrainingConfig, accelerator: Accelerator) -> bool:
    """Whether the item table is to be sharded, which a single process has no need of.

    Raises:
        ValueError: It is, and cannot be.
    """
    if config.item_table == "replicated" or accelerator.num_processes == 1:
        return False
    obstacles = {
        "no row-sparse gradients (they need model.objective sampled_softmax or gbce, "
        "training.row_sparse and no adapter)": not getattr(model, "has_row_gradients", False),
        "neighbors (set model.num_neighbors to 0, and training.added_neighbors to add some when it "
        "is trained)": getattr(model, "neighbors", None) is not None,
        "FSDP (launch with --multi_gpu)": is_sharded(accelerator),
        "torch.compile (launch with --dynamo_backend no)": (
            accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
        ),
        "fp16 (launch with --mixed_precision bf16 or no)": accelerator.mixed_precision == "fp16",
    }
    for obstacle, is_there in obstacles.items():
        if is_there:
            raise ValueError(
                f"training.item_table is sharded, which does not go with {obstacle}; or set it to "
                "replicated"
            )
    return True


def item_weights(model: nn.Module) -> list[Tensor]:
    """What has a row per item: the tables, a tied one once, and the output bias."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return list(dict.fromkeys(weight for layer in layers for weight in layer.parameters()))


class ItemShards:
    """The sharded item tables of a model, and its output bias.

    Args:
        model: On every process with all rows; those of the main process count, and each keeps its
            own.
        accelerator: Tells the processes apart.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator):
        self.model, self.accelerator = model, accelerator
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        layers = (model.get_input_embeddings(), model.get_output_embeddings())
        self._places = [
            (layer, name) for layer in layers for name, _ in layer.named_parameters(recurse=False)
        ]
        shards = {
            whole: self._cut(whole, RowShard(len(whole), mesh)) for whole in item_weights(model)
        }
        for layer, name in self._places:
            setattr(layer, name, shards[getattr(layer, name)])
        self.weights = list(shards.values())
        self.shard: RowShard = shard_of(self.weights[0])

    @torch.no_grad()
    def _cut(self, whole: Tensor, shard: RowShard) -> nn.Parameter:
        """The rows that this process owns, as the main process has them."""
        start, stop = shard.bounds(self.accelerator.process_index)
        own = whole.detach()[start:stop].to(self.accelerator.device, copy=True)
        for process in range(1, self.accelerator.num_processes):
            start, stop = shard.bounds(process)
            if self.accelerator.is_main_process:
                for rows in whole.detach()[start:stop].split(ROWS_AT_ONCE):
                    dist.send(rows.to(own.device).contiguous(), process)
            elif process == self.accelerator.process_index:
                for rows in own.split(ROWS_AT_ONCE):
                    dist.recv(rows, 0)
        weight = nn.Parameter(own, requires_grad=whole.requires_grad)
        weight.row_shard = shard
        return weight

    @contextmanager
    def fetched(self, batch: Batch) -> Iterator[Batch]:
        """Give the model the rows that a batch names, and the batch their numbers.

        When a backward pass has given them gradients, those go to the owners. All processes must
        come here together.

        Args:
            batch: Its ID_FIELDS are looked at.
        """
        fields = [name for name in ID_FIELDS if name in batch]
        specials = torch.arange(NUM_SPECIAL_IDS, device=self.accelerator.device)
        ids = torch.cat([specials, *(batch[name].flatten() for name in fields)])
        ids = ids[ids >= 0].unique()  # sorted, so that padding and mask stay the first
        route = _Route.to_owners(ids, self.shard)
        is_trained = torch.is_grad_enabled()
        tables = [
            nn.Parameter(route.fetch(weight.detach()), requires_grad=is_trained)
            for weight in self.weights
        ]
        renumbered = {
            name: torch.where(batch[name] < 0, batch[name], torch.searchsorted(ids, batch[name]))
            for name in fields
        }
        with self._in_place(tables):
            yield batch | renumbered
        for weight, table in zip(self.weights, tables, strict=True):
            if is_trained:
                add_gradient(weight, *route.send_back(table.grad))

    @contextmanager
    def _in_place(self, tables: list[nn.Parameter]) -> Iterator[None]:
        """Let the model have these tables in the place of the shards, with dense gradients."""
        given = dict(zip(self.weights, tables, strict=True))
        owned = [getattr(layer, name) for layer, name in self._places]
        for (layer, name), weight in zip(self._places, owned, strict=True):
            setattr(layer, name, given[weight])
        self.model.use_row_gradients(False)
        try:
            yield
        finally:
            for (layer, name), weight in zip(self._places, owned, strict=True):
                setattr(layer, name, weight)
            self.model.use_row_gradients()

    @torch.no_grad()
    def gather(self) -> nn.Module:
        """An ordinary model on the CPU with all rows, on the main process; others get no rows.

        All processes must come here together.
        """
        wholes = {id(weight): nn.Parameter(self._collect(weight)) for weight in self.weights}
        return copy.deepcopy(self.model, wholes).cpu()

    def _collect(self, weight: Tensor) -> Tensor:
        """(rows, …) of all processes on the CPU of the main process; none on the others."""
        shard, own, main = shard_of(weight), weight.detach(), self.accelerator.is_main_process
        whole = torch.empty((shard.num_rows if main else 0, *own.shape[1:]), dtype=own.dtype)
        whole[: len(own) if main else 0] = own[: len(own) if main else 0]
        for process in range(1, self.accelerator.num_processes):
            start, stop = shard.bounds(process)
            if main:
                for rows in whole[start:stop].split(ROWS_AT_ONCE):
                    received = torch.empty_like(rows, device=own.device)
                    dist.recv(received, process)
                    rows.copy_(received)
            elif process == self.accelerator.process_index:
                for rows in own.split(ROWS_AT_ONCE):
                    dist.send(rows.contiguous(), 0)
        return whole


class ShardedScorerModel:
    """A model with sharded tables as `ModelScorer` takes it; all processes must ask it together.

    The rows of a chunk of the catalog are sent to all of them when it is scored.
    """

    def __init__(self, shards: ItemShards):
        self.shards = shards
        self.config = shards.model.config

    def eval(self) -> "ShardedScorerModel":
        """Leave dropout out."""
        self.shards.model.eval()
        return self

    def next_item_states(self, input_ids: Tensor, **packing: Tensor | int) -> Tensor:
        """(batch, hidden) state of the mask at the end of each packed history."""
        with self.shards.fetched({"input_ids": input_ids}) as batch:
            return self.shards.model.next_item_states(**batch, **packing)

    def next_item_neighbors(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is mixed into the scores."""

    def read_head(self) -> "tuple[RemoteRows, RemoteRows | None]":
        """(vocab, hidden) rows whose products with the state score the items, (vocab,) bias."""
        weight, bias = self.shards.model.read_head()
        return RemoteRows(weight), None if bias is None else RemoteRows(bias)


class RemoteRows:
    """A sharded weight of which every process reads the same rows at the same time."""

    def __init__(self, weight: Tensor):
        self.weight, self.shard = weight.detach(), shard_of(weight)
        self.device = weight.device

    def __getitem__(self, rows: slice) -> Tensor:
        """The rows from start to stop, each from its owner."""
        found = self.weight.new_empty(rows.stop - rows.start, *self.weight.shape[1:])
        for process in range(self.shard.mesh.size()):
            first, end = self.shard.bounds(process)
            start, stop = max(rows.start, first), min(rows.stop, end)
            if start < stop:
                part = found[start - rows.start : stop - rows.start]
                if process == self.shard.mesh.get_local_rank():
                    part.copy_(self.weight[start - first : stop - first])
                dist.broadcast(part, process)
        return found


@dataclass(frozen=True)
class _Route:
    """Which rows go where in one step, so that the gradients find their way back."""

    asked: list[int]
    """Rows that this process asks each process for."""

    given: list[int]
    """Rows that each process asks this one for."""

    places: Tensor
    """(sum of given,) where those stand in the shard, in the order of the processes."""

    @classmethod
    def to_owners(cls, ids: Tensor, shard: RowShard) -> "_Route":
        """Tell each owner which of its rows are wanted.

        Args:
            ids: (rows,) different and sorted, so that those of an owner stand together.
            shard: Of the table that the ids are rows of.
        """
        asked = torch.bincount(ids // shard.run, minlength=shard.mesh.size())
        given = torch.empty_like(asked)
        dist.all_to_all_single(given, asked)
        asked, given = asked.tolist(), given.tolist()
        return cls(asked, given, exchange_rows(ids, asked, given) - shard.first)

    def fetch(self, rows: Tensor) -> Tensor:
        """(rows, …) those that were asked for, of the rows of all owners."""
        return exchange_rows(rows[self.places], self.given, self.asked)

    def send_back(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Where the gradients of all processes belong in the shard, and the gradients."""
        return self.places, exchange_rows(gradient, self.asked, self.given)


def add_gradient(weight: Tensor, places: Tensor, values: Tensor) -> None:
    """Add the mean over the processes to the gradient of a shard.

    It is row-sparse for a table, rows of zeros left out, as they have taken no part in the step;
    and dense for a bias, which is stepped whole.

    Args:
        weight: (rows, hidden) or (rows,)
        places: (values,) rows, each as often as processes have it.
        values: (values, hidden) or (values,)
    """
    values = values / shard_of(weight).mesh.size()
    if weight.ndim == 1:
        gradient = torch.zeros_like(weight).index_add_(0, places, values)
    else:
        rows = torch.sparse_coo_tensor(places[None], values, weight.shape, check_invariants=False)
        rows = rows.coalesce()
        is_touched = rows.values().any(dim=1)
        gradient = torch.sparse_coo_tensor(
            *(rows.indices()[:, is_touched], rows.values()[is_touched], weight.shape),
            is_coalesced=True,
            check_invariants=False,
        )
    weight.grad = gradient if weight.grad is None else weight.grad + gradient
