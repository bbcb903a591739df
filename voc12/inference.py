"""Running IRN over the images of a list that have CAMs: what semantic and instance masks are made from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from misc.cam import CAM_STRIDE
from misc.errors import InputError
from misc.files import camfile
from misc.imutils import mirror_pair, normalize
from misc.run.config import CamSource
from misc.run.device import to_device
from misc.run.loaders import sequential_loader
from misc.run.plan import Planned, require_outputs
from misc.run.progress import progress
from misc.run.step import Files, Inputs
from voc12.dataloader import ImagesWithCams
from voc12.devkit import Devkit
from voc12.lists import read_list


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


def require_cams(devkit: Devkit, infer_list: str, cams: CamSource, *, planned: Planned) -> list[str]:
    """The ids of `infer_list`. Raises `InputError` if the list is bad or CAMs of its images are missing."""
    ids = read_list(devkit, infer_list, flag="infer_list")
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
            edge, displacement = model(mirror_pair(normalize(to_device(image, device))))
        _require_output(edge, displacement, path, cells)
        if cam.shape[1:] != cells:
            raise InputError(f"CAM file {cam_path} is not of the size of its image; make it again.")
        yield WalkInput(image_id, size, keys, to_device(cam, device), edge, displacement)


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
