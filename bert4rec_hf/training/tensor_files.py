"""Tensors in safetensors files; of what is sharded, each process writes and reads its own rows."""

from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor


def save_rows(
    tensors: dict[str, Tensor], folder: Path, kind: str, accelerator: Accelerator
) -> None:
    """Write what only this process has; the main process also what all have.

    torch's own checkpoints do the same, with two more copies of it in memory.
    """
    is_main = accelerator.is_main_process
    own = {
        name: _own_rows(each)
        for name, each in tensors.items()
        if is_main or isinstance(each, DTensor)
    }
    if own:
        save_file(
            {name: rows for name, (rows, _) in own.items()},
            folder / f"{kind}-{accelerator.process_index}.safetensors",
            metadata={name: str(first) for name, (_, first) in own.items()},
        )


def load_rows(checkpoint: Path, kind: str, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, or what this process has of them, from the files of all who wrote some.

    Raises:
        ValueError: The files hold less of a tensor, or more.
    """
    with ExitStack() as stack:
        paths = checkpoint.glob(f"{kind}-*.safetensors")
        files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
        for name, tensor in tensors.items():
            runs = [
                (int(begin), file.get_slice(name))
                for file in files
                if (begin := file.metadata().get(name)) is not None
            ]
            needed = tensor.shape[0] if tensor.shape else 1
            if (found := sum(run.get_shape()[0] for _, run in runs)) != needed:
                raise ValueError(
                    f"{checkpoint} holds {found} rows of {name} and {needed} are needed; a table "
                    "with row-sparse gradients goes on with FSDP only if it began with it, and "
                    "without only if it did so"
                )
            rows, first = _own_rows(tensor)
            for begin, run in runs:
                _copy_rows(rows, first, run, begin)


def _own_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """What a process has of a tensor, and where that begins: FSDP deals out equal runs of rows.

    Returns:
        (rows, …), a number as one row; and the place of the first.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach().view(tensor.shape or 1), 0
    mesh = tensor.device_mesh
    first = mesh.get_local_rank() * -(-len(tensor) // mesh.size())
    return tensor.detach().to_local(), min(first, len(tensor))


def _copy_rows(rows: Tensor, first: int, run: Tensor, begin: int) -> None:
    """Copy between two runs of rows of one tensor what they have in common.

    Args:
        rows: (rows, …) to be filled.
        first: Its place in the tensor.
        run: (rows, …) to be read, a slice of a file.
        begin: Its place in the tensor.
    """
    start, stop = max(first, begin), min(first + len(rows), begin + run.get_shape()[0])
    if start < stop:
        rows[start - first : stop - first] = run[start - begin : stop - begin]
