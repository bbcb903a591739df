"""Names of the files by which an imported devkit is found, labelled and split."""

from pathlib import Path

IMPORT_RECORD = "import.csv"
"""Which file became which image: it tells an imported devkit from any other."""
LABEL_TABLE = "labels.csv"
CLASS_LIST = "classes.txt"
ALL_IMAGES, WITH_CLASS = "Main", "Segmentation"
"""As in VOC: lists for classification, and for segmentation. Images without any class are in the first alone."""


def list_path(root: str | Path, kind: str, split: str) -> Path:
    """`ImageSets/Main/train.txt` and its like."""
    return Path(root) / "ImageSets" / kind / f"{split}.txt"
