"""Running IRN over the images of a list that have CAMs: what semantic and instance masks are made from."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from misc.errors import InputError
from misc.files import camfile, irnfile
from misc.files.atomic import background_writer
from misc.files.images import image_size, image_sizes
from misc.imutils import MAP_STRIDE, cells_of, mirror_pair, normalize
from misc.indexing import RandomWalk
from misc.run.config import CamSource
from misc.run.depends import source_of_files, source_of_item
from misc.run.device import Arriving, to_device, when_arrived
from misc.run.fitting import Fitting
from misc.run.loaders import GroupedLoader, places, size_groups
from misc.run.plan import Planned, require_outputs
from misc.run.progress import progress
from misc.run.provenance import FinishedFiles
from misc.run.step import Files, Inputs
from voc12.dataloader import ImagesWithCams
from voc12.devkit import Devkit
from voc12.images import read_ids_to_segment

DEVICE_BATCH = 8
"""Images of up to 512 x 512 pixels that run as one batch on a GPU; on the CPU a batch gains nothing."""

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Masks:
    """Masks of one kind, as a step makes them of each image.

    `paths`: the files of an image, by its id. `make`: of an image's input, and the random walk between its
    boundaries, what `write(paths, masks)` writes, which returns what the files hold, for the record.
    `finished`: which of the files are done. `max_waiting`: of how many images the masks may wait for the disk.
    """

    paths: Callable[[str], list[Path]]
    make: Callable[[WalkInput, RandomWalk], Any]
    write: Callable[[list[Path], Any], Any]
    finished: FinishedFiles
    max_waiting: int = 8


@dataclass(frozen=True)
class KeptOutputs:
    """IRN's output for images, rounded to half precision and kept in `folder`; `finished`: which files are done.

    Masks are made of the rounded numbers whether these were read or computed, so that they are the same.
    """

    folder: Path
    finished: FinishedFiles

    def path(self, image_id: str) -> Path:
        """The file of an image."""
        return irnfile.irn_path(self.folder, image_id)


def make_masks(
    kinds: Sequence[Masks],
    load_model: Callable[[], nn.Module],
    devkit: Devkit,
    ids: Sequence[str],
    cams: CamSource,
    *,
    device: torch.device,
    num_workers: int,
    batch_size: int,
    title: str,
    walk_between: Callable[[Tensor], RandomWalk],
    kept: KeptOutputs | None = None,
) -> None:
    """Make all masks of the images `ids` that are not finished; the network sees each image once for all `kinds`.

    `load_model`: gives the `model` of `walk_inputs`, whose other arguments are the same here; called only if the
    network has something to do.
    `walk_between`: of (1, h, w) edges the random walk, of which all kinds make their masks.
    `kept`: where its output is read, and kept where there is none.
    """
    sources = inputs_of_walk(devkit, ids, cams)
    source_of = partial(source_of_item, sources)
    items = [[kind.paths(image_id) for image_id in ids] for kind in kinds]
    pending = [set(kind.finished.pending(of_kind, source_of)) for kind, of_kind in zip(kinds, items, strict=True)]
    numbers = sorted(set().union(*pending))
    if not numbers:
        return
    number_of = {ids[number]: number for number in numbers}
    ids_kept = {} if kept is None else dict.fromkeys(_ids_kept(kept, devkit, [*number_of]))
    ids_left = [image_id for image_id in number_of if image_id not in ids_kept]
    max_waiting = min(kind.max_waiting for kind in kinds) + (kept is not None)  # whose files are writes of their own
    with background_writer(max_waiting=max_waiting) as submit:
        walked: Iterator[WalkInput] = iter(())
        if ids_left:
            walked = walk_inputs(
                load_model(),
                devkit,
                ids_left,
                cams.folder,
                device=device,
                num_workers=num_workers,
                batch_size=batch_size,
                title=title,
            )
        if kept is not None:
            read = _read_walk_inputs(kept, devkit, [*ids_kept], cams.folder, device=device, title=title)
            walked = itertools.chain(read, _keeping(walked, kept, devkit, submit))
        for item in walked:
            number, walk = number_of[item.image_id], walk_between(item.edge)
            for kind, of_kind, of_pending in zip(kinds, items, pending, strict=True):
                if number in of_pending:
                    paths, masks = of_kind[number], kind.make(item, walk)
                    submit(kind.finished.write, paths, partial(source_of, number), kind.write, paths, masks)


def _ids_kept(kept: KeptOutputs, devkit: Devkit, ids: Sequence[str]) -> list[str]:
    """Those of the images `ids` whose output is there."""
    paths = devkit.image_paths(ids)
    numbers = kept.finished.kept([[kept.path(image_id)] for image_id in ids], lambda n: source_of_files(paths[n]))
    if numbers:
        log.info("IRN's output for %d of %d images is read from %s", len(numbers), len(ids), kept.folder)
    return [ids[number] for number in sorted(numbers)]


def _read_walk_inputs(
    kept: KeptOutputs, devkit: Devkit, ids: Sequence[str], cam_folder: str, *, device: torch.device, title: str
) -> Iterator[WalkInput]:
    """What `walk_inputs` gives for images whose output is kept."""
    paths = devkit.image_paths(ids)
    bar = progress(ids, desc=f"{title}, IRN's output read", unit="image") if ids else ids
    for number, image_id in enumerate(bar):
        path, cam_path = paths[number], camfile.cam_path(cam_folder, image_id)
        size = image_size(path)
        keys, cam = camfile.load_cam(cam_path, len(devkit.classes), size=cells_of(size))
        edge, displacement = irnfile.load(kept.path(image_id))
        _require_output(edge, displacement, path, cells_of(size))
        cam, edge, displacement = (to_device(tensor, device) for tensor in (cam, edge, displacement))
        yield WalkInput(image_id, size, keys, cam, edge, displacement)


def _keeping(
    walked: Iterable[WalkInput], kept: KeptOutputs, devkit: Devkit, submit: Callable[..., None]
) -> Iterator[WalkInput]:
    """The same with IRN's output rounded to half precision, which `submit` has written."""
    for item in walked:
        halves = irnfile.in_half_precision(item.edge), irnfile.in_half_precision(item.displacement)
        path, (image,) = kept.path(item.image_id), devkit.image_paths([item.image_id])
        arriving = (Arriving(half) for half in halves)
        source_of = partial(source_of_files, image)
        submit(kept.finished.write, [path], source_of, when_arrived, irnfile.save, path, *arriving)
        edge, displacement = (half.float() for half in halves)
        yield replace(item, edge=edge, displacement=displacement)


