"""The GPU memory that each step takes at its peak: `python benchmarks/count_memory.py [FLAGS OF run_sample.py]`.

Each step's own networks, losses and optimiser run on the meta device, which computes nothing and needs neither data
nor a GPU, while every tensor is counted from when it is made until nothing holds it: weights, gradients, momentum, what
the backward pass keeps, inputs and intermediate results. Flags change the settings; without any, they are the defaults
on CUDA.

Not counted, because no tensor holds it: what cuDNN takes for its algorithms, gaps between the blocks that the allocator
keeps, and CUDA itself, some hundred MiB. Nor are the random walk and dense CRF, whose size depends on the image alone.
All is in float32; with `--precision bf16` backbones keep about half for the backward pass.

`--write` makes the table from which the plan of a run tells these numbers, for the project's own networks. `--measure`
also runs the same steps on a GPU, with random weights, and adds what PyTorch's allocator gave out there at the peak,
and what it held of the GPU's memory.
"""

import csv
import importlib
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.count_flops import AVERAGE_SIZE
from benchmarks.measure import release_memory
from misc.advcam import LARGEST_BATCH, SCALES, advcam_batch
from misc.cam import batch_scale_maps
from misc.classifier import classification_losses
from misc.deeplab import deeplab_optimizer, multiscale_losses
from misc.errors import InputError
from misc.ood import wood_losses
from misc.run.config import STEP_MODULES, Config, parse_config
from misc.run.device import one_size, resolve_device, set_precision
from misc.run.gpu_memory import COLUMNS, TABLE, Moment, RunBatches
from misc.run.memory import reset_peak_memory
from misc.segmentation import pixel_probabilities
from misc.torchutils import two_rate_optimizer
from net.build import build_network
from net.deeplab import MultiScale, Segmenter
from voc12.classes import VOC_CLASSES, names_with_background
from voc12.inference import DEVICE_BATCH

BLOCK = 512
"""Bytes to which CUDA's allocator rounds."""
STEPS_RUN = 2
"""Of a training: the optimiser's momentum is there from the second on."""
GIB = 2**30
MEASURED = ("on a GPU: given out, GiB", "held, GiB")


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made in the block, and of those that are named to it: `now`, `peak`."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()
        for network in networks:
            for tensor in (*network.parameters(), *network.buffers()):
                self._count(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, n_bytes = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += n_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, n_bytes).atexit = False  # called when no tensor holds it any more

    def _freed(self, key: int, n_bytes: int) -> None:
        self._alive.discard(key)
        self.now -= n_bytes


def training_peak(network: nn.Module, optimizer_of: Callable, loss_of: Callable[[], Tensor]) -> int:
    """Bytes at the peak of the first steps of a training."""
    network.train()
    optimizer = optimizer_of(*network.trainable_parameters(), lr=0.1, weight_decay=1e-4, max_step=STEPS_RUN + 1)
    with PeakMemory(network) as memory, one_size():
        for _ in range(STEPS_RUN):
            optimizer.zero_grad(set_to_none=True)
            loss_of().backward()
            optimizer.step()
    return memory.peak


def inference_peak(network: nn.Module, compute: Callable[[], object]) -> int:
    """Bytes at the peak of a call."""
    network.eval()
    with torch.no_grad(), PeakMemory(network) as memory:
        compute()
    return memory.peak


def _images(n: int, size: Sequence[int]) -> Tensor:
    return torch.zeros(n, 3, *size)


def train_classifier(config: Config) -> int:
    """A batch of crops."""
    network = build_network(config.cam_network, "Net", n_classes=len(VOC_CLASSES))
    n, side = config.cam_batch_size, [config.cam_crop_size] * 2

    def loss() -> Tensor:
        return classification_losses(network, _images(n, side), torch.zeros(n, len(VOC_CLASSES))).mean()

    return training_peak(network, two_rate_optimizer, loss)


def train_cam(config: Config) -> int:
    """A batch of crops and, where they are used, one of OoD images."""
    network = build_network(config.cam_network, "Net", n_classes=len(VOC_CLASSES))
    n, side = config.cam_batch_size, [config.cam_crop_size] * 2
    # Without prototypes: these, and distances of pooled features, are small
    settings = {"ood_coeff": config.ood_coeff, "distance_lambda": 0, "topk": 0, "step": config.ood_adv_step}

    def loss() -> Tensor:
        given = {"ood_images": _images(config.ood_batch_size, side) if config.ood_coeff > 0 else None}
        labels = torch.zeros(n, len(VOC_CLASSES))
        return wood_losses(network, _images(n, side), labels, prototypes=None, ignore_class=None, **given, **settings)[
            "total"
        ]

    return training_peak(network, two_rate_optimizer, loss)


