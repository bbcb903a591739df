"""Shared fixtures: the recordings of the original where they are at hand, and a toy data set in devkit layout."""

import json
from pathlib import Path

import pytest
import torch
from support import ToyData, make_toy_data

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture
def fixture_json():
    """Reads a small recording that is part of the repository."""
    return lambda name: json.loads((FIXTURES / name).read_text())


@pytest.fixture(scope="session")
def parity() -> Path:
    """The folder with the recordings of the original."""
    folder = SHARED / "parity"
    if not folder.is_dir():
        pytest.skip(f"the recordings of the original are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def voc_subset() -> Path:
    """A subset of PASCAL VOC 2012 with real out-of-distribution images."""
    folder = SHARED / "voc_subset"
    if not folder.is_dir():
        pytest.skip(f"the VOC subset is not at {folder}")
    return folder


@pytest.fixture
def toy(tmp_path, monkeypatch) -> ToyData:
    """The toy data set, in whose working directory the test runs."""
    data = make_toy_data(tmp_path)
    monkeypatch.chdir(data.work)
    return data
