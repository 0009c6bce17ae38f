"""How much memory this process has held; the standard library is all it needs."""

import re
import resource
import sys
from pathlib import Path


def peak_resident_bytes() -> int:
    """Most bytes that this process has held in memory so far, libraries included."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux the number of getrusage can be that of the parent process
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
