"""The scores of a pool's images, a line each in one record, written as they come."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from misc.files.jsonlines import append_lines, sound_lines

HASH_BYTES = 192
"""Of a perceptual hash: `misc.mining.perceptual_hash`."""


@dataclass(frozen=True)
class Score:
    """What is known of an image: its file when it was read, and what the classifier said.

    Attributes:
        file, size, time, checksum: its path, bytes, time of change (ns) and crc32.
        hash: the perceptual hash, in hex digits.
        name, probability: of its most probable class.
    """

    file: str
    size: int
    time: int
    checksum: str
    hash: str
    name: str
    probability: float

    @property
    def colours(self) -> np.ndarray:
        """(192,) uint8: the perceptual hash."""
        return np.frombuffer(bytes.fromhex(self.hash), dtype=np.uint8)

    @property
    def content(self) -> str:
        """A name of the image's content, for files that show it."""
        return f"{self.checksum}{self.size:x}"


MADE_WITH = "made_with"
KINDS = {item.name: item.type for item in fields(Score)}


class Scores:
    """`path`: a line for each image that was scored, whatever run did it.

    Content decides: a file that was moved, copied or touched is known by its bytes. Where its path, size and time are
    as they were, it is not read.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any], *, names: Collection[str], keep: bool = True) -> None:
        """`made_with`: whatever determines scores, as JSON can hold it; `names`: of the classes; `keep`: whether
        earlier scores count."""
        self._path = path
        self._made_with = blake2b(json.dumps(made_with, sort_keys=True).encode(), digest_size=8).hexdigest()
        self._of_file: dict[tuple[str, int, int], Score] = {}
        self._of_content: dict[tuple[int, str], Score] = {}
        for entry in sound_lines(path, KINDS | {MADE_WITH: str}) if keep else ():
            if entry[MADE_WITH] == self._made_with and _is_sound(entry, names):
                self._note(Score(**{name: entry[name] for name in KINDS}))
        self._sizes = {size for size, _ in self._of_content}

    def _note(self, score: Score) -> None:
        self._of_file[score.file, score.size, score.time] = score
        self._of_content[score.size, score.checksum] = score

    def of_file(self, file: str, size: int, time: int) -> Score | None:
        """The score of a file that is as it was when it was read."""
        return self._of_file.get((file, size, time))

    def may_know(self, size: int) -> bool:
        """Whether an image of this many bytes was scored, so that a file's checksum is worth reading."""
        return size in self._sizes

    def of_content(self, size: int, checksum: str) -> Score | None:
        """The score of an image, wherever it lay when it was read."""
        return self._of_content.get((size, checksum))

    def add(self, scores: Iterable[Score]) -> None:
        """Note scores, and write them down. Raises `InputError` if the disk takes no more."""
        scores = list(scores)
        for score in scores:
            self._note(score)
        append_lines(self._path, [{**asdict(score), MADE_WITH: self._made_with} for score in scores])


def _is_sound(entry: Mapping[str, Any], names: Collection[str]) -> bool:
    try:
        return (
            entry["name"] in names
            and 0 <= entry["probability"] <= 1
            and len(bytes.fromhex(entry["hash"])) == HASH_BYTES
        )
    except ValueError:
        return False
