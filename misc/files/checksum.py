"""Whether a file's content is as it was, or as it was published."""

import hashlib
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 18


@dataclass(frozen=True)
class Digest:
    """What is published of a file's content: the name of the hash and its hexadecimal digits, or the first of them."""

    algorithm: str
    hexadecimal: str

    def mismatch(self, path: Path) -> str | None:
        """How the file differs; None if it does not. Raises `OSError`."""
        with path.open("rb") as file:
            found = hashlib.new(self.algorithm, usedforsecurity=False)
            while chunk := file.read(CHUNK):
                found.update(chunk)
        if found.hexdigest().startswith(self.hexadecimal):
            return None
        name = self.algorithm.upper()
        return f"its {name} is {found.hexdigest()[: len(self.hexadecimal)]}, expected {self.hexadecimal}"


def digest_in_name(name: str) -> Digest | None:
    """What a name says that ends, as those of torchvision's weights, in the first digits of the file's SHA-256."""
    digits = re.search(r"-([0-9a-f]{8,})\.", name)
    return digits and Digest("sha256", digits[1])


def crc32_of(path: str | Path) -> str:
    """crc32 of a file's bytes, as eight hex digits. Raises `OSError`."""
    return f"{zlib.crc32(Path(path).read_bytes()):08x}"
