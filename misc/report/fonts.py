"""A font with the letters of a text: DejaVu Sans, which comes with matplotlib, or else one of this machine's."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from matplotlib import font_manager, get_data_path
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from misc.run.notices import notice

DEFAULT = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
"""It has Latin, Greek and Cyrillic letters, and some others."""
BOX = "\N{WHITE SQUARE}"


@cache
def font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The font in which to draw a text, of `size` pixels."""
    return ImageFont.truetype(_file_for(text), size)


def families(texts: Iterable[str]) -> list[str]:
    """Names of the fonts with which matplotlib writes these texts, for `fontfamily`; each letter takes the first."""
    files = dict.fromkeys([DEFAULT, *map(_file_for, texts)])
    for file in files:
        if file != DEFAULT:  # which matplotlib knows
            font_manager.fontManager.addfont(file)
    return [font_manager.FontProperties(fname=file).get_name() for file in files]


def drawable(text: str) -> str:
    """The text for a chart: a box for each letter that no font here has, of which matplotlib would warn."""
    letters = _letters_of(_file_for(text))
    return "".join(letter if letter.isspace() or ord(letter) in letters else BOX for letter in text)


def tell_missing_letters(texts: Iterable[str]) -> None:
    """A notice if this machine has no font for some of these texts, which are then drawn with boxes."""
    without = [text for text in texts if drawable(text) != text]
    if without:
        notice(
            f"no font of this machine has all letters of {', '.join(without[:5])}: pictures and charts show boxes in "
            "their place; install a font that has them, such as the package fonts-noto-cjk"
        )


@cache
def _file_for(text: str) -> Path:
    letters = _letters(text)
    if letters <= _letters_of(DEFAULT):
        return DEFAULT
    return next((file for file in _of_this_machine() if letters <= _letters_of(file)), DEFAULT)


def _letters(text: str) -> frozenset[int]:
    return frozenset(ord(letter) for letter in text if not letter.isspace())


@cache
def _letters_of(file: Path) -> frozenset[int]:
    """The code points that a font has; none of a file that can't be used, such as one of bitmaps."""
    try:
        ImageFont.truetype(file, 16)
        return frozenset(FT2Font(str(file)).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _of_this_machine() -> list[Path]:
    """All font files: first those of plain text."""
    files = [Path(name) for name in font_manager.findSystemFonts()]
    return sorted(files, key=lambda file: ("Regular" not in file.stem, "Serif" in file.stem, str(file)))
