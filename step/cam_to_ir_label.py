"""Step 4: confident labels for IRN: CAM and dense CRF, twice."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from misc import camfile
from misc.cam import confident_label
from misc.config import Config
from misc.crf import require_densecrf
from misc.errors import InputError
from misc.imutils import read_image, write_label
from misc.plan import Planned, require_outputs, require_writable
from misc.torchutils import sequential_loader
from voc12.devkit import open_devkit
from voc12.lists import read_list
from voc12.verify import require_readable


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    require_densecrf()
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_list(devkit, args.train_list, flag="train_list")
    cams = args.mask_cams
    require_outputs(
        cams.folder,
        ids,
        ".npy",
        flag=cams.flag,
        list_flag="train_list",
        made_by=cams.made_by,
        planned=planned,
    )
    require_writable(args.ir_label_out_dir, flag="ir_label_out_dir")
    require_readable([devkit.image_path(image_id) for image_id in ids], num_workers=args.num_workers)
    return {args.ir_label_out_dir: frozenset(ids)}


class _ConfidentLabels(Dataset):
    """The label maps, as a data set: the loader's worker processes are the ones that compute them."""

    def __init__(
        self, paths: list[Path], cam_paths: list[Path], *, n_classes: int, foreground: float, background: float
    ) -> None:
        self.paths, self.cam_paths, self.n_classes = paths, cam_paths, n_classes
        self.foreground, self.background = foreground, background

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        image = read_image(self.paths[index])
        keys, _, high_res = camfile.load(self.cam_paths[index], self.n_classes)
        if high_res.shape[1:] != image.shape[:2]:
            raise InputError(
                f"CAM file {self.cam_paths[index]} is not of the size of {self.paths[index]}; make it again."
            )
        return confident_label(
            image, high_res, keys, foreground_score=self.foreground, background_score=self.background
        )


def run(args: Config) -> None:
    """Write `ir_label_out_dir`/ID.png for each image of `train_list`: class ids, 0 background, 255 unsure."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_list(devkit, args.train_list, flag="train_list")
    labels = _ConfidentLabels(
        [devkit.image_path(image_id) for image_id in ids],
        [camfile.cam_path(args.mask_cams.folder, image_id) for image_id in ids],
        n_classes=len(devkit.classes),
        foreground=args.conf_fg_thres,
        background=args.conf_bg_thres,
    )
    loader = sequential_loader(labels, num_workers=args.crf_workers, device=torch.device("cpu"))
    for image_id, label in zip(ids, tqdm(loader, desc="cam_to_ir_label", unit="image"), strict=True):
        write_label(Path(args.ir_label_out_dir) / f"{image_id}.png", np.asarray(label))
