"""Under which names a checkpoint may lie, and what lies beside it."""

from pathlib import Path


def checkpoint_names(path: str | Path) -> tuple[Path, ...]:
    """`path`, the same with the original's doubled ending `.pth.pth`, and without: the first that is there counts."""
    return Path(path), Path(f"{path}.pth"), Path(str(path).removesuffix(".pth"))


def checkpoint_file(path: str | Path) -> Path:
    """The first of these names that is a file; `path` where none is."""
    return next((name for name in checkpoint_names(path) if name.is_file()), Path(path))


def files_of_network(weights: str) -> list[str | Path]:
    """A checkpoint, and its class names beside it."""
    return [weights, classes_beside(weights)]


def classes_beside(weights: str | Path) -> Path:
    """The file with the class names of a checkpoint: `NAME.classes.txt` for `NAME.pth`."""
    return Path(f"{str(weights).removesuffix('.pth')}.classes.txt")
