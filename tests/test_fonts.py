"""Names in any letters, as far as this machine has a font for them."""

import logging
from pathlib import Path

import numpy as np
import pytest
from matplotlib import get_data_path

from misc.report import fonts
from misc.report.pictures import with_legend

SHIPPED = Path(get_data_path(), "fonts", "ttf")
WITHOUT_CYRILLIC, WITH_CYRILLIC = SHIPPED / "cmr10.ttf", SHIPPED / "DejaVuSans.ttf"
NOWHERE = "cat \U000f0000"


@pytest.fixture
def machine(monkeypatch):
    """A function that says what the default font is, and which others there are."""
    caches = (fonts.font, fonts._file_for)

    def has(default, others):
        monkeypatch.setattr(fonts, "DEFAULT", default)
        monkeypatch.setattr(fonts, "_of_this_machine", lambda: others)
        for cached in caches:
            cached.cache_clear()

    yield has
    for cached in caches:
        cached.cache_clear()


def legend():
    return with_legend(np.zeros((4, 60, 3), dtype=np.uint8), {"Кошка": (9, 9, 9)})


def test_a_text_is_drawn_in_the_first_font_that_has_its_letters(machine, tmp_path):
    machine(WITH_CYRILLIC, [])
    expected = legend()
    no_font = tmp_path / "Regular.ttf"
    no_font.write_bytes(b"no font")
    machine(WITHOUT_CYRILLIC, [no_font, WITHOUT_CYRILLIC, WITH_CYRILLIC])
    np.testing.assert_array_equal(legend(), expected)
    assert fonts.families(["cat", "Кошка"]) == ["cmr10", "DejaVu Sans"]
    assert fonts.drawable("Кошка") == "Кошка"
    machine(WITHOUT_CYRILLIC, [])
    assert not np.array_equal(legend(), expected)


def test_letters_without_a_font_are_boxes_and_told_once(machine, caplog):
    machine(WITH_CYRILLIC, [])
    assert fonts.drawable(NOWHERE) == "cat □"
    with caplog.at_level(logging.INFO):
        fonts.tell_missing_letters(["cat", "Кошка"])
        assert caplog.messages == []
        fonts.tell_missing_letters(["cat", NOWHERE])
    (told,) = caplog.messages
    assert f"no font of this machine has all letters of {NOWHERE}: " in told


def test_plain_fonts_come_first_and_all_that_are_listed_can_be_asked():
    files = fonts._of_this_machine()
    for file in files:
        assert isinstance(fonts._letters_of(file), frozenset)
    regular = ["Regular" in file.stem for file in files]
    assert regular == sorted(regular, reverse=True)
