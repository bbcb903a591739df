"""A run in several processes, as torchrun starts them: who does what, and sums over all of them.

Results are those of one process, up to the rounding of sums. A batch has the size that the flags say, whatever the
number of processes, and each of these takes its `share` of the images. What a loss needs of the whole batch is summed
over the processes, so that each computes the loss of the whole batch; their gradients, each of its own images, add up
to that loss's gradient.

Without torchrun a run is one process, and these functions pass on what they are given. In several, all of them must be
called by every process, in the same order.
"""

import gc
import hashlib
import importlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from misc.errors import FoundByOne, InputError, ProcessLost, message_of, reason_of
from misc.run.limits import lacks_memory
from misc.run.parallel import end_with_torchrun, gpus_are_shared, launched_processes, require_launched_rank

Items = TypeVar("Items", bound=Sequence)

PATIENCE = timedelta(days=7)
"""How long a process waits for another, which may have hours of work alone (reading every image of a list)."""
GPU_PATIENCE = timedelta(minutes=30)
"""The same for sums on GPUs, to which all processes come after equal work: one that does not come is gone."""
PATIENCE_TO_MEET = timedelta(minutes=10)
"""How long a process waits until all have begun."""
PATIENCE_TO_CONNECT = timedelta(minutes=1)
"""How long it then waits for a connection with each of them; five times as long, as Gloo has it, for one that the other
has to begin."""
BUCKET_BYTES = 25 * 2**20
"""Of gradients that are summed in one transfer, as PyTorch's DistributedDataParallel has it."""
INTERFACE = "GLOO_SOCKET_IFNAME"
"""The environment variable that names Gloo's network interface; without it that of the machine's own name, which on
some systems leads to the machine itself alone."""
NCCL_SAYS_LAST = "Last error:"
"""What its messages name the reason after."""

_group: dist.ProcessGroup | None = None
"""Of Gloo, for all that is not `_gpu_group`'s."""
_gpu_group: dist.ProcessGroup | None = None
"""Of NCCL, for tensors on GPUs, where these are not shared."""


def sums_by_nccl(device: torch.device) -> bool:
    """Whether tensors on `device` are summed by NCCL, which refuses two processes on one GPU, and not by Gloo.

    A collective of Gloo's is done when it returns; NCCL leaves it to the GPU.
    """
    return device.type == "cuda" and not gpus_are_shared()


@contextmanager
def process_group(prepare: Callable[[], torch.device]) -> Iterator[torch.device]:
    """Join the processes that torchrun started; without it nothing is joined. Yields the device of this process.

    `prepare` finds it, and what must be in place before anything else. What it raises in any process, on whatever
    machine, ends all of them: that one (the first of several) with its error, the others with `ProcessLost`.
    Raises `InputError` for an environment by which the processes can't meet. After an error this process keeps its
    connections, and should end.
    """
    global _group, _gpu_group
    if launched_processes() == 1:
        yield prepare()
        return
    require_launched_rank()
    end_with_torchrun()
    device, problem = torch.device("cpu"), None
    try:
        device = prepare()
    except Exception as error:  # to be raised by this process, when the others know
        problem = error
    # Functions of this module keep the group that exists when it is imported, with its threads, for good, and PyTorch's
    # optimisers import it. Such a thread can abort the process when it ends, although the run has succeeded.
    importlib.import_module("torch.distributed.nn.functional")
    _connect("cpu:gloo,cuda:gloo" if device.type == "cuda" else "cpu:gloo")
    try:
        _group = _collective(dist.new_group, timeout=PATIENCE)
        _require_all_prepared(device, problem)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if sums_by_nccl(device):
            _gpu_group = _collective(dist.new_group, backend="nccl", timeout=GPU_PATIENCE)
        yield device
        # Not after a failure: the others would see this process's end, and torchrun would tell it to end, before it has
        # said why; and NCCL could wait for a process that is gone.
        dist.destroy_process_group()
        gc.collect()  # a cycle that holds the group would keep its threads as well
    finally:
        _group = _gpu_group = None


