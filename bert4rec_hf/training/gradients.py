"""Row-sparse gradients among dense ones: their sum over processes, and their length."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from bert4rec_hf.training.row_shard import shard_of


def leave_out_of_ddp(model: nn.Module, tables: Sequence[Tensor]) -> None:
    """Keep DDP from reducing these parameters, as NCCL has no sum of sparse tensors.

    Nor does it send buffers at every step: each process has counted the same neighbors.
    """
    names = [
        name
        for name, weight in model.named_parameters(remove_duplicate=False)
        if any(weight is table for table in tables)
    ]
    names += [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)


@torch.no_grad()
def copy_from_main_process(tables: Sequence[Tensor]) -> None:
    """Start with the same weights everywhere, as DDP does with those that it looks after."""
    for table in tables:
        table.copy_(broadcast(table.detach()))


def average_rows(tables: Sequence[Tensor], accelerator: Accelerator) -> None:
    """Average row-sparse gradients over the processes, by sending rows and not tables."""
    for table in tables:
        if accelerator.num_processes == 1 or table.grad is None or not table.grad.is_sparse:
            continue
        grad = table.grad.coalesce()
        # Processes have different numbers of rows; -1 marks those that only fill up.
        rows = accelerator.pad_across_processes(grad.indices()[0], pad_index=-1)
        values = accelerator.pad_across_processes(grad.values())
        rows, values = accelerator.gather(rows), accelerator.gather(values)
        is_row = rows >= 0
        table.grad = torch.sparse_coo_tensor(
            rows[is_row].unsqueeze(0),
            values[is_row] / accelerator.num_processes,
            table.shape,
            check_invariants=True,
        ).coalesce()


def clip_gradients(
    parameters: Sequence[Tensor], max_norm: float, accelerator: Accelerator
) -> Tensor:
    """Cut the gradient of all parameters together to a length, row-sparse ones included.

    One whose length is not finite stays as it is.

    Returns:
        () the length that it had, the same on every process.
    """
    accelerator.unscale_gradients()
    if accelerator.distributed_type == DistributedType.FSDP:
        # Knows shares, and has no sparse ones to know.
        norm = clip_grad_norm_(parameters, max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm
    grads, sharded = [], []
    for weight in parameters:
        if weight.grad is None:
            continue
        if weight.grad.is_sparse:
            weight.grad = weight.grad.coalesce()
        own = weight.grad.values() if weight.grad.is_sparse else weight.grad
        (grads if shard_of(weight) is None else sharded).append(own)
    norm = torch.nn.utils.get_total_norm(grads)
    if sharded:
        of_shards = accelerator.reduce(torch.nn.utils.get_total_norm(sharded).square(), "sum")
        norm = (norm.square() + of_shards).sqrt()
    grads += sharded
    factor = max_norm / (norm + 1e-6)
    if norm.device.type != "cpu":
        torch._foreach_mul_(grads, factor.clamp(max=1.0))
    # On CPU it costs nothing to look, and a pass over all gradients not to.
    elif 0 < factor < 1:
        torch._foreach_mul_(grads, factor)
    return norm
