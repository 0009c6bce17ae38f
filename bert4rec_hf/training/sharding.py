"""FSDP2: each process keeps and steps a share of each weight, and gathers what it needs."""

import copy
import logging

from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils import swap_tensors

from bert4rec_hf.training.gradients import copy_from_main_process

logger = logging.getLogger(__name__)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether accelerate was launched with FSDP; `check_launch` lets no version but 2 pass."""
    return accelerator.distributed_type == DistributedType.FSDP


def find_units(model: nn.Module, accelerator: Accelerator) -> list[nn.Module]:
    """Parts that are gathered while they compute and no longer, by the launcher's wrap policy.

    Raises:
        ValueError: One of them holds the item table, which is read outside of it.
    """
    plugin = accelerator.state.fsdp_plugin
    # Made up now: `prepare` would look for the classes of parts that are sharded by then.
    plugin.set_auto_wrap_policy(model)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    units = [module for module in model.modules() if policy is not None and policy(module)]
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = [weight for layer in layers for weight in layer.parameters()]
    for unit in units:
        if any(weight is table for weight in unit.parameters() for table in tables):
            raise ValueError(
                f"fsdp_auto_wrap_policy makes a unit of {type(unit).__name__}, which holds the "
                "item table, and that is read by the head as well; use TRANSFORMER_BASED_WRAP "
                "and leave fsdp_transformer_layer_cls_to_wrap out"
            )
    return units


def shard_model(model: nn.Module, accelerator: Accelerator) -> None:
    """Leave each process its share of all weights, those that the main process has.

    The units go to the device and are dealt out one after the other. What is outside of them, the
    item table above all, is gathered for the whole step. Left to accelerate, it would be gathered
    when embedding or head are called, and our head is read, not called.

    Weights are gathered in single precision and cast by autocast in a mixed one: twice what would
    have to be sent, and just what is computed without sharding.
    """
    if getattr(model, "has_row_gradients", False):
        model.use_row_gradients(False)
        if accelerator.is_main_process:
            logger.info("training.row_sparse is ignored: under FSDP all gradients are dense")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    reshard = accelerator.state.fsdp_plugin.reshard_after_forward
    for unit in reversed(find_units(model, accelerator)):  # inner ones first
        _start_equal(unit, accelerator)
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard)
    _start_equal(model, accelerator)
    fully_shard(model, mesh=mesh)


def _start_equal(unit: nn.Module, accelerator: Accelerator) -> None:
    """Give what is not sharded yet the weights of the main process, on the device."""
    weights = [weight for weight in unit.parameters() if not isinstance(weight, DTensor)]
    for weight in weights:
        weight.data = weight.data.to(accelerator.device)
    copy_from_main_process(weights)


def prepare_shares(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer
) -> tuple[nn.Module, Optimizer]:
    """Prepare a model of `shard_model` and its optimizer.

    accelerate tells the parameters of the optimizer by their addresses, which all empty shares
    have in common: there are such where a weight has fewer rows than there are processes.
    """
    groups = [list(group["params"]) for group in optimizer.param_groups]
    model, optimizer = accelerator.prepare(model, optimizer)
    for group, weights in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = weights
    return model, optimizer


def outline(model: nn.Module) -> nn.Module:
    """Copy a model without its weights, which are on the meta device then."""
    bare = {
        id(weight): nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, bare)


def gather_model(bare: nn.Module, model: nn.Module) -> nn.Module:
    """Make an ordinary model of all shares, the same on every process.

    Args:
        bare: Its `outline`, taken before it was sharded.
        model: Unwrapped.
    """
    whole = copy.deepcopy(bare)
    for weight, share in zip(whole.parameters(), model.parameters(), strict=True):
        swap_tensors(weight, nn.Parameter(share.detach().full_tensor(), share.requires_grad))
    return whole.to(next(model.parameters()).device)  # buffers, which some adapters have