def walk_inputs(
    model: nn.Module,
    devkit: Devkit,
    ids: Sequence[str],
    cam_folder: str,
    *,
    device: torch.device,
    num_workers: int,
    batch_size: int,
    title: str,
) -> Iterator[WalkInput]:
    """Each image's CAM and IRN's output for it, under a progress bar called `title`.

    They come in the order of `ids`, but for images that run in one batch with an earlier one.

    Args:
        model: (2, 3, H, W) -> edge (1, h, w), displacement (2, h, w), in evaluation mode on `device`. Where it offers
            `batch(pairs)` and `padded_size(size)`, images that it pads to one size run as one batch.
        batch_size: images of up to 512 x 512 pixels in a batch; 0: `DEVICE_BATCH` on CUDA, else one.

    Raises `InputError` for a CAM that is unreadable or not of its image's size, and for a network whose output is of
    another size or not finite.
    """
    paths = devkit.image_paths(ids)
    cam_paths = camfile.cam_paths(cam_folder, ids)
    batch_size = batch_size or (DEVICE_BATCH if device.type == "cuda" else 1)
    groups: Sequence[Sequence[int]] = [[number] for number in range(len(ids))]
    if batch_size > 1 and hasattr(model, "batch"):
        padded = [model.padded_size(size) for size in image_sizes(paths)]
        groups = size_groups(padded, batch_size, n_parts=[places(size) for size in padded])
    fitting = Fitting(batch_size, parts="images")
    items = ImagesWithCams(paths, cam_paths, len(devkit.classes))
    loader = GroupedLoader(items, groups, num_workers=num_workers, device=device)
    with progress(total=len(ids), desc=title, unit="image") as bar:
        for numbers, group in zip(groups, loader, strict=True):
            size = tuple(group[0]["image"].shape[1:])
            outputs = fitting.each(partial(_outputs, model, device), group, size=size, example=paths[numbers[0]])
            for number, item, (edge, displacement) in zip(numbers, group, outputs, strict=True):
                cam, keys = item["cam"], np.array(item["keys"], dtype=np.int64)
                size = tuple(item["image"].shape[1:])
                _require_output(edge, displacement, paths[number], cells_of(size))
                yield WalkInput(ids[number], size, keys, to_device(cam, device), edge, displacement)
                bar.update()


@torch.no_grad()
def _outputs(model: nn.Module, device: torch.device, items: Sequence[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
    """Edge and displacement of images that the model pads to one size, items of `ImagesWithCams`, in one batch."""
    pairs = [mirror_pair(normalize(to_device(item["image"], device))) for item in items]
    return model.batch(pairs) if len(pairs) > 1 else [model(pairs[0])]


def _require_output(edge: Tensor, displacement: Tensor, path: str, cells: tuple[int, int]) -> None:
    """Raise `InputError` unless a network's output for the image at `path` is finite and has the (h, w) `cells`."""
    given, expected = (tuple(edge.shape), tuple(displacement.shape)), ((1, *cells), (2, *cells))
    if given != expected:
        raise InputError(
            f"--irn_network: edges and displacements of {path} have the shapes {given[0]} and {given[1]}, expected "
            f"{expected[0]} and {expected[1]}: stride {MAP_STRIDE}; correct EdgeDisplacement."
        )
    if not (edge.isfinite().all() and displacement.isfinite().all()):
        raise InputError(
            f"--irn_weights_name: edges or displacements of {path} are no finite numbers; train IRN again with a lower "
            "--irn_learning_rate, or name other weights."
        )
