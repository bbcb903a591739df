"""Imports run one way, between the folders of the project and between the rooms of `misc/`, without circles."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each room with those whose modules its own may import, besides each other
ROOMS = {
    "misc.errors": set(),
    "misc.files": {"misc.errors"},
    "misc.run": {"misc.errors", "misc.files"},
    "misc": {"misc.errors", "misc.files", "misc.run"},
    "misc.report": {"misc.errors", "misc.files", "misc.run", "misc"},
    "net": {"misc.errors", "misc.files", "misc.run", "misc"},
    "voc12": {"misc.errors", "misc.files", "misc.run", "misc"},
    "step": {"misc.errors", "misc.files", "misc.run", "misc", "misc.report", "net", "voc12"},
    "run_sample": {"misc.errors", "misc.files", "misc.run", "misc", "step", "voc12"},
    "tests": set(),
    "benchmarks": set(),
}
"""`tests` and `benchmarks` import what they like, and nobody imports them."""


def module_name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str | None:
    """The room of a module: the longest name that its own starts with; None for other packages."""
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((name for name in names if name in ROOMS), None)


def imports_of(path: Path, modules: set[str]) -> list[tuple[int, str]]:
    """(line, module) of all that a file imports, also inside functions: `from misc import cam` imports misc.cam."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: name the module from the project's folder"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name if name in modules else node.module) for name in inner]
    return found


def upward_imports(root: Path) -> list[str]:
    """What is wrong with the imports of the project's modules, a sentence each."""
    folders = [root / name for name in ("misc", "net", "voc12", "step")]
    paths = [root / "run_sample.py", *(path for folder in folders for path in folder.rglob("*.py"))]
    by_name = {module_name(path, root): path for path in paths}
    problems, graph = [], {}
    for module, path in by_name.items():
        own = room_of(module)
        for line, imported in imports_of(path, set(by_name)):
            room = room_of(imported)
            if room is None:
                continue
            graph.setdefault(module, set()).add(imported)
            if room != own and room not in ROOMS[own]:
                problems.append(f"{path.relative_to(root)}, line {line}: {own} may not import {imported}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        problems.append(f"a circle of imports: {' -> '.join(error.args[1])}")
    return problems


def test_imports_run_one_way():
    assert upward_imports(ROOT) == []


@pytest.mark.parametrize(
    ("module", "line", "problem"),
    [
        ("misc/run/a.py", "from misc.cam import b", "misc/run/a.py, line 1: misc.run may not import misc.cam"),
        (
            "misc/files/a.py",
            "from misc.run import c",
            "misc/files/a.py, line 1: misc.files may not import misc.run",
        ),
        ("misc/cam.py", "def f():\n    from net import b", "misc/cam.py, line 2: misc may not import net"),
        ("net/a.py", "import voc12.b", "net/a.py, line 1: net may not import voc12.b"),
        ("step/a.py", "from tests import support", "step/a.py, line 1: step may not import tests"),
        ("misc/a.py", "from misc import a", "a circle of imports: misc.a -> misc.a"),
    ],
)
def test_an_upward_import_is_named(tmp_path, module, line, problem):
    for folder in ("misc", "net", "voc12", "step"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run_sample.py").write_text("import step.b\nfrom misc.run import c\n")
    (tmp_path / module).parent.mkdir(exist_ok=True)
    (tmp_path / module).write_text(line + "\n")
    assert upward_imports(tmp_path) == [problem]
