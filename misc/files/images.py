"""Image files as uint8 arrays: photographs and label maps, read and written."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import ExifTags, Image, ImageOps

from misc.errors import InputError, raise_if_of_the_machine, reason_of
from misc.files.atomic import atomic_path
from misc.files.paths import Paths
from misc.files.regular import regular

JPEG_QUALITY = 90
UPRIGHT = 1
"""EXIF's orientation of pixels that are stored as people see them."""
ON_ITS_SIDE = (5, 6, 7, 8)
"""EXIF orientations of photographs that are stored with height and width exchanged."""
DEEP_TO_UINT8 = 257
"""65535 / 255: 16-bit grey to 8-bit."""
DEEP_FORMATS = ("PNG", "PPM")
"""Formats without 32-bit numbers: PIL's mode I holds their 16 bits."""
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif"),
    *(".jp2", ".j2k", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".sgi"),
)
"""Of the files that `read_image` reads, in any case; where files differ in nothing else, the first one counts."""
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000"),
    *("PPM", "TGA", "PCX", "SGI"),
)
"""PIL's names of what a file may be, whatever its suffix. PIL knows many more; PostScript among them it would run."""
HEADERS_AT_ONCE, HEADERS_A_PART = 16, 1024
"""Of image files that are read side by side, and that are asked for before the next ones are."""


def without_image_suffix(name: str) -> str:
    """`ID.jpg` -> `ID`, for every kind of image; other names stay."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else name


def has_image_suffix(name: str) -> bool:
    """Whether a name ends as those of images do."""
    return without_image_suffix(name) != name


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this PIL can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_image(path: str | Path) -> Image.Image:
    """The one way to open an image file with PIL, for a `with`: of the `FORMATS` alone, and never a pipe or device.

    Raises what PIL raises for files that are no image: mostly `OSError`, but a damaged file makes it fail in any way.
    """
    return Image.open(regular(path), formats=_known_formats())


def open_image_bytes(content: bytes) -> Image.Image:
    """The same of the bytes of an image file."""
    return Image.open(BytesIO(content), formats=_known_formats())


def pixel_problem(image: Image.Image) -> str | None:
    """Why the pixels of an image have no brightness that is known: 32-bit numbers of any range. None if they have."""
    if image.mode == "F" or (image.mode == "I" and image.format not in DEEP_FORMATS):
        return f"it has 32-bit pixels of PIL's mode {image.mode}, whose range is not known, expected 8 or 16 bits"
    return None


def read_image(path: str | Path, *, upright: bool = False) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB; grey images are repeated to three channels, 16 bits scaled to 8.

    `upright` turns a photograph as its EXIF orientation says (a data set's masks fit the pixels as they are stored).

    Raises `InputError` if the file is missing, unreadable, or has 32-bit pixels.
    """
    try:
        with open_image(path) as stored:
            if problem := pixel_problem(stored):
                raise ValueError(problem)
            if stored.mode.startswith("I"):
                grey = (np.asarray(stored) // DEEP_TO_UINT8).astype(np.uint8)
                image = np.repeat(grey[..., None], 3, axis=2)
            else:
                image = np.array(stored.convert("RGB"))
            return turned_upright(image, orientation_of(stored)) if upright else image
    except Exception as error:  # a damaged file makes PIL fail in any way
        raise_if_of_the_machine(error, memory=True)
        raise InputError(
            f"image {path} can't be read ({reason_of(error)}); replace it or take it out of the list."
        ) from error


def orientation_of(image: Image.Image, exif: Image.Exif | None = None) -> int:
    """EXIF's orientation of an opened image, 1 to 8: how PIL's pixels are to be turned; `UPRIGHT` where it says none.

    `exif`: the image's, where it is known.
    """
    if image.format == "TIFF":  # which PIL turns as it reads it
        return UPRIGHT
    exif = image.getexif() if exif is None else exif
    orientation = exif.get(ExifTags.Base.Orientation, UPRIGHT)
    return orientation if orientation in range(1, 9) else UPRIGHT


def stored_orientation(path: str | Path) -> int:
    """`orientation_of` an image file that can be read."""
    with open_image(path) as image:
        return orientation_of(image)


def turned_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 pixels as a file has them -> as people see them, by EXIF's orientation."""
    if orientation == UPRIGHT:
        return pixels
    picture = Image.fromarray(pixels)
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


def label_path(folder: str | Path, image_id: str) -> Path:
    """Where the label map of an image lies: a mask or confident label."""
    return Path(folder) / f"{image_id}.png"


def label_paths(folder: str | Path, ids: Iterable[str]) -> Paths:
    """Where the label maps of many images lie."""
    return Paths(folder, (f"{image_id}.png" for image_id in ids))


def read_label(path: str | Path, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """A palette or grey PNG as (H, W) uint8 ids.

    Raises `InputError` if it is missing, unreadable or in colour, or not of its image's `size`, where that is given.
    """
    try:
        with open_image(path) as image:
            mode, label = image.mode, np.array(image)
    except Exception as error:  # a damaged file makes PIL fail in any way
        raise_if_of_the_machine(error, memory=True)
        raise InputError(f"label {path} can't be read ({reason_of(error)}); replace it.") from error
    if mode not in ("P", "L", "1"):
        kind = "16-bit" if mode.startswith("I") else mode
        raise InputError(
            f"label {path} is a {kind} image; expected a palette or grey PNG of 8 bits: ids up to 254, 255 for unsure "
            "pixels."
        )
    if size is not None and label.shape != tuple(size):
        raise InputError(f"label {path} has size {label.shape}, its image {size} (rows, columns); replace it.")
    return label.astype(np.uint8)


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of an image file, from its header. Raises `InputError` if it is missing or no image."""
    try:
        with open_image(path) as image:
            return image.height, image.width
    except Exception as error:  # a damaged file makes PIL fail in any way
        raise_if_of_the_machine(error, memory=True)
        raise InputError(
            f"image {path} can't be read ({reason_of(error)}); replace it or take it out of the list."
        ) from error


def image_sizes(paths: Sequence[str]) -> list[tuple[int, int]]:
    """`image_size` of many files, side by side: on a network file system each would wait for its own answer."""
    sizes: list[tuple[int, int]] = []
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        for first in range(0, len(paths), HEADERS_A_PART):
            sizes += pool.map(image_size, paths[first : first + HEADERS_A_PART])
    return sizes


def write_label(path: str | Path, label: np.ndarray) -> None:
    """Write (H, W) uint8 ids as a grey PNG."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(iio.imwrite("<bytes>", label, plugin="pillow", extension=".png"))


def write_palette(path: str | Path, label: np.ndarray, palette: np.ndarray) -> None:
    """Write (H, W) uint8 ids as a palette PNG; `palette` is (256, 3) uint8 RGB."""
    image = Image.fromarray(label).convert("P")
    image.putpalette(palette.tobytes())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def write_jpeg(path: str | Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB as a JPEG."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="JPEG", quality=JPEG_QUALITY)
