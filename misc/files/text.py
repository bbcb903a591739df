"""Text files as people and their programs write them."""

import codecs
from pathlib import Path

from misc.files.regular import regular

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def encoding_of(start: bytes) -> str:
    """The encoding of a file whose first two bytes, or more, are `start`.

    UTF-8 with or without a byte order mark, or UTF-16 with one, as Windows' shell writes it.
    """
    return "utf-16" if start.startswith(UTF16_MARKS) else "utf-8-sig"


def read_text(path: str | Path) -> str:
    """A file's text, in the encoding of `encoding_of`.

    Raises `OSError`, or `ValueError` for bytes that are no text.
    """
    content = regular(path).read_bytes()
    return content.decode(encoding_of(content))
