# Sourced by bash_run_sample.sh and run_tests.sh: `use_environment FILE` sets $PYTHON to a Python that satisfies a
# requirements file. That is the active environment if it does, else .venv, which is made and filled where needed.

satisfies() { # python requirements
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10) and "its Python is older than 3.10")' || return
    "$1" misc/run/check_requirements.py "$2"
}

supported_python() { # prints the first Python of a supported version
    local name
    for name in ${WOOD_PYTHON:-} python3.12 python3.11 python3.10 python3.13 python3 python; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2])' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python from 3.10 on was found; install Python 3.12, or set WOOD_PYTHON to one." >&2
    return 2
}

install() { # requirements required|optional
    "$PYTHON" misc/run/check_requirements.py "$1" "$2" |
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r /dev/stdin
}

use_environment() { # requirements
    local active base missing=
    active=$(command -v python || command -v python3 || true)
    if [ -n "$active" ] && missing=$(satisfies "$active" "$1" 2>&1); then
        PYTHON=$active
        return
    fi
    PYTHON=.venv/bin/python
    if [ -x "$PYTHON" ] && satisfies "$PYTHON" "$1" 2>/dev/null; then
        return
    fi
    if [ ! -x "$PYTHON" ]; then
        base=$(supported_python) || return
        echo "making .venv with $("$base" --version), since the active environment does not satisfy $1:"
        echo "$missing" | head -n 5
        "$base" -m venv .venv || return
    fi
    "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip >/dev/null || return
    echo "installing $1 into .venv (some minutes: PyTorch is large)"
    if ! install "$1" required; then
        echo "error: the packages of $1 could not be installed into .venv; see pip's message above." >&2
        return 2
    fi
    if ! { install "$1" optional && "$PYTHON" -c 'import pydensecrf.densecrf'; } >/dev/null 2>&1; then
        echo "note: pydensecrf2 was left out, which needs a C++ compiler and Python 3.10 to 3.12; PyTorch does its work."
    fi
}
