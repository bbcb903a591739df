"""Gradients of three processes, summed while the backward pass runs: `test_distributed.py` starts it by torchrun."""

import time
import weakref
from collections.abc import Collection

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.checkpoint import checkpoint

from misc.errors import InputError
from misc.run import distributed
from misc.run.distributed import GradientSums

N_LAYERS, LAYER_BYTES = 6, 4 * (8 * 8 + 8)
EVENTS: list[str] = []
all_reduce = dist.all_reduce


def told_all_reduce(*args, **kwargs):
    EVENTS.append("sent")
    return all_reduce(*args, **kwargs)


def make_layers() -> nn.Sequential:
    """Layers that tell when the backward pass is at them."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(N_LAYERS)))
    for number, layer in enumerate(layers):
        layer.weight.register_hook(lambda gradient, number=number: EVENTS.append(f"layer {number}"))
    return layers


def backward(layers: nn.Sequential, *, n_passes: int = 1, skipped: Collection[int] = ()) -> None:
    """Of a loss of this process's own data, through the layers that are not skipped."""
    torch.manual_seed(distributed.rank())
    used = nn.Sequential(*(layer for number, layer in enumerate(layers) if number not in skipped))
    for _ in range(n_passes):
        used(torch.randn(5, 8)).square().sum().backward()


def taken(layers: nn.Sequential) -> list[Tensor | None]:
    """The gradients, which the layers then no longer have."""
    given = [p.grad for p in layers.parameters()]
    layers.zero_grad()
    return given


def flat(layers: nn.Sequential, given: list[Tensor | None]) -> Tensor:
    pairs = zip(layers.parameters(), given, strict=True)
    return torch.cat([(torch.zeros_like(p) if gradient is None else gradient).flatten() for p, gradient in pairs])


def in_one_transfer(layers: nn.Sequential, **how) -> Tensor:
    """The sums, by one transfer after the backward pass."""
    backward(layers, **how)
    total = flat(layers, taken(layers))
    all_reduce(total)
    return total


def in_buckets(layers: nn.Sequential, bucket_bytes: int, *, n_passes: int = 1, **how) -> list[Tensor | None]:
    EVENTS.clear()
    optimizer = torch.optim.SGD(layers.parameters())
    with GradientSums(optimizer, n_passes=n_passes, bucket_bytes=bucket_bytes) as sums:
        backward(layers, n_passes=n_passes, **how)
        sums.finish()
    return taken(layers)


def assert_equal_sums(layers: nn.Sequential, given: list[Tensor | None], expected: Tensor) -> None:
    assert torch.allclose(flat(layers, given), expected, rtol=1e-6, atol=1e-6)


def check_buckets(layers: nn.Sequential) -> None:
    expected = in_one_transfer(layers)
    for n_layers in (1, 2, 4, N_LAYERS):
        assert_equal_sums(layers, in_buckets(layers, n_layers * LAYER_BYTES), expected)
        assert EVENTS.count("sent") == -(-N_LAYERS // n_layers)
        if n_layers < N_LAYERS:
            assert EVENTS.index("sent") < EVENTS.index("layer 0"), "sent while the backward pass runs"
        assert not layers[0].weight._post_accumulate_grad_hooks, "the parameters are let go"


def check_that_the_sums_are_waited_for(layers: nn.Sequential) -> None:
    expected = in_one_transfer(layers)
    late = layers[-1].weight.register_hook(lambda gradient: time.sleep(0.3 * (distributed.rank() == 1)))
    assert_equal_sums(layers, in_buckets(layers, LAYER_BYTES), expected)
    late.remove()


def check_several_passes(layers: nn.Sequential) -> None:
    expected = in_one_transfer(layers, n_passes=3)
    assert_equal_sums(layers, in_buckets(layers, LAYER_BYTES, n_passes=3), expected)
    assert EVENTS.index("sent") > 2 * N_LAYERS, "in the last pass"


def check_layers_without_a_gradient(layers: nn.Sequential) -> None:
    """Others in each process, and one in all; of buckets that end within a layer, too."""
    skipped = ({4, 2}, {4, 5, 0}, {4})[distributed.rank()]
    expected = in_one_transfer(layers, skipped=skipped)
    for bucket_bytes in (1, 100, LAYER_BYTES, 3 * LAYER_BYTES, 2**20):
        given = in_buckets(layers, bucket_bytes, skipped=skipped)
        assert [gradient is None for gradient in given] == [number // 2 == 4 for number in range(2 * N_LAYERS)]
        assert_equal_sums(layers, given, expected)


def check_odd_parameters() -> None:
    """Transposed, frozen and never used ones, over two steps."""
    weight = nn.Parameter(torch.ones(2, 2).T)
    others = [nn.Parameter(torch.ones(1), requires_grad=False), nn.Parameter(torch.ones(1))]
    with GradientSums(torch.optim.SGD([weight, *others])) as sums:
        for _ in range(2):
            weight.grad = None
            (weight * torch.tensor([[0.0, 1.0], [2.0, distributed.rank()]])).sum().backward()
            sums.finish()
            assert weight.grad.tolist() == [[0, 3], [6, 3]]
    assert [p.grad for p in others] == [None, None]


def check_gradients_in_parts() -> None:
    weight, x = nn.Parameter(torch.eye(2)), torch.ones(2, requires_grad=True)
    with GradientSums(torch.optim.SGD([weight])), pytest.raises(InputError, match="use_reentrant=False"):
        sum(checkpoint(lambda v: weight @ v, x, use_reentrant=True) for _ in range(2)).sum().backward()


if __name__ == "__main__":
    dist.all_reduce = told_all_reduce
    with distributed.process_group(lambda: torch.device("cpu")):
        assert distributed.n_processes() == 3
        group = weakref.ref(dist.group.WORLD)
        layers = make_layers()
        check_buckets(layers)
        check_that_the_sums_are_waited_for(layers)
        check_several_passes(layers)
        check_layers_without_a_gradient(layers)
        check_odd_parameters()
        check_gradients_in_parts()
    assert group() is None, "its threads would live until the exit, which they can abort"
