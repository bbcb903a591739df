"""Progress bars."""

from typing import Any

from tqdm import tqdm

from misc.run.distributed import is_first_process


def progress(*args: Any, **options: Any) -> tqdm:
    """A bar of tqdm; of several processes the first one alone shows it."""
    return tqdm(*args, disable=not is_first_process(), **options)
