"""The pictures of the report: which images are shown, and what of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from misc.cam import cam_of_image, label_map
from misc.errors import InputError
from misc.files import camfile, instancefile
from misc.files.images import label_path, read_image, read_label
from misc.files.look import folder_at
from misc.imutils import mirror_pair, normalize, resize_image, scaled_size, to_chw
from misc.metrics import confusion_matrix, scores
from misc.report.collect import SEGMENTATION_EVALUATIONS, Arm
from misc.report.page import ImageRow
from misc.report.pictures import (
    UNSURE_COLOUR,
    Captioned,
    edge_picture,
    heat_overlay,
    instance_colours,
    mask_colours,
    mask_overlay,
)
from misc.run.progress import progress

N_EXAMPLES = 4
EXAMPLE_SIDE = 300


@dataclass(frozen=True)
class PicturedData:
    """The data set whose images are shown: its classes, the colours of mask values, and where an id's files lie."""

    classes: Sequence[str]
    palette: np.ndarray
    image_path: Callable[[str], Path]
    mask_path: Callable[[str], Path]
    _decoded: dict[Path, np.ndarray] = field(default_factory=dict)

    def image(self, path: str | Path) -> np.ndarray:
        """An image file as (H, W, 3) uint8, decoded once for all that show it; not to be written to.

        Raises `InputError` if it can't be read.
        """
        path = Path(path)
        if path not in self._decoded:
            self._decoded[path] = read_image(path)
        return self._decoded[path]

    def legend(self, rows: Sequence[ImageRow]) -> dict[str, tuple[int, ...]]:
        """Colours of the classes that are shown."""
        shown = {name for row in rows for name in row.classes}
        colours = {name: tuple(self.palette[k + 1]) for k, name in enumerate(self.classes) if name in shown}
        return {**colours, "unsure, not counted": UNSURE_COLOUR} if colours else {}


@dataclass(frozen=True, kw_only=True)
class OutputFolders:
    """Where the outputs that are shown lie."""

    cam: str
    advcam: str
    ir_label: str
    sem_seg: str
    ins_seg: str