def make_cam(config: Config) -> int:
    """A batch of photographs at all scales."""
    network = build_network(config.cam_network, "CAM", n_classes=len(VOC_CLASSES))
    sizes = [[round(side * scale) for side in AVERAGE_SIZE] for scale in config.cam_scales]

    def compute() -> object:
        images = [_images(config.make_cam_batch_size, size).to(torch.uint8) for size in sizes]
        return batch_scale_maps(network, images)

    return inference_peak(network, compute)


def make_advcam(config: Config) -> int:
    """A batch of (image, class) pairs; where the flag is 0, the largest of CUDA."""
    network = build_network(config.cam_network, "CAM", n_classes=len(VOC_CLASSES)).requires_grad_(False)
    n = config.advcam_batch_size or LARGEST_BATCH

    def compute() -> object:
        pairs = {scale: _images(2, [round(side * scale) for side in AVERAGE_SIZE]) for scale in SCALES}
        return advcam_batch(
            network,
            [pairs] * n,
            AVERAGE_SIZE,
            [[0]] * n,
            n_iter=2,
            coefficient=config.AD_coeff,
            step=config.AD_stepsize,
            score_threshold=config.score_th,
            batch_size=n,
        )

    return inference_peak(network, compute)


def train_irn(config: Config) -> int:
    """A batch of crops with their pair labels."""
    network = build_network(config.irn_network, "AffinityDisplacementLoss")
    n, side = config.irn_batch_size, config.irn_crop_size

    def loss() -> Tensor:
        return network(_images(n, [side] * 2), torch.zeros(n, side // 4, side // 4, dtype=torch.uint8))["total"]

    return training_peak(network, two_rate_optimizer, loss)


def irn_inference(config: Config) -> int:
    """A batch of photographs with their mirror images; where the flag is 0, that of CUDA."""
    network = build_network(config.irn_network, "EdgeDisplacement")
    n = config.irn_infer_batch_size or DEVICE_BATCH

    def compute() -> object:
        pairs = [_images(2, AVERAGE_SIZE) for _ in range(n)]
        return network.batch(pairs) if n > 1 else network(pairs[0])

    return inference_peak(network, compute)


def _deeplab(config: Config) -> nn.Module:
    return build_network(config.deeplab_network, "DeepLab", n_classes=len(names_with_background(VOC_CLASSES)))


def train_deeplab(config: Config) -> int:
    """A batch of crops at three scales."""
    network = _deeplab(config)
    n, side = config.deeplab_batch_size, [config.deeplab_crop_size] * 2

    def loss() -> Tensor:
        logits = MultiScale(network).scale_logits(_images(n, side))
        return multiscale_losses(logits, torch.zeros(n, *side, dtype=torch.uint8), loss=config.deeplab_loss)["total"]

    return training_peak(network, deeplab_optimizer, loss)


def eval_deeplab(config: Config) -> int:
    """A photograph at three scales, up to the probabilities of its pixels."""
    network = Segmenter(MultiScale(_deeplab(config)))
    image = partial(torch.zeros, 3, *AVERAGE_SIZE, dtype=torch.uint8)
    return inference_peak(network, lambda: pixel_probabilities(network, image()))


STEPS: Mapping[str, Callable[[Config], int]] = {
    "train_classifier": train_classifier,
    "train_cam": train_cam,
    "make_cam": make_cam,
    "make_advcam": make_advcam,
    "train_irn": train_irn,
    "make_sem_seg, make_ins_seg: IRN": irn_inference,
    "train_deeplab": train_deeplab,
    "eval_deeplab, predict": eval_deeplab,
}


OWN_NETWORKS = {
    "cam_network": ("net.resnet50_cam", "net.resnet18_cam", "net.efficientnet_lite0_cam"),
    "irn_network": ("net.resnet50_irn", "net.resnet18_irn", "net.efficientnet_lite0_irn"),
    "deeplab_network": (
        *("net.deeplab_v2", "net.resnet101_deeplab", "net.wresnet38_deeplab", "net.resnet18_deeplab"),
        "net.efficientnet_lite0_deeplab",
    ),
}
"""Those of the table, by the flags that name them."""
COUNTED_WITH: Mapping[str, Sequence[tuple[tuple[str, ...], Sequence[tuple[int, ...]]]]] = {
    "train_classifier": [(("cam_batch_size",), [(8,), (16,)])],
    "train_cam": [
        # Few OoD images: most is held when the backward pass begins; many: while they are made adversarial
        (("cam_batch_size", "ood_batch_size"), [(8, 2), (16, 2), (16, 4)]),
        (("cam_batch_size", "ood_batch_size"), [(4, 16), (8, 16), (8, 8)]),
    ],
    "make_cam": [(("make_cam_batch_size",), [(2,), (4,)])],
    "make_advcam": [(("advcam_batch_size",), [(2,), (4,)])],
    "train_irn": [(("irn_batch_size",), [(8,), (16,)])],
    "make_sem_seg, make_ins_seg: IRN": [(("irn_infer_batch_size",), [(4,), (8,)])],
    "train_deeplab": [(("deeplab_batch_size",), [(3,), (5,)])],
}
"""{step: for each moment that can be the peak, flags with their values in as many counts as a moment has unknowns}."""


def moments(name: str, network: str) -> list[Moment]:
    """The moments of one of `COUNTED_WITH` with a network, such that the counts come out."""
    declared = importlib.import_module(STEP_MODULES[steps_of(name)[0]]).STEP.on_gpu
    batches = RunBatches(lambda: [AVERAGE_SIZE])
    found = []
    for flags, settings in COUNTED_WITH[name]:
        pixels, peaks = [], []
        for values in settings:
            words = [f"--{flag}={value}" for flag, value in zip(flags, values, strict=True)]
            config = parse_config([f"--{declared.network}={network}", *words])
            pixels.append((1, *declared.pixels(config, batches)))
            with torch.device("meta"):
                peaks.append(STEPS[name](config))
        found.append(tuple(np.linalg.solve(np.array(pixels, dtype=float), peaks).tolist()))
    return found


def steps_of(name: str) -> list[str]:
    """The steps that a name of `STEPS` stands for."""
    return name.partition(":")[0].split(", ")


def rows_to_write() -> list[tuple[str, ...]]:
    """The rows of the table that `misc.run.gpu_memory` reads, as text."""
    rows = []
    for name in COUNTED_WITH:
        first, *others = steps_of(name)
        for network in OWN_NETWORKS[importlib.import_module(STEP_MODULES[first]).STEP.on_gpu.network]:
            for fixed, *per_pixel in moments(name, network):
                numbers = [f"{fixed:.0f}", *(f"{number:.1f}" for number in per_pixel)]
                numbers += [""] * (len(COLUMNS) - 2 - len(numbers))
                rows += [(step, network, *numbers) for step in (first, *others)]
    return rows


def write_table() -> None:
    """Make the table anew."""
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows_to_write()])


