"""Names of what lies in a devkit, and by which an imported one is found, labelled and split."""

from pathlib import Path

IMAGES, MASKS, OBJECTS = "JPEGImages", "SegmentationClass", "SegmentationObject"
"""As in VOC: photographs, and the ground truth of classes and of instances."""
OOD_IMAGES, OOD_LIST = "OoD_images", "ood_list.txt"
"""Out-of-distribution images, and their list, of a data set that has its own."""
IMPORT_RECORD = "import.csv"
"""Which file became which image: it tells an imported devkit from any other."""
LABEL_TABLE = "labels.csv"
CLASS_LIST = "classes.txt"
LABEL_COLUMNS = ("labels", "label")
"""Of the table of labels, where one column holds the names of an image's classes."""
ALL_IMAGES, TO_EVALUATE = "Main", "Segmentation"
"""As in VOC: lists for classification, and for segmentation. Images without any class are in the first alone, and so
are those without a mask where others have one."""


def list_path(root: str | Path, kind: str, split: str) -> Path:
    """`ImageSets/Main/train.txt` and its like."""
    return Path(root) / "ImageSets" / kind / f"{split}.txt"
