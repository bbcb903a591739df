"""How far two folders of CAM files agree: `python benchmarks/compare_cams.py FOLDER OTHER [--thresholds T ...]`.

For CAMs of the same weights in two precisions (`run_sample.py --precision bf16 --cam_out_dir OTHER`), on two devices or
of two versions: the share of pixels with the same label (arg-max over the background score and the classes).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from misc.cam import label_map
from misc.errors import InputError
from misc.files import camfile


def agreement(folder: Path, other: Path, thresholds: Sequence[float]) -> dict[float, float]:
    """{background score: share of the pixels of all images whose labels agree}.

    Raises `InputError` if the folders hold no CAM files, or files of different images, sizes or classes.
    """
    names = {path.name for path in folder.glob("*.npy")}
    if not names or names != {path.name for path in other.glob("*.npy")}:
        raise InputError(f"{folder} and {other} don't hold CAM files of the same images, or hold none.")
    equal, pixels = dict.fromkeys(thresholds, 0), 0
    for name in tqdm(sorted(names), unit="image"):
        (keys, maps), (other_keys, other_maps) = (camfile.load_high_res(of / name) for of in (folder, other))
        if keys.tolist() != other_keys.tolist() or maps.shape != other_maps.shape:
            raise InputError(f"{folder / name} and {other / name} differ in size or classes.")
        pixels += maps[0].size if len(maps) else 0
        for threshold in thresholds if len(maps) else ():
            same = label_map(maps, keys, threshold) == label_map(other_maps, keys, threshold)
            equal[threshold] += int(np.count_nonzero(same))
    return {threshold: count / max(1, pixels) for threshold, count in equal.items()}


def main() -> int:
    """Print a table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.08, 0.11, 0.14])
    options = parser.parse_args()
    try:
        shares = agreement(options.folder, options.other, options.thresholds)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("| background score | labels that agree |\n| --- | --- |")
    for threshold, share in shares.items():
        print(f"| {threshold:g} | {share:.3%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