@dataclass(frozen=True, kw_only=True)
class ShownNetworks:
    """Networks whose outputs are shown, in evaluation mode on `device`; None where there is no checkpoint.

    `before`: the in-distribution classifier's CAMs, at `scales`; `irn`: boundaries.
    """

    before: nn.Module | None
    irn: nn.Module | None
    scales: Sequence[float]
    device: torch.device

    def cam_before(self, image: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(K, H, W) full-size CAMs of an image (H, W, 3), before the W-OoD training."""
        return cam_of_image(self.before, image, keys, scales=self.scales, device=self.device)

    @torch.no_grad()
    def edge(self, image: np.ndarray) -> np.ndarray:
        """(h, w) edges of an image (H, W, 3), at stride 4."""
        edge, _ = self.irn(mirror_pair(normalize(torch.from_numpy(to_chw(image)).to(self.device))))
        return edge[0].cpu().numpy()


def example_pictures(
    data: PicturedData, paths: Sequence[Path], labels: np.ndarray, ood_paths: Sequence[Path], *, seed: int
) -> list[Captioned]:
    """A few training images with their labels, and OoD images, that explain the idea.

    `labels`: (N, C) 0/1. Raises `InputError` for an image that can't be read.
    """
    rng = np.random.default_rng(seed)

    def thumbnail(path: Path) -> np.ndarray:
        image = data.image(path)
        return resize_image(image, scaled_size(image.shape[:2], EXAMPLE_SIDE / max(image.shape)))

    examples = []
    for index in rng.permutation(len(paths))[:N_EXAMPLES]:
        names = ", ".join(data.classes[key] for key in np.flatnonzero(labels[index]))
        examples.append((f"training image, label: {names}", thumbnail(paths[index])))
    for index in rng.permutation(len(ood_paths))[:N_EXAMPLES]:
        examples.append(("out-of-distribution image: “nothing here”", thumbnail(ood_paths[index])))
    return examples


def miou_of_cam(path: Path, truth: np.ndarray, best_threshold: float, n_classes: int) -> float:
    """Mean IoU, per cent, of the CAM file of one image, whose mask is `truth` (H, W), at a background score.

    Raises `InputError` for a file that can't be read, has other classes or is of another size, `ValueError` for a mask
    of other classes.
    """
    keys, high_res = camfile.load_high_res(path, n_classes, size=truth.shape, of="its ground truth")
    predicted = label_map(high_res, keys, best_threshold)
    return 100 * scores(confusion_matrix(predicted, truth, n_classes + 1))["miou"]


@dataclass
class Sheet:
    """The rows of pictures. What could not be read is left out, with a sentence in `skipped`."""

    data: PicturedData
    folders: OutputFolders
    networks: ShownNetworks
    wood: Arm
    control: Arm
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Gains are compared only where the evaluated CAMs of both arms are the ones shown
        of_wood, of_control = (arm.scores.get("eval_cam") for arm in (self.wood, self.control))
        compared = of_wood and of_control and Path(of_wood["folder"]).resolve() == Path(self.folders.cam).resolve()
        self._control_folder = of_control["folder"] if compared else ""

    def gain_note(self) -> str:
        """What the gains compare."""
        if not self._control_folder:
            return ""
        return (
            "Points compare the mean IoU of the image's CAM, each arm at its best background score: W-OoD against the "
            "control. The largest losses are shown as well as the largest gains."
        )

    def groups(
        self, evaluated: Sequence[str] | None, n_shown: int, n_scanned: int, *, seed: int
    ) -> dict[str, list[ImageRow]]:
        """Title -> rows: the largest gains, the largest losses, and images at random (seeded).

        `evaluated`: the ids of the evaluated images; None where there is no such list: all that have maps.
        """
        ids = self._with_maps(evaluated)
        rng = np.random.default_rng(seed)
        shuffled = [ids[index] for index in rng.permutation(len(ids))]
        scored = {}
        if self._control_folder:
            for image_id in progress(shuffled[:n_scanned], desc="gains and losses", unit="image"):
                if (pair := self._before_and_after(image_id)) is not None:
                    scored[image_id] = pair
        by_gain = sorted(scored, key=lambda image_id: scored[image_id][1] - scored[image_id][0])
        third = n_shown // 3 if scored else 0
        losses = [image_id for image_id in by_gain[:third] if scored[image_id][1] < scored[image_id][0]]
        gains = [image_id for image_id in by_gain[::-1][:third] if scored[image_id][1] > scored[image_id][0]]
        others = [image_id for image_id in shuffled if image_id not in (*losses, *gains)]
        chosen = {
            "Largest gains": gains,
            "Largest losses": losses,
            "At random": others[: n_shown - len(losses) - len(gains)],
        }
        rows = {}
        with progress(total=sum(map(len, chosen.values())), desc="pictures", unit="image") as bar:
            for title, group in chosen.items():
                rows[title] = []
                for image_id in group:
                    try:
                        rows[title].append(self._row(image_id, *scored.get(image_id, (None, None))))
                    except InputError as error:
                        self.skipped.append(f"Pictures of {image_id}: {error}")
                    bar.update()
        return rows

    def segmented(self, ids: Sequence[str], n_shown: int, *, seed: int) -> list[ImageRow]:
        """Images at random (seeded) of `ids`, those of the segmentation network's evaluation."""
        folders = {
            title: Path(self.wood.scores[name]["folder"])
            for name, title in SEGMENTATION_EVALUATIONS.items()
            if name in self.wood.scores
        }
        rows = []
        for index in np.random.default_rng(seed).permutation(len(ids))[:n_shown]:
            try:
                rows.append(self._segmented_row(ids[index], folders))
            except InputError as error:
                self.skipped.append(f"Pictures of {ids[index]}: {error}")
        return rows

    def _segmented_row(self, image_id: str, folders: dict[str, Path]) -> ImageRow:
        data = self.data
        image = data.image(data.image_path(image_id))
        labels = {"ground truth": data.mask_path(image_id)}
        labels |= {title: label_path(folder, image_id) for title, folder in folders.items()}
        masks = {title: read_label(path, size=image.shape[:2]) for title, path in labels.items() if path.is_file()}
        found = {int(k) for mask in masks.values() for k in np.unique(mask) if 0 < k <= len(data.classes)}
        overlays = [(title, mask_overlay(image, mask, data.palette)) for title, mask in masks.items()]
        return ImageRow(image_id, [data.classes[k - 1] for k in sorted(found)], [("image", image), *overlays])

    def _with_maps(self, evaluated: Sequence[str] | None) -> list[str]:
        """The ids, of those evaluated or of all images, that have a CAM or an AdvCAM."""
        folders = (self.folders.cam, self.folders.advcam)
        with_maps = {
            name.removesuffix(".npy") for folder in folders for name in folder_at(folder) if name.endswith(".npy")
        }
        if evaluated is None:
            evaluated = sorted(image_id for image_id in with_maps if self.data.image_path(image_id).is_file())
        return [image_id for image_id in evaluated if image_id in with_maps]

    def _before_and_after(self, image_id: str) -> tuple[float, float] | None:
        """Mean IoU, per cent, of the image's CAM of the control and of W-OoD; None where there is none."""
        path = self.data.mask_path(image_id)
        if not path.is_file() or not camfile.cam_path(self._control_folder, image_id).is_file():
            return None
        n_classes = len(self.data.classes)
        pair = []
        try:
            truth = read_label(path)
            for folder, arm in ((self._control_folder, self.control), (self.folders.cam, self.wood)):
                of_image = camfile.cam_path(folder, image_id)
                pair.append(miou_of_cam(of_image, truth, arm.scores["eval_cam"]["best_threshold"], n_classes))
        except (InputError, ValueError) as error:
            self.skipped.append(f"The gain of {image_id}: {error}")
            return None
        return None if np.isnan(pair).any() else (pair[0], pair[1])  # the mean over no class, where no pixel counts

    def _row(self, image_id: str, before: float | None, after: float | None) -> ImageRow:
        """All that there is of an image, in the order of the chain."""
        data, folders, networks = self.data, self.folders, self.networks
        image = data.image(data.image_path(image_id))
        size = image.shape[:2]
        load_maps = partial(camfile.load_high_res, n_classes=len(data.classes), size=size)
        paths = {"CAM, W-OoD": folders.cam, "AdvCAM": folders.advcam}
        paths = {title: camfile.cam_path(folder, image_id) for title, folder in paths.items()}
        maps_of = {title: load_maps(path) for title, path in paths.items() if path.is_file()}
        keys, _ = next(iter(maps_of.values()))
        pictures = [("image", image)]
        if data.mask_path(image_id).is_file():
            truth = read_label(data.mask_path(image_id), size=size)
            pictures.append(("ground truth", mask_overlay(image, truth, data.palette)))
        if networks.before is not None:
            pictures.append(("CAM before W-OoD", heat_overlay(image, networks.cam_before(image, keys))))
        control_cam = camfile.cam_path(self._control_folder, image_id)
        if self._control_folder and control_cam.is_file():
            pictures.append(("CAM, control", heat_overlay(image, load_maps(control_cam)[1])))
        pictures += [(title, heat_overlay(image, high_res)) for title, (_, high_res) in maps_of.items()]
        confident_path = label_path(folders.ir_label, image_id)
        if confident_path.is_file():
            pictures.append(
                ("confident label", mask_overlay(image, read_label(confident_path, size=size), data.palette))
            )
        if networks.irn is not None:
            pictures.append(("boundaries (IRN)", edge_picture(networks.edge(image), size)))
        mask_path = label_path(folders.sem_seg, image_id)
        if mask_path.is_file():
            pictures.append(("final mask", mask_colours(read_label(mask_path, size=size), data.palette)))
        instances_path = instancefile.instance_path(folders.ins_seg, image_id)
        if instances_path.is_file():
            detections = instancefile.load(instances_path, len(data.classes), size=size)
            pictures.append(("instances", instance_colours(detections, data.palette)))
        return ImageRow(image_id, [data.classes[key] for key in keys], pictures, before, after)
