"""Text files as people and their programs write them."""

import codecs
from pathlib import Path

from misc.files.regular import regular


def read_text(path: str | Path) -> str:
    """A file's text: UTF-8 with or without a byte order mark, or UTF-16 with one, as Windows' shell writes it.

    Raises `OSError`, or `ValueError` for bytes that are no text.
    """
    content = regular(path).read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf16 else "utf-8-sig")
