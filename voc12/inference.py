"""Running IRN over the images of a list that have CAMs: what semantic and instance masks are made from."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from misc.files.camfile import MAP_STRIDE
from misc.files.images import image_sizes
from misc.files.resultfiles import IRN_FOLDER
from misc.imutils import cells_of, mirror_pair, normalize
from misc.indexing import RandomWalks
from misc.run.config import CamSource, Config
from misc.run.depends import source_of_files
from misc.run.device import Arriving, resolve_device, to_device, when_arrived
from misc.run.distributed import share
from misc.run.done import finished_files
from misc.run.fitting import Fitting
from misc.run.loaders import PIXELS_A_PLACE, GroupedLoader, places, size_groups
from misc.run.progress import progress
from misc.run.provenance import FinishedFiles
from misc.run.step import Inputs, OnGpu, Step
from voc12.dataloader import ImagesWithCams
from voc12.devkit import Devkit
from voc12.images import ids_to_segment

DEVICE_BATCH = 8
"""Images of up to 512 x 512 pixels that run, and walk, as one batch on a GPU; on the CPU a batch gains nothing."""

IRN_ON_GPU = OnGpu("irn_network", lambda args, batches: [(args.irn_infer_batch_size or DEVICE_BATCH) * PIXELS_A_PLACE])
"""Of both steps that run IRN over images, which it pads to 512 x 512 pixels."""
MASK_READS = (
    *("voc12_root", "class_list", "label_file", "labels_from", "infer_list"),
    *("masks_from", "cam_out_dir", "advcam_out_dir", "irn_network", "irn_weights_name"),
)
"""The flags that say what both steps make masks from."""
IRN_OUTPUT = Step(
    name="irn",
    description="find boundaries and displacements",
    reads=("irn_network", "irn_weights_name", "class_list"),
    writes=(),
    flags=("precision",),
)
"""What determines IRN's output for an image, of all that a step that makes masks is declared by.