def _connect(backends: str) -> None:
    """Make the group of all processes, by the environment's account of them.

    Raises `FoundByOne` where they can't meet, or can't reach each other: each finds that at a time of its own, and
    waits no longer than a few minutes, since the others can't tell it.
    """
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=PATIENCE_TO_MEET))
        # After a restart torchrun may hand out the store of the start before, which holds the addresses of the dead.
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"start_{start}", store)
        if store.add("arrived", 1) >= count:
            store.set("all_arrived", "")
        store.wait(["all_arrived"], PATIENCE_TO_MEET)
    except (ValueError, RuntimeError) as error:
        raise FoundByOne(
            f"the {launched_processes()} processes of WORLD_SIZE can't meet ({reason_of(error)}); start them with "
            "torchrun, or unset WORLD_SIZE for a run in one process."
        ) from error
    store.set_timeout(PATIENCE)
    try:
        dist.init_process_group(backends, store=store, rank=number, world_size=count, timeout=PATIENCE_TO_CONNECT)
    except (ValueError, RuntimeError) as error:
        if lacks_memory(error):
            raise
        raise FoundByOne(
            f"the {count} processes have met and can't connect to each other ({reason_of(error)}); if none of them "
            f"has ended meanwhile, name in {INTERFACE} on each machine the network interface by which it reaches the "
            "others (`ip -brief address` lists them)."
        ) from error


def _require_all_prepared(device: torch.device, problem: Exception | None) -> None:
    """Raise `problem` in the first process that has one, and `ProcessLost` in all others if any has one.

    Raises `InputError` in all processes if some are on GPUs and others are not.
    """
    before_the_last = 0 if problem is None else n_processes() - rank()  # the more, the lower the rank
    most, has_gpu, has_none = max_over_processes(
        torch.tensor([before_the_last, device.type == "cuda", device.type != "cuda"]).int()
    ).tolist()
    if most and most != before_the_last:
        raise ProcessLost("another process found bad input")
    if isinstance(problem, InputError):
        raise FoundByOne(message_of(problem)) from problem
    if problem is not None:
        raise problem
    if has_gpu and has_none:
        raise InputError(
            "--device auto: some of the processes have a GPU and others have none; start them on machines that all "
            "have GPUs, or pass --device cpu."
        )


def n_processes() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first_process() -> bool:
    """Whether this process is the one that writes logs, weights and scores."""
    return rank() == 0


def share(items: Items) -> Items:
    """This process's items: every n-th of n processes."""
    return items[rank() :: n_processes()]


