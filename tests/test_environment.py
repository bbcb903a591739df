"""The scripts that set up an environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from misc.run import check_requirements
from misc.run.check_requirements import problems

ROOT = Path(__file__).resolve().parent.parent


def test_this_environment_satisfies_the_requirements():
    assert problems(ROOT / "tests" / "requirements.txt") == []


def test_what_is_missing_or_too_old_is_named(tmp_path):
    (tmp_path / "base.txt").write_text("numpy>=999  # far away\n")
    (tmp_path / "all.txt").write_text('-r base.txt\nno-such-package>=1\nskipped>=1; python_version < "3"\n')
    found = problems(tmp_path / "all.txt")
    assert len(found) == 2
    assert found[0].startswith("numpy>=999 is needed, ")
    assert found[1] == "no-such-package>=1 is missing"


def test_what_is_optional_may_be_missing(tmp_path, capsys, monkeypatch):
    path = tmp_path / "r.txt"
    path.write_text('pytest>=1\npydensecrf2>=999; python_version < "99"\n')
    assert problems(path) == []
    for part, expected in (("required", "pytest>=1"), ("optional", 'pydensecrf2>=999; python_version < "99"')):
        monkeypatch.setattr(sys, "argv", ["check_requirements.py", str(path), part])
        assert check_requirements.main() == 0
        assert capsys.readouterr().out == f"{expected}\n"


STAND_IN = """#!/usr/bin/env bash
# Stands for the Python of .venv: notes what pip is to install, and can't build one package
case "$*" in
*"pip install"*)
    wanted=$(cat)
    echo "installed $wanted" >>installed.txt
    if [[ $wanted == *pydensecrf2* && -n $NO_COMPILER ]]; then echo "error: no compiler" >&2; exit 1; fi ;;
*"import pydensecrf"*) [ -z "$NO_COMPILER" ] ;;
*"-m pip --version"*) ;;
*) exec "$REAL_PYTHON" "$@" ;;
esac
"""


@pytest.mark.parametrize("no_compiler", ["", "1"])
def test_set_up_goes_on_without_what_is_optional(tmp_path, no_compiler):
    for name in ("environment.sh", "check_requirements.py"):
        target = tmp_path / "misc/run" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((ROOT / "misc/run" / name).read_text())
    (tmp_path / "r.txt").write_text("no-such-package>=1\npydensecrf2>=1.0\n")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN)
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", 'source misc/run/environment.sh; use_environment r.txt; echo "$PYTHON"'],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "NO_COMPILER": no_compiler, "REAL_PYTHON": sys.executable},
    )
    assert done.stdout.splitlines()[-1] == ".venv/bin/python"
    assert (tmp_path / "installed.txt").read_text() == "installed no-such-package>=1\ninstalled pydensecrf2>=1.0\n"
    assert done.stdout.count("note: pydensecrf2 was left out") == len(no_compiler)
    assert done.stderr == ""


def test_a_torchvision_without_its_torch_is_found(tmp_path, monkeypatch):
    real = problems.__globals__["metadata"].version
    monkeypatch.setattr(
        problems.__globals__["metadata"], "version", lambda name: "2.6.0" if name == "torch" else real(name)
    )
    (tmp_path / "r.txt").write_text("torch>=2.6\ntorchvision>=0.21\n")
    (problem,) = problems(tmp_path / "r.txt")
    assert problem.startswith("torchvision: torch")


def test_an_environment_that_fits_is_used_as_it_is(tmp_path):
    (tmp_path / "requirements.txt").write_text("pytest>=1\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    script = " && ".join(
        (
            f'cd "{ROOT}"',
            "source misc/run/environment.sh",
            f'use_environment "{tmp_path}/requirements.txt"',
            'echo "$PYTHON"',
        )
    )
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )
    assert done.stdout.strip() == str(Path(sys.executable).parent / "python")


def test_importing_any_module_does_nothing():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("misc", "net", "voc12", "step")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "__init__.py"
    ]
    code = f"import importlib\nfor name in {['run_sample', *modules]!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("", "")
