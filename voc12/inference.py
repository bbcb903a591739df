"""Running IRN over the images of a list that have CAMs: what semantic and instance masks are made from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from misc.cam import CAM_STRIDE
from misc.errors import InputError
from misc.files import camfile
from misc.imutils import mirror_pair, normalize
from misc.run.config import CamSource
from misc.run.loaders import sequential_loader
from misc.run.plan import Planned, require_outputs
from misc.run.progress import progress
from misc.run.step import Files, Inputs
from voc12.dataloader import ImagesWithCams, WholeImages
from voc12.devkit import Devkit
from voc12.images import LabelledImages, read_ids_to_segment
from voc12.labels import Labels


@dataclass(frozen=True)
class WalkInput:
    """What the masks of an image are made from, at stride 4, on the network's device.

    `size` (H, W) of the image; `keys` (K,) its classes, 0-based; `cam` (K, h, w); `edge` (1, h, w) in [0, 1];
    `displacement` (2, h, w), as (y, x) in cells.
    """

    image_id: str
    size: tuple[int, int]
    keys: np.ndarray
    cam: Tensor
    edge: Tensor
    displacement: Tensor


@torch.no_grad()
def labelled_by_classifier(
    model: nn.Module, images: LabelledImages, *, threshold: float, device: torch.device, num_workers: int
) -> LabelledImages:
    """The images, with the classes that a classifier finds in them as their labels; an image may have none.

    Args:
        model: a `Net`, (1, 3, H, W) normalised -> logits (1, C) and features, in evaluation mode on `device`.
        threshold: probability from which on a class is there.

    Raises `InputError` for a network whose logits are not finite.
    """
    loader = sequential_loader(WholeImages(images.paths), num_workers=num_workers, device=device)
    rows = np.zeros(images.labels.shape, dtype=bool)
    bar = progress(loader, desc="labels by the classifier", unit="image", leave=False)
    for row, path, image in zip(rows, images.paths, bar, strict=True):
        logits, _ = model(normalize(image.to(device))[None])
        if not logits.isfinite().all():
            raise InputError(f"--cam_weights_name: the network gives NaN or infinity for {path}; name other weights.")
        row[:] = (logits[0].sigmoid() >= threshold).cpu().numpy()
    return replace(images, labels=Labels.of(rows))


def require_cams(
    devkit: Devkit, infer_list: str, cams: CamSource, *, label_file: str | None, planned: Planned
) -> list[str]:
    """The ids of `infer_list` that carry a class. Raises `InputError` for a bad list, or if their CAMs are missing."""
    ids = read_ids_to_segment(devkit, infer_list, flag="infer_list", label_file=label_file)
    require_outputs(
        cams.folder, ids, ".npy", flag=cams.flag, list_flag="infer_list", made_by=cams.made_by, planned=planned
    )
    return ids


def inputs_of_walk(devkit: Devkit, ids: Sequence[str], cams: CamSource) -> Inputs:
    """The images and the CAMs that masks are made from."""
    return {"infer_list": Files(devkit.image_paths(ids)), cams.flag: Files(camfile.cam_paths(cams.folder, ids))}


def walk_inputs(
    model: nn.Module,
    devkit: Devkit,
    ids: Sequence[str],
    cam_folder: str,
    *,
    device: torch.device,
    num_workers: int,
    title: str,
) -> Iterator[WalkInput]:
    """Each image's CAM and IRN's output for it, in the order of `ids`, under a progress bar called `title`.

    `model`: (2, 3, H, W) -> edge (1, h, w), displacement (2, h, w), in evaluation mode on `device`.
    Raises `InputError` for a CAM that is unreadable or not of its image's size, and for a network whose output is of
    another size or not finite.
    """
    paths = devkit.image_paths(ids)
    cam_paths = camfile.cam_paths(cam_folder, ids)
    items = ImagesWithCams(paths, cam_paths, len(devkit.classes))
    loader = sequential_loader(items, num_workers=num_workers, device=device)
    bar = progress(loader, desc=title, unit="image")
    for image_id, path, cam_path, item in zip(ids, paths, cam_paths, bar, strict=True):
        image, cam, keys = item["image"], item["cam"], np.array(item["keys"], dtype=np.int64)
        size = tuple(image.shape[1:])
        cells = tuple(math.ceil(side / CAM_STRIDE) for side in size)
        with torch.no_grad():
            edge, displacement = model(mirror_pair(normalize(image.to(device))))
        _require_output(edge, displacement, path, cells)
        if cam.shape[1:] != cells:
            raise InputError(f"CAM file {cam_path} is not of the size of its image; make it again.")
        yield WalkInput(image_id, size, keys, cam.to(device), edge, displacement)


def _require_output(edge: Tensor, displacement: Tensor, path: str, cells: tuple[int, int]) -> None:
    """Raise `InputError` unless a network's output for the image at `path` is finite and has the (h, w) `cells`."""
    given, expected = (tuple(edge.shape), tuple(displacement.shape)), ((1, *cells), (2, *cells))
    if given != expected:
        raise InputError(
            f"--irn_network: edges and displacements of {path} have the shapes {given[0]} and {given[1]}, expected "
            f"{expected[0]} and {expected[1]}: stride {CAM_STRIDE}; correct EdgeDisplacement."
        )
    if not (edge.isfinite().all() and displacement.isfinite().all()):
        raise InputError(
            f"--irn_weights_name: edges or displacements of {path} are no finite numbers; train IRN again with a lower "
            "--irn_learning_rate, or name other weights."
        )