Its `version` is to be raised, beside those of the two steps, when the code that computes this output changes.
"""

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


@dataclass(frozen=True)
class Masks:
    """Masks of one kind, as a step makes them of images.

    `paths`: the files of an image, by its id. `make`: of the inputs of some images of a batch, by their numbers in it,
    and the random walks between the boundaries of all, what `write(paths, masks)` writes for each of the some, which
    returns what the files hold, for the record. What is `Arriving` from a GPU has arrived when it is written.
    `finished`: which of the files are done. `max_waiting`: of how many images the masks may wait for the disk.
    """

    paths: Callable[[str], list[Path]]
    make: Callable[[Mapping[int, WalkInput], RandomWalks], Iterable[Any]]
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

    @classmethod
    def of(cls, args: Config, of_all_files: Inputs) -> "KeptOutputs | None":
        """Where `--keep_irn` keeps it, for both steps. `of_all_files`: the network and its weights."""
        if not args.keep_irn:
            return None
        return cls(Path(args.result_dir, IRN_FOLDER), finished_files(IRN_OUTPUT, args, of_all_files))

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
    walks_between: Callable[[Sequence[Tensor]], RandomWalks],
    kept: KeptOutputs | None = None,
) -> None:
    """Make all masks of the images `ids` that are not finished; the network sees each image once for all `kinds`.

    `load_model`: gives the `model` of `walk_inputs`, whose other arguments are the same here; called only if the
    network has something to do.
    `batch_size`: images of up to 512 x 512 pixels that IRN sees, and that walk, together; 0: `DEVICE_BATCH` on CUDA,
    else one.
    `walks_between`: of the (1, h, w) edges of each image of a batch the random walks, of which all kinds make their
    masks.
    `kept`: where its output is read, and kept where there is none.
    """
    images, maps = devkit.image_paths(ids), camfile.cam_paths(cams.folder, ids)

    def source_of(number: int) -> str:
        return source_of_files(images[number], maps[number])

    items = [[kind.paths(image_id) for image_id in ids] for kind in kinds]
    pending = [set(kind.finished.pending(of_kind, source_of)) for kind, of_kind in zip(kinds, items, strict=True)]
    numbers = sorted(set().union(*pending))
    if not numbers:
        return
    batch_size = batch_size or (DEVICE_BATCH if device.type == "cuda" else 1)
    number_of = {ids[number]: number for number in numbers}
    ids_kept = {} if kept is None else dict.fromkeys(_ids_kept(kept, devkit, [*number_of]))
    ids_left = [image_id for image_id in number_of if image_id not in ids_kept]
    max_waiting = min(kind.max_waiting for kind in kinds) + (kept is not None)  # whose files are writes of their own
    how = {"device": device, "batch_size": batch_size, "title": title}
    with background_writer(max_waiting=max_waiting) as submit:
        batches: Iterator[list[WalkInput]] = iter(())
        if ids_left:
            batches = walk_inputs(load_model(), devkit, ids_left, cams.folder, num_workers=num_workers, **how)
        if kept is not None:
            read = _read_walk_inputs(kept, devkit, [*ids_kept], cams.folder, **how)
            batches = itertools.chain(read, _keeping(batches, kept, devkit, submit))
        for batch in batches:
            walks = walks_between([item.edge for item in batch])
            of_batch = [number_of[item.image_id] for item in batch]
            for kind, of_kind, of_pending in zip(kinds, items, pending, strict=True):
                wanted = {place: item for place, item in enumerate(batch) if of_batch[place] in of_pending}
                if not wanted:
                    continue
                for place, masks in zip(wanted, kind.make(wanted, walks), strict=True):
                    paths, source = of_kind[of_batch[place]], partial(source_of, of_batch[place])
                    submit(kind.finished.write, paths, source, when_arrived, kind.write, paths, masks)


def make_listed_masks(
    args: Config, kinds: Sequence[Masks], load_model: Callable[..., nn.Module], of_all_files: Inputs, *, title: str
) -> None:
    """`make_masks` for this process's share of the images of `infer_list` that carry a class, by the flags.

    `load_model`: of a `device`. `of_all_files`: what all of IRN's output depends on beside the images.
    """
    (devkit, ids), device = ids_to_segment(args, "infer_list"), resolve_device(args.device)
    make_masks(
        kinds,
        partial(load_model, device=device),
        devkit,
        share(ids),
        args.mask_cams,
        device=device,
        num_workers=args.num_workers,
        batch_size=args.irn_infer_batch_size,
        title=title,
        walks_between=partial(RandomWalks, beta=args.beta, exp_times=args.exp_times),
        kept=KeptOutputs.of(args, of_all_files),
    )


def _ids_kept(kept: KeptOutputs, devkit: Devkit, ids: Sequence[str]) -> list[str]:
    """Those of the images `ids` whose output is there."""
    paths = devkit.image_paths(ids)
    numbers = kept.finished.kept([[kept.path(image_id)] for image_id in ids], lambda n: source_of_files(paths[n]))
    if numbers:
        log.info("IRN's output for %d of %d images is read from %s", len(numbers), len(ids), kept.folder)
    return [ids[number] for number in sorted(numbers)]


def _read_walk_inputs(
    kept: KeptOutputs,
    devkit: Devkit,
    ids: Sequence[str],
    cam_folder: str,
    *,
    device: torch.device,
    batch_size: int,
    title: str,
) -> Iterator[list[WalkInput]]:
    """What `walk_inputs` gives for images whose output is kept."""
    if not ids:
        return
    paths = devkit.image_paths(ids)
    sizes = image_sizes(paths)
    with progress(total=len(ids), desc=f"{title}, IRN's output read", unit="image") as bar:
        # Those of all sizes walk together
        for numbers in size_groups([(1, 1)] * len(ids), batch_size, n_parts=[places(size) for size in sizes]):
            outputs = [irnfile.load(kept.path(ids[number])) for number in numbers]
            _require_outputs(outputs, [paths[number] for number in numbers], [sizes[number] for number in numbers])
            batch = []
            for number, output in zip(numbers, outputs, strict=True):
                path, cells = camfile.cam_path(cam_folder, ids[number]), cells_of(sizes[number])
                keys, cam = camfile.load_cam(path, len(devkit.classes), size=cells)
                on_device = (to_device(tensor, device) for tensor in (cam, *output))
                batch.append(WalkInput(ids[number], sizes[number], keys, *on_device))
            yield batch
            bar.update(len(batch))


def _keeping(
    batches: Iterable[list[WalkInput]], kept: KeptOutputs, devkit: Devkit, submit: Callable[..., None]
) -> Iterator[list[WalkInput]]:
    """The same with IRN's output rounded to half precision, which `submit` has written."""

    def keeping(item: WalkInput) -> WalkInput:
        halves = irnfile.in_half_precision(item.edge), irnfile.in_half_precision(item.displacement)
        path, (image,) = kept.path(item.image_id), devkit.image_paths([item.image_id])
        arriving = (Arriving(half) for half in halves)
        source_of = partial(source_of_files, image)
        submit(kept.finished.write, [path], source_of, when_arrived, irnfile.save, path, *arriving)
        edge, displacement = (half.float() for half in halves)
        return replace(item, edge=edge, displacement=displacement)

    for batch in batches:
        yield [keeping(item) for item in batch]


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
) -> Iterator[list[WalkInput]]:
    """Each image's CAM and IRN's output for it, in batches, under a progress bar called `title`.

    They come in the order of `ids`, but for images that run in one batch with an earlier one.

    Args:
        model: (2, 3, H, W) -> edge (1, h, w), displacement (2, h, w), in evaluation mode on `device`. Where it offers
            `batch(pairs)` and `padded_size(size)`, images that it pads to one size run as one batch.
        batch_size: images of up to 512 x 512 pixels in a batch.

    Raises `InputError` for a CAM that is unreadable or not of its image's size, and for a network whose output is of
    another size or not finite.
    """
    paths = devkit.image_paths(ids)
    cam_paths = camfile.cam_paths(cam_folder, ids)
    groups: Sequence[Sequence[int]] = [[number] for number in range(len(ids))]
    if batch_size > 1 and hasattr(model, "batch"):
        padded = [model.padded_size(size) for size in image_sizes(paths)]
        groups = size_groups(padded, batch_size)
    fitting = Fitting(batch_size, parts="images")
    items = ImagesWithCams(paths, cam_paths, len(devkit.classes))
    loader = GroupedLoader(items, groups, num_workers=num_workers, device=device)
    with progress(total=len(ids), desc=title, unit="image") as bar:
        for numbers, group in zip(groups, loader, strict=True):
            size = tuple(group[0]["image"].shape[1:])
            outputs = fitting.each(partial(_outputs, model, device), group, size=size, example=paths[numbers[0]])
            sizes = [tuple(item["image"].shape[1:]) for item in group]
            _require_outputs(outputs, [paths[number] for number in numbers], sizes)
            batch = []
            for number, item, size, output in zip(numbers, group, sizes, outputs, strict=True):
                cam, keys = to_device(item["cam"], device), np.array(item["keys"], dtype=np.int64)
                batch.append(WalkInput(ids[number], size, keys, cam, *output))
            yield batch
            bar.update(len(batch))