def _collective(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function of torch.distributed returns. Raises `ProcessLost` where the others can't be reached."""
    try:
        return function(*args, **kwargs)
    except RuntimeError as error:
        if lacks_memory(error):
            raise
        reason = reason_of(RuntimeError(str(error).rpartition(NCCL_SAYS_LAST)[-1]))
        raise ProcessLost(f"the other processes can't be reached ({reason})") from error


def _group_of(x: Tensor) -> dist.ProcessGroup | None:
    """The group that sums tensors on this device."""
    return _gpu_group if x.device.type == "cuda" and _gpu_group else _group


def _all_reduce(x: Tensor, **options: Any) -> Any:
    return _collective(dist.all_reduce, x, group=_group_of(x), **options)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        _all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum over processes of tensors of one shape. Its gradient is that of this process's own summand."""
    return x if n_processes() == 1 else _Sum.apply(x)


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of all elements of all processes' tensors (of any number of elements); gradient as in a sum."""
    if n_processes() == 1:
        return values.mean()
    count = torch.full((), values.numel(), dtype=values.dtype, device=values.device)
    total, n_elements = sum_over_processes(torch.stack([values.sum(), count]))
    return total / n_elements


def max_over_processes(x: Tensor) -> Tensor:
    """The elementwise maximum over processes, without a gradient."""
    x = x.detach()
    if n_processes() > 1:
        x = x.clone()
        _all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def gather_shares(rows: Tensor) -> Tensor:
    """Each process's (n, ...) rows of its `share` of items -> (N, ...): those of all items, in their order."""
    if n_processes() == 1:
        return rows
    n_rows = int(sum_over_processes(torch.tensor(len(rows))))
    missing = math.ceil(n_rows / n_processes()) - len(rows)
    padded = torch.cat([rows, rows.new_zeros((missing, *rows.shape[1:]))])
    gathered = [torch.empty_like(padded) for _ in range(n_processes())]
    _collective(dist.all_gather, gathered, padded, group=_group_of(padded))
    return torch.stack(gathered, dim=1).flatten(0, 1)[:n_rows]


class GradientSums:
    """Replaces the gradients of an optimiser's parameters by their sums over processes, in the backward pass already.

    The parameters are shared out to buckets, the last one first, as their gradients arrive. A bucket is sent when its
    last gradient is there, while the backward pass goes on to the layers before. Every process sends all buckets in one
    order, also those that lack a gradient, which then counts as zero; a parameter that no process has a gradient for
    is left without one. For use in a `with` statement, at whose end the parameters are let go.

    Args:
        n_passes: backward passes for each step, over which the gradients add up.
        bucket_bytes: from which size on a bucket is full.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, n_passes: int = 1, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self._n_passes = n_passes
        self._buckets = _buckets_of(trained[::-1], bucket_bytes) if n_processes() > 1 else []
        self._number_of = {p: number for number, bucket in enumerate(self._buckets) for p in bucket}
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._number_of]
        self._begin_step()

    def __enter__(self) -> "GradientSums":
        return self

    def __exit__(self, *raised: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin_step(self) -> None:
        self._n_arrived: Counter[Tensor] = Counter()
        self._n_awaited = [self._n_passes * len(bucket) for bucket in self._buckets]
        self._sent: list[tuple[Tensor, dist.Work]] = []

    def _arrived(self, parameter: Tensor) -> None:
        """Called by the backward pass when it has added to a parameter's gradient."""
        self._n_arrived[parameter] += 1
        if self._n_arrived[parameter] > self._n_passes:
            raise InputError(
                "the network's backward pass gives a parameter its gradient in several parts, which several processes "
                "can't sum; if it uses torch.utils.checkpoint, pass use_reentrant=False there."
            )
        self._n_awaited[self._number_of[parameter]] -= 1
        while len(self._sent) < len(self._buckets) and self._n_awaited[len(self._sent)] == 0:
            self._send_next()

    def _send_next(self) -> None:
        bucket = self._buckets[len(self._sent)]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        is_given = gradients[0].new_ones(len(bucket))
        for number, parameter in enumerate(bucket):
            if parameter.grad is None:
                is_given[number] = 0
        total = torch.cat([*(gradient.flatten() for gradient in gradients), is_given])
        self._sent.append((total, _all_reduce(total, async_op=True)))

    def finish(self) -> None:
        """Return when the gradients are the sums; to be called by every process, before the optimiser's step."""
        while len(self._sent) < len(self._buckets):
            self._send_next()
        for bucket, (total, transfer) in zip(self._buckets, self._sent, strict=True):
            _collective(transfer.wait)
            *sums, n_given = total.split([*(p.numel() for p in bucket), len(bucket)])
            for number, (parameter, gradient) in enumerate(zip(bucket, sums, strict=True)):
                # Only a process that lacks the gradient has to read, and so to wait, whether another one has it
                if parameter.grad is None and n_given[number] > 0:
                    parameter.grad = torch.zeros_like(parameter)
                if parameter.grad is not None:
                    parameter.grad.copy_(gradient.view_as(parameter))
        self._begin_step()


def _buckets_of(parameters: Iterable[Tensor], bucket_bytes: int) -> list[list[Tensor]]:
    """The parameters in groups, each of which is full, but for the last one."""
    buckets: list[list[Tensor]] = []
    free = 0
    for parameter in parameters:
        if free <= 0:
            buckets.append([])
            free = bucket_bytes
        buckets[-1].append(parameter)
        free -= parameter.nbytes
    return buckets


def require_equal(text: str, *, name: str) -> None:
    """Raise `InputError`, in every process, unless all have the same `text`: what `name` is determined by."""
    if n_processes() == 1:
        return
    digest = torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8).int()
    if not torch.equal(max_over_processes(digest), -max_over_processes(-digest)):
        raise InputError(
            f"{name}: the processes see different files (data, starting weights or saved states); give all machines "
            "the same files and one --result_dir that they share."
        )


def on_first_process(function: Callable[..., Any], *args: Any) -> None:
    """When every process has come here, let the first one call a function while the others wait for it.

    Raises what the function raises; in the others `ProcessLost`.
    """
    if n_processes() == 1:
        function(*args)
        return
    wait_for_all()
    failed, fine = torch.tensor(1), torch.tensor(0)
    if is_first_process():
        try:
            function(*args)
        except InputError:
            max_over_processes(failed)
            raise
    if max_over_processes(fine):
        raise ProcessLost("the first process found bad input")


def first_process_says(question: Callable[[], bool]) -> bool:
    """The first process's answer to a question, in every process. Raises as `on_first_process` does."""
    answers: list[bool] = []
    on_first_process(lambda: answers.append(question()))
    return bool(max_over_processes(torch.tensor(int(any(answers)))))


def wait_for_all() -> None:
    """Return when every process has come here. Raises `ProcessLost` where one is gone.

    Also to be called before a sum on GPUs that follows work of its own in each process: Gloo notices at once who is
    gone meanwhile, NCCL after `GPU_PATIENCE`.
    """
    sum_over_processes(torch.tensor(0))
