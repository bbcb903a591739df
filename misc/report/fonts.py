"""A font with the letters of a text: DejaVu Sans, which comes with matplotlib, or else one of this machine's."""

import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from misc.run.notices import notice

DEFAULT = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
"""It has Latin, Greek and Cyrillic letters, and some others."""
BOX = "\N{WHITE SQUARE}"
TRIAL_SIZE = 16
NONCHARACTERS = {0xFFFF, 0x10FFFF}
"""A font that has these has a placeholder for everything, as macOS' LastResort."""
VARIATION_SELECTORS = range(0xFE00, 0xFE10)


def font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The font in which to draw a text, of `size` pixels."""
    return _loaded(_file_for(text), size)


def families(texts: Iterable[str]) -> list[str]:
    """Names of the fonts with which matplotlib writes these texts, for `fontfamily`; each letter takes the first."""
    from matplotlib import font_manager  # which may look through all fonts of the machine when it is first imported

    files = dict.fromkeys([DEFAULT, *map(_file_for, texts)])
    for file in files:
        if file != DEFAULT:  # which matplotlib knows
            font_manager.fontManager.addfont(file)
    return [font_manager.FontProperties(fname=file).get_name() for file in files]


def drawable(text: str) -> str:
    """The text for a chart: a box for each letter that its font lacks, of which matplotlib would warn."""
    letters = _letters_of(_file_for(text))

    def shown(letter: str) -> str:
        if letter.isspace() or ord(letter) in letters:
            return letter
        return BOX if _letters(letter) else ""

    return "".join(map(shown, text))


def tell_missing_letters(texts: Iterable[str]) -> None:
    """A notice if this machine has no font for some of these texts, which are then drawn with boxes."""
    without = [text for text in texts if not _letters(text) <= _letters_of(_file_for(text))]
    if without:
        notice(
            f"no font of this machine has all letters of {', '.join(without[:5])}: pictures and charts show boxes in "
            "their place; install a font that has them, such as the package fonts-noto-cjk"
        )


@cache
def _loaded(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size)


@cache
def _file_for(text: str) -> Path:
    """The first font that has all letters, or the one that has most of them."""
    best, missing = DEFAULT, _letters(text) - _letters_of(DEFAULT)
    for file in _of_this_machine() if missing else ():
        left = _letters(text) - _letters_of(file)
        if len(left) < len(missing) and _draws(file, text):
            best, missing = file, left
        if not missing:
            break
    return best


def _draws(file: Path, text: str) -> bool:
    """Whether the font is sound as far as this text goes."""
    try:
        _loaded(file, TRIAL_SIZE).getmask(text)
    except OSError:
        return False
    return True


def _letters(text: str) -> frozenset[int]:
    """The code points of a text that have to be seen."""
    seen = (letter for letter in text if not (letter.isspace() or unicodedata.category(letter) == "Cf"))
    return frozenset(map(ord, seen)) - frozenset(VARIATION_SELECTORS)


@cache
def _letters_of(file: Path) -> frozenset[int]:
    """The code points that a font has; none of a file that can't be used, such as one of bitmaps or placeholders."""
    try:
        _loaded(file, TRIAL_SIZE)
        letters = FT2Font(str(file)).get_charmap()
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset() if letters.keys() & NONCHARACTERS else frozenset(letters)


@cache
def _of_this_machine() -> list[Path]:
    """All font files: first those of plain text."""
    from matplotlib import font_manager

    def last(file: Path) -> tuple[bool, bool, bool, str]:
        is_cut = any(cut in file.stem for cut in ("Bold", "Italic", "Oblique"))
        return is_cut, "Regular" not in file.stem, "Serif" in file.stem, str(file)

    return sorted(map(Path, font_manager.findSystemFonts()), key=last)
