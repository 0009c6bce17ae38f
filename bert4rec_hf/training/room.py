"""How much memory this process may still take."""

from collections.abc import Iterator

import psutil

from .limits import address_space_room, resource
from .memory import cgroup_room

RESERVED_BYTES = 1_000_000_000
"""Address space that allocators and threads ask for beyond what they fill; up to so much was seen
between the least `ulimit -v` with which a file was prepared and what that took."""


def memory_room() -> int:
    """Bytes that may still be taken, by the machine and by every limit that is set."""
    address_space = (room - RESERVED_BYTES for room in address_space_room())
    return min(psutil.virtual_memory().available, *cgroup_room(), *address_space, *data_room())


def data_room() -> Iterator[int]:
    """Bytes that this process may still ask for, where `ulimit -d` sets a limit."""
    if resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
        if soft != resource.RLIM_INFINITY:
            yield max(0, soft - psutil.Process().memory_info().data)
