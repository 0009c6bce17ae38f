"""How much memory containers and job schedulers leave; the standard library is all it needs."""

from collections.abc import Iterator
from pathlib import Path


def cgroup_room(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """Bytes that containers and job schedulers leave to this process, limit by limit.

    Args:
        membership: Lists the groups of the process, in lines `number:controllers:path`.
        mount: Where groups are folders, those of version 1 below one for each controller.
    """
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage = mount, "memory.max", "memory.current"
        elif controllers == "memory":
            top, limit, usage = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # A container may see the path that its group has outside, and its own group on top.
        parts = Path(path).parts[1:]
        for depth in range(len(parts) + 1):
            group = top.joinpath(*parts[:depth])
            if (group / limit).exists() and (text := (group / limit).read_text().strip()) != "max":
                yield int(text) - int((group / usage).read_text()) + _cached_bytes(group)


def _cached_bytes(group: Path) -> int:
    """Contents of files that count as used, and yield to whoever needs the memory."""
    counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    # In version 1 the plain counts leave out the groups below.
    prefix = "total_" if "total_active_file" in counts else ""
    return int(counts[f"{prefix}active_file"]) + int(counts[f"{prefix}inactive_file"])
