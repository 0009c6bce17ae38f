import subprocess
import sys

import psutil

from bert4rec_hf.training.process_memory import peak_resident_bytes

HOLD_AND_LET_GO = """
import psutil
from bert4rec_hf.training.process_memory import peak_resident_bytes
before = peak_resident_bytes()
block = bytearray(b"x") * 50_000_000
del block
print(peak_resident_bytes() - before, psutil.Process().memory_info().rss)
"""


def test_what_was_let_go_counts_and_what_the_parent_holds_does_not():
    block = bytearray(b"x") * 300_000_000
    done = subprocess.run(
        [sys.executable, "-c", HOLD_AND_LET_GO], capture_output=True, text=True, check=True
    )
    grown, resident = map(int, done.stdout.split())
    assert 45e6 < grown < 75e6
    assert resident < 100e6
    assert peak_resident_bytes() >= len(block)
    assert peak_resident_bytes() >= 0.9 * psutil.Process().memory_info().rss
