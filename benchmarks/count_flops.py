"""The arithmetic of the chain on VOC 2012: `python benchmarks/count_flops.py [FLAGS OF run_sample.py]` prints a table.

Each step's own networks and losses run once on PyTorch's meta device, which computes nothing and needs no data, while
`torch.utils.flop_counter` counts convolutions and matrix products, forward and backward. A multiplication and an
addition are two FLOPs. Flags change the settings; without any, they are the defaults.

Not counted, because it is no convolution or product of a network: the random walk, dense CRF, norms, activations,
resizing, and the work of the loaders.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from benchmarks.measure import flop_counter
from misc.advcam import SCALES, climb, iterations_at
from misc.classifier import classification_losses
from misc.deeplab import multiscale_losses
from misc.errors import InputError
from misc.ood import wood_losses
from misc.run.config import Config, parse_config
from net.build import build_network
from net.deeplab import MultiScale
from step.train_cam import selection_steps
from voc12.classes import VOC_CLASSES, names_with_background
from voc12.images import CLASSES_AN_IMAGE

TRAIN, TRAIN_AUG, VAL = 1464, 10582, 1449
"""Images of VOC 2012's lists; `train_aug` with SBD's masks."""
OOD_IMAGES = 5000
"""Assumed; their features are taken once, which is little."""
AVERAGE_SIZE = (375, 500)
"""(H, W) of VOC's photographs, about."""
RATES = (10, 50)
"""TFLOP/s that are sustained, for the hours of the table."""


@dataclass(frozen=True)
class Part:
    """`units` times `flops`, of a step; `what` names the units.

    Of a training's steps `backward` of the FLOPs are the backward pass's, which leaves gradients of `gradient_bytes`.
    """

    step: str
    what: str
    units: int
    flops: float
    backward: float = 0
    gradient_bytes: int = 0

    @property
    def total(self) -> float:
        return self.units * self.flops


def _flops(compute: Callable[[], object]) -> int:
    """FLOPs of a call."""
    with flop_counter() as counter:
        compute()
    return counter.get_total_flops()


def _training(step: str, what: str, units: int, network: nn.Module, loss: Callable[[], Tensor]) -> Part:
    """A training, from the network's loss of a batch."""
    network.zero_grad()
    with flop_counter() as counter:
        total = loss()
        forward = counter.get_total_flops()
        total.backward()
    flops = counter.get_total_flops()
    gradient_bytes = sum(p.grad.nbytes for p in network.parameters() if p.grad is not None)
    return Part(step, what, units, flops, backward=flops - forward, gradient_bytes=gradient_bytes)


def _images(n: int, size: Sequence[int]) -> Tensor:
    return torch.empty(n, 3, *size)


def _scaled(scale: float) -> tuple[int, int]:
    height, width = (round(side * scale) for side in AVERAGE_SIZE)
    return height, width


def classifier_parts(config: Config) -> list[Part]:
    """train_classifier, train_cam, make_cam and make_advcam."""
    n_classes = len(VOC_CLASSES)
    net, cam = (build_network(config.cam_network, name, n_classes=n_classes) for name in ("Net", "CAM"))
    n, crop = config.cam_batch_size, [config.cam_crop_size] * 2
    images, labels, ood = _images(n, crop), torch.empty(n, n_classes), _images(config.ood_batch_size, crop)
    epoch = TRAIN_AUG // n
    steps = epoch * config.cam_num_epoches

    def wood_loss() -> Tensor:
        # Without prototypes: distances of pooled features are no products of a network
        settings = {"ood_coeff": config.ood_coeff, "distance_lambda": 0, "topk": 0, "step": config.ood_adv_step}
        with_ood = ood if config.ood_coeff > 0 else None
        losses = wood_losses(net, images, labels, ood_images=with_ood, prototypes=None, ignore_class=None, **settings)
        return losses["total"]

    with torch.no_grad():
        whole = _flops(lambda: net(_images(1, AVERAGE_SIZE)))
        validation = _flops(lambda: net(images[:1]))
        maps = sum(_flops(lambda s=s: cam(_images(2, _scaled(s)))) for s in config.cam_scales)
    parts = [
        _training("train_classifier", "steps", steps, net, lambda: classification_losses(net, images, labels).mean()),
        Part("train_classifier", "crops, validation", VAL * config.cam_num_epoches, validation),
    ]
    if config.distance_lambda > 0:
        parts.append(Part("train_cam", "images, prototypes", TRAIN_AUG + OOD_IMAGES, whole))
    parts.append(_training("train_cam", "steps", steps, net, wood_loss))
    if config.cam_select == "best_miou":
        looks = len(selection_steps(epoch, steps, interval=config.cam_select_interval))
        parts.append(Part("train_cam", "images, choice of the checkpoint", looks * TRAIN, maps))
    cam.requires_grad_(False)
    settings = {"coefficient": config.AD_coeff, "step": config.AD_stepsize, "score_threshold": config.score_th}
    # Iterations do the same work, but the last, which goes forward alone: one is counted, and added for the others
    climbs = 0
    for scale in SCALES:
        pair, which = _images(2, _scaled(scale))[None], torch.zeros(1, dtype=torch.int64)
        one, two = (_flops(lambda k=k, p=pair, c=which: climb(cam, p, c, k, **settings)) for k in (1, 2))
        climbs += one + (two - one) * (iterations_at(scale, config.adv_iter) - 1)
    return [
        *parts,
        Part("make_cam", "images of `train`", TRAIN, maps),
        Part("make_advcam", "(image, class) pairs", round(TRAIN_AUG * CLASSES_AN_IMAGE), climbs),
    ]


