"""Which rows of a weight a process owns, for those who write, read, cut or step the weight."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


@dataclass(frozen=True)
class RowShard:
    """Which rows of a tensor this process owns: equal runs, in the order of the processes."""

    num_rows: int
    """Of the whole tensor."""

    mesh: DeviceMesh

    @property
    def run(self) -> int:
        """Rows of each process but the last ones, as DTensor deals them out."""
        return -(-self.num_rows // self.mesh.size())

    def bounds(self, process: int) -> tuple[int, int]:
        """First row of a process, and one past its last."""
        return min(process * self.run, self.num_rows), min((process + 1) * self.run, self.num_rows)

    @property
    def first(self) -> int:
        """First row of this process."""
        return self.bounds(self.mesh.get_local_rank())[0]

    def show(self, rows: Tensor) -> DTensor:
        """The whole tensor of which this process has these rows; the same memory."""
        shape = (self.num_rows, *rows.shape[1:])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            rows.detach(), self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
        )


def shard_of(weight: Tensor) -> RowShard | None:
    """Which rows a weight holds; None if it is whole."""
    return getattr(weight, "row_shard", None)


def show_whole(weight: Tensor, tensor: Tensor) -> Tensor:
    """A weight, or what the optimizer keeps of each of its rows, in the shape of the whole table.

    Args:
        weight: Of a model; sharded or not.
        tensor: It, or one of its moments; what has no rows, or is whole, is returned as it is.
    """
    shard = shard_of(weight)
    return shard.show(tensor) if shard is not None and tensor.ndim else tensor
