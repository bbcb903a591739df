"""Looking at what lies under a name before it is opened: reading a pipe waits, reading a device may never end."""

import stat
from pathlib import Path


def regular(path: str | Path) -> Path:
    """`path`, if it is there and no pipe, socket or device. Raises `OSError`, as opening the file would."""
    path = Path(path)
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder says itself what is wrong
        raise OSError("it is a pipe, a socket or a device, expected a file")
    return path