def irn_parts(config: Config) -> list[Part]:
    """train_irn and make_sem_seg."""
    training, inference = (
        build_network(config.irn_network, n) for n in ("AffinityDisplacementLoss", "EdgeDisplacement")
    )
    n, side = config.irn_batch_size, config.irn_crop_size
    images, labels = _images(n, [side] * 2), torch.empty(n, side // 4, side // 4, dtype=torch.uint8)
    steps = TRAIN_AUG // n * config.irn_num_epoches
    with torch.no_grad():
        displacement = _flops(lambda: training.edge_and_displacement(images[:1]))
        edges = _flops(lambda: inference.eval()(_images(2, AVERAGE_SIZE)))
    return [
        _training("train_irn", "steps", steps, training, lambda: training.train()(images, labels)["total"]),
        Part("train_irn", "crops, mean displacement", TRAIN_AUG, displacement),
        Part("make_sem_seg", "images", TRAIN_AUG, edges),
    ]


def deeplab_parts(config: Config) -> list[Part]:
    """train_deeplab and eval_deeplab."""
    network = build_network(config.deeplab_network, "DeepLab", n_classes=len(names_with_background(VOC_CLASSES)))
    model, side = MultiScale(network), [config.deeplab_crop_size] * 2
    images, labels = _images(config.deeplab_batch_size, side), torch.empty(config.deeplab_batch_size, *side).byte()
    batches = config.deeplab_max_iter * config.deeplab_iter_size

    def loss() -> Tensor:
        return multiscale_losses(model.scale_logits(images), labels, loss=config.deeplab_loss)["total"]

    with torch.no_grad():
        whole = _flops(lambda: model(_images(1, AVERAGE_SIZE)))
    return [
        _training("train_deeplab", "batches", batches, network, loss),
        Part("eval_deeplab", "images", VAL, whole),
    ]


def count(config: Config) -> list[Part]:
    """Every part of the chain, in its order."""
    with torch.device("meta"):
        return [*classifier_parts(config), *irn_parts(config), *deeplab_parts(config)]


def table(parts: Sequence[Part]) -> str:
    """The parts, and their sum, as Markdown."""
    hours = [f"hours at {rate} TFLOP/s" for rate in RATES]
    lines = [f"| step | units | TFLOP a unit | PFLOP | {' | '.join(hours)} |", "| --- " * (4 + len(RATES)) + "|"]
    rows = [(p.step, f"{p.units:,} {p.what}", f"{p.flops / 1e12:.3g}", p.total) for p in parts]
    for step, units, flops, total in [*rows, ("all", "", "", sum(part.total for part in parts))]:
        at_rates = " | ".join(f"{total / (rate * 1e12) / 3600:.2f}" for rate in RATES)
        lines.append(f"| {step} | {units} | {flops} | {total / 1e15:.2f} | {at_rates} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table of the flags' settings."""
    try:
        print(table(count(parse_config())))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
