"""Whether a file's content is as it was."""

import zlib
from pathlib import Path


def crc32_of(path: str | Path) -> str:
    """crc32 of a file's bytes, as eight hex digits. Raises `OSError`."""
    return f"{zlib.crc32(Path(path).read_bytes()):08x}"
