"""Work on many items, spread over processes, with the results in the items' order."""

import gc
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain
from multiprocessing import get_context
from operator import length_hint
from typing import TypeVar

from misc.errors import InputError
from misc.run.quota import cpu_quota
from misc.run.stopping import GRACE_SECONDS, end_workers, is_told, raise_if_told, stop_deferred, told

Item, Result = TypeVar("Item"), TypeVar("Result")

ITEMS_A_TASK = 64
"""Of `chunked_map`; so few are not worth a process."""
ITEMS_PER_WORKER = 2
"""Items under way for each process: one in work, one waiting, so that memory stays bounded."""
LONGEST_WAIT = 1.0
"""Seconds after which a wait looks whether the run was told to end."""


SECONDS_TO_END = 30
"""For a process without its torchrun, which itself waits as long for those that it tells to end."""
SHARE_GPUS = "WOOD_SHARE_GPUS"
"""The environment variable that lets processes share a GPU."""


def _number_of_start(variable: str, *, default: int, lowest: int) -> int:
    """A number that torchrun puts into the environment. Raises `InputError` for what is none."""
    text = os.environ.get(variable, str(default))
    if not text.isascii() or not text.isdecimal() or int(text) < lowest:
        raise InputError(
            f"{variable} is {text!r} in the environment; expected a number from {lowest} on, as torchrun sets it; "
            "unset it, or start the processes with torchrun."
        )
    return int(text)


def require_launched_rank() -> None:
    """Raise `InputError` unless torchrun, if it started this process, gave it a number below that of all."""
    number, count = _number_of_start("RANK", default=0, lowest=0), launched_processes()
    if number >= count > 1:
        raise InputError(
            f"RANK is {number} in the environment; expected a number below WORLD_SIZE, which is {count}: start the "
            "processes with torchrun."
        )


def launched_local_rank() -> int:
    """The number that torchrun gave this process among those on this machine; 0 without it."""
    return _number_of_start("LOCAL_RANK", default=0, lowest=0)


def launched_processes() -> int:
    """How many processes torchrun started, on all machines; 1 without it."""
    return _number_of_start("WORLD_SIZE", default=1, lowest=1)


def is_one_of_several() -> bool:
    """Whether torchrun started several processes, all of which it tells to end as soon as one of them has failed."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def launched_here() -> int:
    """How many processes torchrun started on this machine; 1 without it."""
    return _number_of_start("LOCAL_WORLD_SIZE", default=1, lowest=1)


def end_with_torchrun() -> None:
    """End this process soon after the torchrun that started it, if one did: it would go on writing beside the next run.

    It is told to end first, as torchrun itself tells it.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_when_left_by, args=(os.getppid(),), daemon=True).start()


def _end_when_left_by(parent: int) -> None:
    _wait_for_the_end_of(parent)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_END)
    os._exit(1)


def gpus_are_shared() -> bool:
    """Whether several processes may use one GPU, as the environment says: to try such a run where there is only one."""
    return os.environ.get(SHARE_GPUS) == "1"


def usable_cores() -> int:
    """The CPU cores that this process may use, at least one: processes that torchrun started share them.

    In a container these are those whose time it has, which may be fewer than it sees.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(seen, cpu_quota())) // launched_here())


SECONDS_BETWEEN_LOOKS = 1
"""Of a worker for its parent."""
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""Of all worker processes, those of PyTorch's loaders too. A fork needs no seconds to load the libraries again, and is
no longer what Python 3.14 does unless it is told to."""


def _prepare_worker() -> None:
    """One thread a process: the cores are shared out already. Ctrl-C is the parent's, which then ends its workers.

    A parent that is killed can't: a worker ends by itself when its parent is gone. What a fork has inherited is never
    collected as its garbage: the memory of the parent's CUDA can't be freed here, nor can its processes be ended.
    """
    gc.freeze()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the libraries that the first item loads
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # a fork has none of the threads that its copy of torch counts on
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with(parent: int) -> None:
    _wait_for_the_end_of(parent)
    os._exit(1)


def _wait_for_the_end_of(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _result_of(future: Future[Result]) -> Result:
    """What a process gives; waited for in parts.

    Python calls a signal's handler between two of its instructions: a wait without an end, that begins just when the
    signal comes, would miss it.
    """
    while not wait([future], timeout=LONGEST_WAIT).done:
        pass
    return future.result()


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    flag: str,
    start_method: str = START_METHOD,
) -> Iterator[Result]:
    """`map(function, items)` over `workers` processes; results come in order, each as soon as it and those before it
    are there.

    `items` is read only as far ahead as the processes need, so that it may be a generator of large arrays.

    Args:
        function: a module's own function, or `functools.partial` of one (it is sent to the processes).
        workers: processes, no more than there are items, where `items` tells how many; 0: this process does the work.
        flag: the flag that sets `workers`, named if a process is killed.
        start_method: of `multiprocessing`; `spawn` for a library whose threads a fork would lack, such as OpenCV.

    Raises what `function` raises, at that item's turn; `InputError` if a process is killed (mostly for its memory), and
    `Told` if it was told to end with the run.
    """
    if workers == 0:
        yield from map(function, items)
        return
    workers = min(workers, max(1, length_hint(items, workers)))  # a fork starts all of them at once
    pool = ProcessPoolExecutor(workers, mp_context=get_context(start_method), initializer=_prepare_worker)
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            with stop_deferred():  # an exception while it starts its processes would leave the pool in pieces
                under_way.append(pool.submit(function, item))
            raise_if_told()
            if len(under_way) == ITEMS_PER_WORKER * workers:
                yield _result_of(under_way.popleft())
        while under_way:
            yield _result_of(under_way.popleft())
    except BrokenProcessPool as error:
        if is_told(grace=GRACE_SECONDS):  # and so were its workers, which were first
            raise told() from error
        raise InputError(f"a worker process was killed, perhaps for lack of memory; lower --{flag}.") from error
    except (KeyboardInterrupt, GeneratorExit) as ended:
        if isinstance(ended, KeyboardInterrupt) or is_told():
            end_workers()  # an item under way may take long, and nobody waits for it
            pool.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _results_of(chunk: Sequence[Item], *, function: Callable[[Item], Result]) -> list[Result]:
    return [function(item) for item in chunk]


def chunked_map(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, flag: str
) -> Iterator[Result]:
    """`ordered_map` for items of little work, many of which make one task of a process."""
    chunks = [items[first : first + ITEMS_A_TASK] for first in range(0, len(items), ITEMS_A_TASK)]
    workers = workers if len(chunks) > 1 else 0
    return chain.from_iterable(ordered_map(partial(_results_of, function=function), chunks, workers=workers, flag=flag))