@torch.no_grad()
def _outputs(model: nn.Module, device: torch.device, items: Sequence[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
    """Edge and displacement of images that the model pads to one size, items of `ImagesWithCams`, in one batch."""
    pairs = [mirror_pair(normalize(to_device(item["image"], device))) for item in items]
    return model.batch(pairs) if len(pairs) > 1 else [model(pairs[0])]


def _require_outputs(
    outputs: Sequence[tuple[Tensor, Tensor]], paths: Sequence[str], sizes: Sequence[tuple[int, int]]
) -> None:
    """Raise `InputError` unless a network's outputs for the images at `paths`, of (H, W) each, are sound.

    They must be finite and at stride 4, and edges in 0 .. 1.
    """
    for (edge, displacement), path, size in zip(outputs, paths, sizes, strict=True):
        cells = cells_of(size)
        given, expected = (tuple(edge.shape), tuple(displacement.shape)), ((1, *cells), (2, *cells))
        if given != expected:
            raise InputError(
                f"--irn_network: edges and displacements of {path} have the shapes {given[0]} and {given[1]}, expected "
                f"{expected[0]} and {expected[1]}: stride {MAP_STRIDE}; correct EdgeDisplacement."
            )
    # All at once, since to look at them waits for a GPU
    found = [
        torch.stack([edge.isfinite().all() & displacement.isfinite().all(), ((edge >= 0) & (edge <= 1)).all()])
        for edge, displacement in outputs
    ]
    for (is_finite, is_in_range), path in zip(torch.stack(found).tolist(), paths, strict=True):
        if is_finite and not is_in_range:
            raise InputError(
                f"--irn_network: edges of {path} are not in 0 .. 1; let EdgeDisplacement end in a sigmoid."
            )
        if not is_finite:
            raise InputError(
                f"--irn_weights_name: edges or displacements of {path} are no finite numbers; train IRN again with a "
                "lower --irn_learning_rate, or name other weights."
            )
