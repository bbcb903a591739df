"""Memory that freed tensors leave is used again."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import run_sample
from misc.run.memory import reset_peak_memory

ROOT = Path(run_sample.__file__).parent
# The C library's own account of its memory (mallinfo2(3)), since not every system counts page faults
MEMORY_AROUND_A_TENSOR = """
import ctypes, torch
from misc.run.memory import keep_freed_memory

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Mallinfo

def mapped_and_kept():
    before = library.mallinfo2()
    tensor = torch.ones(2**24)
    mapped = library.mallinfo2().hblkhd - before.hblkhd
    del tensor
    return mapped, library.mallinfo2().fordblks

print(*mapped_and_kept())
keep_freed_memory()
print(*mapped_and_kept())
"""


def test_a_gpu_is_in_use_before_its_peak_is_reset(monkeypatch):
    """PyTorch refuses the reset of one that nothing has used."""
    calls = []
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("reset"))
    reset_peak_memory(torch.device("cuda"))
    assert calls == ["init", "reset"]


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="of glibc 2.33")
def test_freed_memory_is_kept_instead_of_given_back():
    line = [sys.executable, "-c", MEMORY_AROUND_A_TENSOR]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT)
    (mapped, free), (mapped_if_kept, free_if_kept) = (map(int, row.split()) for row in done.stdout.splitlines())
    size = 4 * 2**24
    assert mapped >= size > free, "the C library gave the tensor a mapping of its own, and took it back"
    assert mapped_if_kept == 0, "the tensor has no mapping of its own"
    assert free_if_kept >= size, "its memory stays with the process"
