"""The files of one image in the layout of the VOC devkit, as bytes."""

import io
from collections.abc import Sequence
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image

from misc.imutils import IGNORE_LABEL
from voc12.classes import voc_palette
from voc12.sample.plans import CLASSES
from voc12.sample.scenes import Scene

_JPEG_QUALITY = 92
_XML_SOURCE = {"database": "W-OoD sample", "annotation": "exact"}


def image_files(name: str, scene: Scene) -> dict[str, bytes]:
    """Picture, class mask, instance mask and annotation of one labelled image: relative path -> content."""
    values = np.array([0, *(CLASSES.index(label) + 1 for label in scene.plan.objects)], np.uint8)
    void = _surroundings(scene.instances)
    return {
        f"JPEGImages/{name}.jpg": jpeg(scene.picture),
        f"SegmentationClass/{name}.png": _mask_png(np.where(void, IGNORE_LABEL, values[scene.instances])),
        f"SegmentationObject/{name}.png": _mask_png(np.where(void, IGNORE_LABEL, scene.instances)),
        f"Annotations/{name}.xml": _annotation(name, scene),
    }


def jpeg(picture: np.ndarray) -> bytes:
    """Encode a picture, uint8 (H, W, 3) RGB."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _surroundings(instances: np.ndarray) -> np.ndarray:
    """The strip of background next to objects that VOC leaves out of the score, bool (H, W).

    It lies wholly outside the objects, so that their own pixels stay complete.
    """
    reach = max(2, round(max(instances.shape) / 120))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    objects = (instances > 0).astype(np.uint8)
    return (cv2.dilate(objects, disc) > 0) & (objects == 0)


def _mask_png(mask: np.ndarray) -> bytes:
    """Encode a mask of ids, (H, W) with values 0..255, as a PNG with VOC's palette."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _annotation(name: str, scene: Scene) -> bytes:
    """VOC's XML: source (its `image` is the background), size, each object with its box in instance order."""
    root = ElementTree.Element("annotation")
    height, width = scene.instances.shape
    _add(root, folder="sample", filename=f"{name}.jpg")
    _add(ElementTree.SubElement(root, "source"), **_XML_SOURCE, image=scene.plan.background)
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    _add(root, segmented=1)
    for number, label in enumerate(scene.plan.objects, start=1):
        x0, y0, x1, y1 = _extent(scene.instances == number)
        cut = x0 == 1 or y0 == 1 or x1 == width or y1 == height
        entry = ElementTree.SubElement(root, "object")
        _add(entry, name=label, pose="Unspecified", truncated=int(cut), difficult=0)
        _add(ElementTree.SubElement(entry, "bndbox"), xmin=x0, ymin=y0, xmax=x1, ymax=y1)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root) + b"\n"


def _add(parent: ElementTree.Element, **entries: str | int) -> None:
    """Append one child with text per entry."""
    for tag, text in entries.items():
        ElementTree.SubElement(parent, tag).text = str(text)


def _extent(mask: np.ndarray) -> Sequence[int]:
    """xmin, ymin, xmax, ymax of a bool mask, counted from 1 and inclusive as in VOC."""
    ys, xs = np.nonzero(mask)
    return int(xs.min()) + 1, int(ys.min()) + 1, int(xs.max()) + 1, int(ys.max()) + 1
