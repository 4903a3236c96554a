"""Freed memory is kept while light functions run, and for a second more; then it goes back."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own settings")

# In a process of its own: what others hold, and have freed, is no part of it.
SCRIPT = """
import numpy as np
import psutil
from millpond.engine import freed_memory
from millpond.engine.freed_memory import freed_memory_kept, give_back

freed_memory._AFTERWARDS_S = 3600.0  # It is called here instead.
process = psutil.Process()

def resident():
    return process.memory_info().rss

def batches():
    for array in [np.ones(1 << 17) for _ in range(200)]:  # 1 MiB each.
        array.sum()

batches()
before = resident()
with freed_memory_kept(), freed_memory_kept():
    batches()
    give_back()  # Of an earlier one, which came late.
    print((resident() - before) >> 20)
print((resident() - before) >> 20)
give_back()
print((resident() - before) >> 20)
"""


def test_it_is_kept_while_somebody_wants_it_and_then_given_back() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)

    meanwhile, afterwards, at_last = map(int, ran.stdout.split())
    assert meanwhile > 150
    assert afterwards > 150
    assert at_last < 20
