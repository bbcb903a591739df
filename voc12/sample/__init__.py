"""A small drawn data set in VOC's layout, for trying the whole method without any download.

Eight of VOC's classes, each nearly always on a background of its own, tempt a classifier that only knows
image labels to use the background; the OoD images are these backgrounds without the objects. Masks are exact.

    ensure("Data/sample")  # makes the data set if it is missing, damaged or of other settings
"""

from voc12.sample.dataset import Settings, ensure, generate, is_intact
from voc12.sample.plans import CLASSES

__all__ = ["CLASSES", "Settings", "ensure", "generate", "is_intact"]
