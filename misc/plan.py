"""Checking, before a run begins, that each step will find what earlier steps make."""

from collections.abc import Iterable
from pathlib import Path

from misc.errors import InputError, first_three

Planned = frozenset[str]
"""Checkpoints and folders that earlier steps of the same run will make."""


def require_outputs(
    folder: str, ids: Iterable[str], suffix: str, *, flag: str, made_by: str, planned: Planned = frozenset()
) -> None:
    """Raise `InputError` if files `<folder>/<id><suffix>` are missing, unless an enabled earlier step makes them."""
    if folder in planned:
        return
    ids = list(ids)
    if not Path(folder).is_dir():
        raise InputError(
            f"--{flag}: folder {folder} is missing; run {made_by} first, or name the folder that it wrote."
        )
    present = {path.name for path in Path(folder).iterdir()}
    missing = [image_id for image_id in ids if image_id + suffix not in present]
    if missing:
        raise InputError(
            f"--{flag}: {folder} lacks {len(missing)} of the {len(ids)} images of the list ({first_three(missing)}); "
            f"run {made_by} on that list first."
        )
