"""What is looked at before all other imports: standard streams, and whether this Python can run the project.

Where it can't, these imports would fail without saying what to do. So this module runs on Pythons from 3.6 on, on any
system, and without any package.
"""

import importlib
import importlib.util
import os
import sys

OLDEST = (3, 10)
PACKAGES = ("torch", "torchvision", "numpy", "PIL", "imageio", "tqdm", "cv2", "pycocotools", "matplotlib", "jinja2")
"""Those of `requirements.txt` without which no run begins, by the names under which they are imported."""
REMEDIES = {
    "numpy": "install it again: pip install --force-reinstall numpy",
    "PIL.Image": "install it again: pip install --force-reinstall pillow",
    "torch": "install it again, with a torchvision that belongs to it: pip install --upgrade torch torchvision",
    "torchvision": (
        "most often it was built for another torch: install two that belong together, by one command: "
        "pip install --upgrade torch torchvision"
    ),
    "cv2": (
        "where libraries of a desktop are missing, use OpenCV without its windows: pip uninstall opencv-python "
        "opencv-contrib-python, then pip install --force-reinstall opencv-python-headless"
    ),
    "pycocotools.mask": "install it again: pip install --force-reinstall pycocotools",
    "matplotlib.transforms": "install it again: pip install --force-reinstall matplotlib",
}
"""What helps where a package can't be imported, by a module that loads its compiled parts; in the order in which the
packages need each other."""
SIGNS_OF_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.dtype size", "_ARRAY_API")
"""What the reason holds where a package was built for another NumPy."""
EXIT_BAD_INPUT = 2


def problem_of_interpreter() -> str:
    """Why this Python can't run the project, and what to do, in one sentence; empty if it can."""
    if sys.version_info[:2] < OLDEST:
        return "Python {}.{} or later is needed, and {} is {}.{}; activate an environment that has one ({}).".format(
            *OLDEST, sys.executable, *sys.version_info[:2], "docs/install.md"
        )
    if importlib.util.find_spec("fcntl") is None:
        return (
            "this system has no file locks of POSIX (Python's fcntl), which the project needs: run it on Linux, or on "
            "Windows in WSL 2 (docs/install.md)."
        )
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"{sys.executable} lacks {', '.join(missing)}; activate the project's environment (source "
            ".venv/bin/activate), or install what is missing: pip install -r requirements.txt (docs/install.md)."
        )
    return ""


def replace_closed_streams() -> None:
    """Let a standard stream that the caller has closed (`2>&-`) lead nowhere, so that no file takes its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, mode)  # noqa: SIM115 - for as long as Python runs
            os.set_inheritable(nowhere.fileno(), True)  # nor does one in a process that is started by this one
            setattr(sys, name, nowhere)


def speaks_for_this_machine() -> bool:
    """Whether this process tells what all of its machine find alike: the first one there, or one without a number."""
    text = os.environ.get("LOCAL_RANK", "0")
    return not text.isdecimal() or int(text) == 0


def require_interpreter() -> None:
    """End with one sentence and exit code 2 if this Python can't run the project; of several processes one says it."""
    problem = problem_of_interpreter()
    if problem:
        if speaks_for_this_machine():
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def require_imports() -> None:
    """Raise `InputError` for a package that is installed but can't be imported, and say what helps."""
    # Not before the interpreter was looked at
    from importlib.metadata import packages_distributions

    from misc.errors import InputError, reason_of

    for module, remedy in REMEDIES.items():
        try:
            importlib.import_module(module)
        except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as error:
            package, reason = module.partition(".")[0], reason_of(error)
            if any(sign in reason for sign in SIGNS_OF_NUMPY):
                installed = sorted({*filter(None, packages_distributions().get(package, []))}) or [package]
                remedy = (
                    "it was built for another NumPy than the one that is installed: pip install --upgrade numpy "
                    f"{' '.join(installed)}"
                )
            raise InputError(
                f"the package {package} is installed but can't be imported ({reason}); {remedy} (docs/install.md)."
            ) from error