def count(config: Config) -> dict[str, int]:
    """{step: bytes at its peak}."""
    with torch.device("meta"):
        return {name: peak_of(config) for name, peak_of in STEPS.items()}


def measure(config: Config) -> dict[str, tuple[int, int]]:
    """{step: bytes that PyTorch's allocator gave out at the peak on the GPU, and those that it held}.

    Raises `InputError` if PyTorch finds no GPU.
    """
    if not torch.cuda.is_available():
        raise InputError("--measure: PyTorch finds no GPU here; leave it out to count alone.")
    device = resolve_device("cuda")
    set_precision(config.precision, device)
    found = {}
    for name, peak_of in STEPS.items():
        release_memory(device)
        reset_peak_memory(device)
        with torch.device(device):
            peak_of(config)
        found[name] = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return found


def table(peaks: Mapping[str, int], measured: Mapping[str, tuple[int, int]] | None = None) -> str:
    """The peaks as Markdown, beside what `measure` found, where it was asked."""
    columns = ["step", "what is in memory at once", "GiB", *(MEASURED if measured else ())]
    rows = [columns, ["---"] * len(columns)]
    for name, peak in peaks.items():
        n_bytes = [peak, *(measured[name] if measured else ())]
        rows.append([name, STEPS[name].__doc__.rstrip("."), *(f"{each / GIB:.2f}" for each in n_bytes)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print the table of the flags' settings, or write that of the plan."""
    arguments = sys.argv[1:]
    if arguments == ["--write"]:
        write_table()
        return
    try:
        config = parse_config([each for each in arguments if each != "--measure"])
        measured = measure(config) if "--measure" in arguments else None
        print(table(count(config), measured))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
