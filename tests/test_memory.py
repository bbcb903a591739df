"""Memory that freed tensors leave is used again."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

import run_sample

ROOT = Path(run_sample.__file__).parent
FAULTS_OF_THE_SAME_WORK = """
import resource, torch
from misc.memory import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**22) + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
page_faults()
usual = page_faults()
keep_freed_memory()
page_faults()
print(usual, page_faults())
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="of glibc")
def test_kept_memory_is_not_mapped_anew():
    line = [sys.executable, "-c", FAULTS_OF_THE_SAME_WORK]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT)
    usual, kept = map(int, done.stdout.split())
    assert kept < usual / 10
