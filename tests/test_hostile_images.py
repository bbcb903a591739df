"""Image files that are something else than they say, or damaged: refused in a sentence, never run or waited for."""

import io
import os
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image
from support import answer, generated

from misc.errors import InputError
from misc.files.images import FORMATS, image_size, read_image, read_label
from voc12.verify import require_readable

READERS = {"image": read_image, "label": read_label, "size": image_size, "check": lambda path: check(path)}
PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def check(path):
    require_readable([path], num_workers=1)


def encoded(name: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, format=name, **options)
    return buffer.getvalue()


# Formats that PIL writes and the project does not take, with a mode that they hold
FOREIGN = {
    **dict.fromkeys(("EPS", "DDS", "ICNS", "ICO", "PDF"), "RGB"),
    **dict.fromkeys(("MSP", "XBM"), "1"),
    "SPIDER": "F",
    "BLP": "P",
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refusal(read, path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_under_an_image_suffix_are_refused(tmp_path, name, read):
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(name, FOREIGN[name]))
    assert "cannot identify image file" in refusal(read, path)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_postscript_is_not_run(tmp_path, monkeypatch, read):
    runs = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given: runs.append(given) or Image.new("RGB", (9, 9)).im)
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded("EPS"))
    with Image.open(path) as image:  # what PIL does unless it is told the formats
        image.load()
    assert len(runs) == 1
    refusal(read, path)
    assert len(runs) == 1


def pipe(path):
    os.mkfifo(path)


def link_to_an_endless_device(path):
    path.symlink_to("/dev/zero")


def link_to_a_waiting_device(path):
    path.symlink_to("/dev/tty")


def link_to_itself(path):
    path.symlink_to(path)


def listening_socket(path):
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path.name)


NO_FILES = {make.__name__: make for make in (pipe, link_to_an_endless_device, link_to_itself, listening_socket)}
if os.path.exists("/dev/tty"):
    NO_FILES["link_to_a_waiting_device"] = link_to_a_waiting_device
NO_FILES["folder"] = lambda path: path.mkdir()


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_pipes_devices_and_folders_are_not_waited_for(tmp_path, make, read):
    path = tmp_path / "x.jpg"
    make(path)
    refusal(read, path)


SOUND = {"JPEG": {}, "PNG": {}, "GIF": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {}, "BMP": {}, "PPM": {}}
TAKEN = {name: encoded(name, **options) for name, options in SOUND.items()}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_is_read(tmp_path, name):
    assert name in FORMATS
    path = tmp_path / "x.jpg"
    path.write_bytes(TAKEN[name])
    assert read_image(path).shape == PIXELS.shape
    assert image_size(path) == PIXELS.shape[:2]
    check(path)


@generated(60)
@given(
    name=st.sampled_from(sorted(TAKEN)),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=8),
    kept=st.floats(0, 1),
)
def test_damaged_images_are_read_or_refused(tmp_path, name, changes, kept):
    content = bytearray(TAKEN[name])
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / "x.jpg"
    path.write_bytes(content[: round(kept * len(content))])
    for read in READERS.values():
        result, sentence = answer(read, path)
        assert "\n" not in sentence
        assert result is None or isinstance(result, tuple) or result.dtype == np.uint8
