"""Work spread over processes: order, bounded look-ahead, errors."""

import functools
import multiprocessing as mp
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from misc.errors import InputError
from misc.run import parallel
from misc.run.parallel import ITEMS_PER_WORKER, ordered_map, usable_cores
from misc.run.stopping import Told


def slow_first(base, item):
    time.sleep(0.2 if item == 0 else 0)
    return base + item


def refuse_two(item):
    if item == 2:
        raise InputError("item 2 is bad.")
    return item


def process_and_threads(_item):
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def end_the_process(_item):
    os._exit(1)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_order(workers):
    assert list(ordered_map(functools.partial(slow_first, 10), range(9), workers=workers, flag="w")) == [*range(10, 19)]


def test_other_processes_do_the_work_with_one_thread_each():
    (found,) = ordered_map(process_and_threads, [0], workers=1, flag="w")
    assert found[0] != os.getpid()
    assert found[1] == "1"


def test_items_are_read_no_further_ahead_than_needed():
    read = []
    results = ordered_map(
        functools.partial(slow_first, 0), (read.append(i) or i for i in range(50)), workers=2, flag="w"
    )
    for done, _ in enumerate(results, start=1):
        assert len(read) <= done - 1 + 2 * ITEMS_PER_WORKER
    assert len(read) == 50


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_at_its_items_turn_and_ends_the_work(workers):
    results = ordered_map(refuse_two, range(100), workers=workers, flag="w")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(InputError, match="item 2 is bad"):
        next(results)
    assert list(results) == []


def test_a_killed_process_is_one_sentence():
    with pytest.raises(InputError, match="a worker process was killed, .* lower --crf_workers"):
        list(ordered_map(end_the_process, range(3), workers=1, flag="crf_workers"))


def test_processes_that_were_told_to_end_with_the_run_are_not_said_to_lack_memory(monkeypatch):
    """A signal to the whole group, as from a terminal or a cluster, may reach a worker first."""
    monkeypatch.setattr(parallel, "is_told", lambda grace=0: grace > 0)
    monkeypatch.setattr(parallel, "told", lambda: Told(signal.SIGTERM))
    with pytest.raises(Told):
        list(ordered_map(end_the_process, range(3), workers=1, flag="crf_workers"))


def run_until_killed(path):
    """Work that never ends."""
    list(ordered_map(functools.partial(tell_and_sleep, path), [0], workers=1, flag="w"))


def tell_and_sleep(path, _item):
    path.write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_of_a_killed_process_end(tmp_path):
    path = tmp_path / "pid"
    parent = mp.get_context("fork").Process(target=run_until_killed, args=(path,))
    parent.start()
    wait_until(lambda: path.is_file() and path.read_text())
    parent.kill()
    parent.join()
    wait_until(lambda: not is_running(path.read_text()))


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_usable_cores():
    assert 1 <= usable_cores() <= os.cpu_count()


def threaded_sum(item):
    return int((torch.ones(2000, 1000) * item).sum())


def test_torch_works_in_a_process_whose_parent_has_used_threads():
    assert threaded_sum(1) == 2_000_000
    assert list(ordered_map(threaded_sum, range(1, 4), workers=2, flag="w")) == [2_000_000, 4_000_000, 6_000_000]
