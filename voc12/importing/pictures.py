"""The files of a devkit's images: looked at by their headers, linked or copied, turned upright where EXIF says so."""

import os
import shutil
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from misc.errors import InputError, raise_if_of_the_machine, reason_of
from misc.files.atomic import atomic_path
from misc.files.images import (
    IMAGE_SUFFIXES,
    ON_ITS_SIDE,
    UPRIGHT,
    open_image,
    open_image_bytes,
    orientation_of,
    pixel_problem,
)
from misc.files.regular import regular

SUFFIX_OF = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}
"""Of formats whose name is not their suffix."""
LOSSY = ("JPEG", "MPO")
TURNED_QUALITY = 95
"""Of JPEGs that are written anew, with colours at full resolution: the second coding leaves 43 dB, a change of 1.3 of
255 on average, which nobody sees (docs/own_data.md). All other kinds become PNGs, which lose nothing."""
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


@dataclass(frozen=True)
class Facts:
    """What an image file is.

    Attributes:
        content: a digest of its bytes.
        suffix: that of its name, or the one that its kind has.
        size: (H, W) as its pixels are stored.
        orientation: EXIF's, 1 to 8; 1 is upright.
        is_lossy: whether turning it means coding it anew with loss.
    """

    content: str
    suffix: str
    size: tuple[int, int]
    orientation: int
    is_lossy: bool

    @property
    def upright_size(self) -> tuple[int, int]:
        """(H, W) as people see it."""
        return self.size[::-1] if self.orientation in ON_ITS_SIDE else self.size


def facts_of(path: Path) -> Facts | str:
    """What an image file is, from its bytes and its header, without decoding it; or why it can't be read."""
    try:
        raw = regular(path).read_bytes()
        with open_image_bytes(raw) as image:
            if problem := pixel_problem(image):
                return problem
            orientation = _orientation(image, raw)
            suffix = path.suffix if path.suffix.lower() in IMAGE_SUFFIXES else _suffix_of(image.format)
            content = blake2b(raw, digest_size=16).hexdigest()
            return Facts(content, suffix, (image.height, image.width), orientation, image.format in LOSSY)
    except UnidentifiedImageError:  # which names the object that holds the bytes, another one in each run
        return "cannot identify image file"
    except Exception as error:  # a damaged file makes PIL fail in any way
        raise_if_of_the_machine(error, memory=True)
        return reason_of(error)


def content_if_turned(path: str | Path) -> str | None:
    """The digest of the bytes of a photograph that is stored turned, as `Facts` has it; None of any other file.

    Of others no more than the header is read, except of PNGs, whose EXIF data may be at the end.
    """
    try:
        with open_image(path) as image:
            may_be_turned = image.format == "PNG" or orientation_of(image) != UPRIGHT
    except Exception as error:  # a damaged file makes PIL fail in any way
        raise_if_of_the_machine(error, memory=True)
        return None
    facts = facts_of(Path(path)) if may_be_turned else None
    return facts.content if isinstance(facts, Facts) and facts.orientation != UPRIGHT else None


def _suffix_of(image_format: str) -> str:
    return SUFFIX_OF.get(image_format, f".{image_format.lower()}")


def _orientation(image: Image.Image, raw: bytes) -> int:
    # PIL decodes the whole of a PNG to look for EXIF data behind the pixels: only where the bytes have some
    is_short = image.format == "PNG" and b"eXIf" not in raw
    return orientation_of(image, Image.Image.getexif(image) if is_short else None)


def suffix_in_devkit(facts: Facts) -> str:
    """The suffix of the devkit's file: the source's, except of what is turned and becomes a PNG."""
    return facts.suffix if facts.orientation == UPRIGHT or facts.is_lossy else ".png"


def place_image(source: Path, target: Path, facts: Facts) -> str | None:
    """Make `target` of an image file: a hard link, a copy where there can be none, or an upright picture.

    Returns why that can't be done, None if it is done. Raises `InputError` if the disk takes no more.
    """
    try:
        if facts.orientation == UPRIGHT and _link(source, target):
            return None
        with atomic_path(target) as temporary:
            if facts.orientation == UPRIGHT:
                shutil.copyfile(source, temporary)
            else:
                _write_upright(source, temporary)
    except InputError:
        raise
    except Exception as error:
        raise_if_of_the_machine(error, memory=True)
        return reason_of(error)
    return None


def _link(source: Path, target: Path) -> bool:
    """Make `target` a hard link, which is there at once and whole; whether that was possible."""
    try:
        os.link(os.path.realpath(source) if source.is_symlink() else source, target)
    except OSError:  # other disks, file systems without links, other people's files, a file that is there
        return False
    return True


def _write_upright(source: Path, target: Path) -> None:
    with open_image(source) as stored:
        upright, is_lossy = ImageOps.exif_transpose(stored), stored.format in LOSSY
        colours = {"icc_profile": profile} if (profile := stored.info.get("icc_profile")) else {}
        if is_lossy:
            upright.save(target, format="JPEG", quality=TURNED_QUALITY, subsampling=0, exif=b"", **colours)
        else:
            plain = upright if upright.mode in PNG_MODES else upright.convert("RGB")
            plain.save(target, format="PNG", exif=b"", **colours)
