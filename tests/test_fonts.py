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

    def has(default, others):
        monkeypatch.setattr(fonts, "DEFAULT", default)
        monkeypatch.setattr(fonts, "_of_this_machine", lambda: others)
        fonts._file_for.cache_clear()

    yield has
    fonts._file_for.cache_clear()


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


def test_of_a_text_that_no_font_has_whole_most_letters_are_shown(machine):
    machine(WITHOUT_CYRILLIC, [WITH_CYRILLIC])
    assert fonts.drawable("Кошка \U000f0000") == "Кошка □"
    assert fonts.drawable("Кошка\U000e0061") == "Кошка"  # of what is not seen nothing is missing


def test_fonts_that_claim_everything_or_are_damaged_are_passed_over(machine, monkeypatch, tmp_path):
    class Placeholders:
        def __init__(self, file):
            pass

        def get_charmap(self):
            return {0xFFFF: 1, ord("К"): 1}

    with monkeypatch.context() as patch:
        patch.setattr(fonts, "FT2Font", Placeholders)
        assert fonts._letters_of.__wrapped__(WITH_CYRILLIC) == frozenset()

    class Damaged:
        def getmask(self, text):
            raise OSError("invalid outline")

    other = tmp_path / "copy.ttf"
    other.write_bytes(WITH_CYRILLIC.read_bytes())
    machine(WITHOUT_CYRILLIC, [WITH_CYRILLIC, other])
    loaded = fonts._loaded
    monkeypatch.setattr(fonts, "_loaded", lambda file, size: Damaged() if file == WITH_CYRILLIC else loaded(file, size))
    assert fonts._file_for("Кошка") == other


def test_plain_fonts_come_first(monkeypatch):
    found = ["/f/Serif-Regular.ttf", "/f/a-Bold.ttf", "/f/b.ttf", "/f/c-Regular.ttf"]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: found)
    names = [file.name for file in fonts._of_this_machine.__wrapped__()]
    assert names == ["c-Regular.ttf", "Serif-Regular.ttf", "b.ttf", "a-Bold.ttf"]
