"""The scripts that set up an environment."""

import subprocess
import sys
from pathlib import Path

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
