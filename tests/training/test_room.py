import subprocess
import sys

import psutil

from bert4rec_hf.training.room import memory_room

LIMITED = """
import psutil, resource, sys
from bert4rec_hf.training.room import RESERVED_BYTES, memory_room
used = getattr(psutil.Process().memory_info(), sys.argv[2])
resource.setrlimit(getattr(resource, sys.argv[1]), (used + 2_300_000_000, resource.RLIM_INFINITY))
print(memory_room(), RESERVED_BYTES)
"""


def measure(*limit):
    command = [sys.executable, "-c", LIMITED, *limit]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


def test_the_room_is_what_the_tightest_limit_leaves():
    room, _ = measure("RLIMIT_DATA", "data")
    assert 2_000_000_000 < room <= 2_300_000_000
    room, reserved = measure("RLIMIT_AS", "vms")
    assert 2_000_000_000 < room + reserved <= 2_300_000_000


def test_without_a_limit_the_room_is_that_of_the_machine():
    assert 0 < memory_room() <= psutil.virtual_memory().total
