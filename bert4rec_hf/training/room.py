"""How much memory this process may still take, told without torch, which takes a lot itself."""

from collections.abc import Iterator

import psutil

from .cgroups import cgroup_room

try:
    import resource
except ImportError:  # on Windows
    resource = None

RESERVED_BYTES = 1_000_000_000
"""Address space that allocators and threads ask for beyond what they fill; up to so much was seen
between the least `ulimit -v` with which a file was prepared and what that took."""


def memory_room() -> int:
    """Bytes that may still be taken, by the machine and by every limit that is set."""
    return min(psutil.virtual_memory().available, *cgroup_room(), *resource_room())


def resource_room() -> Iterator[int]:
    """Bytes that `ulimit` leaves to this process, limit by limit."""
    if resource is None:
        return
    held = psutil.Process().memory_info()
    limits = (
        (resource.RLIMIT_AS, held.vms + RESERVED_BYTES),
        (resource.RLIMIT_DATA, getattr(held, "data", 0)),
    )
    for limit, used in limits:
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield soft - used
