"""A small drawn data set in VOC's layout, for trying the whole method without any download.

Eight of VOC's classes, each nearly always on a background of its own, tempt a classifier that only knows
image labels to use the background; the OoD images are these backgrounds without the objects. Masks are exact.

    ensure("Data/sample")  # makes the data set if it is missing, damaged or of other settings
"""

from tqdm import tqdm

from voc12.sample.dataset import Settings, ensure, generate, is_intact
from voc12.sample.plans import CLASSES

__all__ = ["CLASSES", "Settings", "ensure", "ensure_with_bar", "generate", "is_intact"]


def ensure_with_bar(root: str, *, workers: int, **settings: int) -> None:
    """`ensure` with a progress bar."""
    with tqdm(desc="drawing the built-in sample", unit="image", disable=is_intact(root, **settings)) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        ensure(root, workers=max(1, workers), progress=show, **settings)
