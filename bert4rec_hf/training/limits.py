"""What the system allows a process: open files and memory, and what is said when they run out."""

from collections.abc import Iterator

import psutil
import torch

try:
    import resource
except ImportError:  # on Windows
    resource = None

FILES_AT_LEAST = 128
"""Open files of a run without workers, with room to spare."""

FILES_PER_WORKER = 64
"""Two batches on their way, a file for each tensor of both, and pipes."""


def raise_file_limit(num_workers: int) -> None:
    """Let this process open the files that loader workers take, where it may.

    Without them the workers would wait for ever, as each tensor on its way takes one.

    Raises:
        ValueError: The system allows fewer.
    """
    if resource is None or num_workers == 0:
        return
    needed = FILES_AT_LEAST + num_workers * FILES_PER_WORKER
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"data.num_workers is {num_workers}, which takes {needed} open files, and the system "
            f"allows {hard} (ulimit -Hn); raise the limit, or set data.num_workers to 0"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def address_space_room() -> Iterator[int]:
    """Bytes that this process may still ask for, where `ulimit -v` sets a limit."""
    if resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            yield max(0, soft - psutil.Process().memory_info().vms)


def describe_shortage(error: Exception) -> str:
    """Say what the system would not give; empty for errors of another kind."""
    text = str(error)
    first = text.splitlines()[0] if text else type(error).__name__
    allocators = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        said in text for said in allocators
    ):
        return (
            f"out of memory: {first}; free some and continue with --resume, or train with a "
            "smaller training.batch_size in a run of its own"
        )
    if "DataLoader worker" in text:
        return (
            f"{first}; continue with --resume, with a smaller data.num_workers if there was no "
            "memory for so many"
        )
    return ""
