"""The page on which candidates for OoD images are sorted: what it says, and clicks and keys in a browser."""

import csv
import time

import numpy as np
import pytest
from browser import browser
from PIL import Image

from misc.report.review import Candidate, read_review, render_review, write_pictures

CLASSES = ("cat", "<b>dog</b>", 'a "cow", or two')
MARKUP = "pool/<img src=x onerror=document.title='harmed'>&amp;'\".jpg"


def candidates_of(n, *, folder, decided=None):
    """`n` candidates of three classes, the strongest first, with pictures."""
    rng = np.random.default_rng(0)
    found = []
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(n):
        file = MARKUP if number == 1 else f"pool/scene, {number}.jpg"
        picture = f"pictures/{number:08x}.jpg"
        image = rng.integers(0, 255, (6, 9, 3), dtype=np.uint8).repeat(25, axis=0).repeat(25, axis=1)
        write_pictures(folder / picture, image, rng.random((1, *image.shape[:2]), dtype=np.float32))
        shows = None if decided is None else decided(number)
        found.append(Candidate(file, f"{number:08x}", CLASSES[number % 3], 1 - number / (2 * n), picture, shows))
    return found


def page_of(candidates, folder, **changed):
    given = {"data_name": "<i>data</i>", "headline": "Nobody has looked.", "n_pool": 99, "left_out": "3 (cut)"}
    path = folder / "review.html"
    path.write_text(render_review(candidates, classes=CLASSES, **given | changed), encoding="utf-8")
    return path


def test_the_page_refers_to_nothing_but_its_pictures(tmp_path):
    text = page_of(candidates_of(4, folder=tmp_path), tmp_path).read_text()
    assert "http" not in text
    assert text.count("src=") - text.count("&lt;img src=") == 4
    assert text.count('loading="lazy"') == 4
    assert "<i>data" not in text
    assert "<b>dog" not in text
    assert "<img src=x" not in text


def test_pictures_are_small_and_show_the_image_beside_its_cam(tmp_path):
    image = np.full((900, 1200, 3), 128, dtype=np.uint8)
    cam = np.zeros((1, 900, 1200), dtype=np.float32)
    cam[:, :450] = 1
    write_pictures(tmp_path / "x.jpg", image, cam)
    with Image.open(tmp_path / "x.jpg") as picture:
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (180, 480, 3)
    assert np.abs(pixels[:, :236] - 128).max() < 8
    assert (pixels[:80, 245:, 0] - pixels[:80, 245:, 2]).mean() > 40  # red where the CAM is strong
    assert (tmp_path / "x.jpg").stat().st_size < 20_000


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    """A browser for the module's pages, each of which lies at a place of its own."""
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def opened(window):
    """The same, without errors of earlier pages."""
    window.errors.clear()
    return window


@pytest.fixture
def page(tmp_path):
    """A page of nine candidates, three a class."""
    return page_of(candidates_of(9, folder=tmp_path / "out"), tmp_path / "out")


def shown(opened):
    """The numbers that the page counts: kept, marked, and kept of each class."""
    return opened.run(
        "[kept, marked, ...document.querySelectorAll('[data-kept]')].length && "
        "[document.getElementById('kept'), document.getElementById('marked'), "
        "...document.querySelectorAll('[data-kept]')].map((e) => Number(e.textContent))"
    )


def pressed(opened):
    return opened.run("[...document.querySelectorAll('.card[aria-pressed=true]')].map((c) => c.dataset.file)")


def focused(opened):
    return opened.run("document.activeElement.dataset.file || ''")


def saved(folder):
    """The decisions in the one file that was saved, which is then removed."""
    end = time.monotonic() + 30
    while not (found := [path for path in folder.glob("*.csv") if path.stat().st_size]):
        assert time.monotonic() < end, [*folder.iterdir()]
        time.sleep(0.05)
    decisions = read_review(str(found[0]))
    with found[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert found[0].name == "ood_review.csv"
    found[0].unlink()
    return decisions, rows


def test_clicks_mark_and_take_back_and_the_page_counts(page, opened):
    opened.open(page)
    assert shown(opened) == [9, 0, 3, 3, 3]
    opened.click('.card[data-id="00000000"]')
    opened.click('.card[data-id="00000004"] img')
    opened.click('.card[data-id="00000008"]')
    opened.click('.card[data-id="00000008"]')
    assert pressed(opened) == ["pool/scene, 0.jpg", "pool/scene, 4.jpg"]
    assert shown(opened) == [7, 2, 2, 2, 3]
    assert opened.errors == []


def test_marks_survive_a_reload_another_browser_and_a_page_that_is_made_again(page, tmp_path):
    with browser(tmp_path) as opened:
        opened.open(page)
        opened.click('.card[data-id="00000002"]')
        opened.reload()
        assert pressed(opened) == ["pool/scene, 2.jpg"]
        assert shown(opened) == [8, 1, 3, 3, 2]
        # With two fewer, one of them marked by an earlier review
        again = candidates_of(7, folder=page.parent, decided=lambda number: number == 6)
        page_of(again, page.parent)
        opened.reload()
        assert pressed(opened) == ["pool/scene, 6.jpg", "pool/scene, 2.jpg"]
        opened.click('.card[data-id="00000006"]')
    with browser(tmp_path) as opened:
        opened.open(page)
        assert pressed(opened) == ["pool/scene, 2.jpg"]  # also what was taken back


def test_keys_move_mark_and_save(page, opened, tmp_path):
    opened.save_downloads_to(tmp_path / "downloads")
    opened.open(page)
    opened.press("ArrowRight")
    assert focused(opened) == "pool/scene, 0.jpg"
    opened.press("x")
    opened.press("ArrowRight")
    assert focused(opened) == "pool/scene, 3.jpg"  # the next of its class
    opened.press(" ")
    opened.press("ArrowLeft")
    opened.press("ArrowLeft")
    assert focused(opened) == "pool/scene, 0.jpg"
    opened.press("ArrowDown")
    assert focused(opened) == MARKUP
    opened.press("x")
    opened.press("k")
    assert focused(opened) == "pool/scene, 0.jpg"
    for key in ("l", "l", "h"):
        opened.press(key)
    opened.press("x")  # takes back what the space bar has marked
    opened.press("s")
    decisions, rows = saved(tmp_path / "downloads")
    assert [file for file, shows in decisions.items() if shows] == ["pool/scene, 0.jpg", MARKUP]
    assert len(decisions) == 9
    assert rows[0] == {
        "file": "pool/scene, 0.jpg",
        "class": "cat",
        "probability": "1.000000",
        "shows_object": "1",
    }
    assert {row["class"] for row in rows} == {*CLASSES}
    assert opened.errors == []


def test_the_button_saves_what_is_read_back_and_markup_stays_harmless(page, opened, tmp_path):
    opened.save_downloads_to(tmp_path / "downloads")
    opened.open(page)
    opened.click('.card[data-id="00000001"]')
    opened.reload()
    opened.click("#save")
    decisions, _ = saved(tmp_path / "downloads")
    assert decisions[MARKUP] is True
    assert sum(decisions.values()) == 1
    assert "harmed" not in opened.run("document.title")
    assert opened.run("document.querySelectorAll('b b, .card img[onerror], h2 b').length") == 0
    assert opened.errors == []


def test_a_browser_that_keeps_nothing_is_told_of(page, opened):
    text = page.read_text().replace('"use strict";', "Storage.prototype.setItem = () => { throw new Error(); };")
    page.write_text(text)
    opened.open(page)
    assert not opened.run("document.getElementById('lost').hidden")
    opened.click('.card[data-id="00000001"]')
    assert shown(opened)[:2] == [8, 1]


MANY, FEW = 1000, 40
FRAME = 1 / 60
"""Seconds, the least that is told apart: a browser draws no sooner."""


def page_of_many(n, folder):
    """A page of `n` candidates that share the pictures of eight."""
    eight = candidates_of(8, folder=folder)
    many = [eight[number % 8] for number in range(n)]
    many = [Candidate(f"p/{k}.jpg", f"{k:08x}", c.name, 0.9, f"{c.picture}?{k}") for k, c in enumerate(many)]
    return page_of(many, folder)


def slowest_work(opened):
    """Seconds until the slowest of some clicks, keys and jumps is drawn; of three rounds each counts with its best."""
    return opened.run(
        """(async () => {
          const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
          const middle = cards[cards.length / 2];
          const works = [
            () => cards[0].click(),
            () => middle.scrollIntoView(),
            () => middle.click(),
            () => { middle.focus(); document.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown"})); },
            () => window.scrollTo(0, document.body.scrollHeight),
            () => cards.at(-1).click(),
          ];
          const least = works.map(() => Infinity);
          for (let round = 0; round < 3; round++)
            for (const [n, work] of works.entries()) {
              await frame();
              const from = performance.now();
              work();
              await frame();
              least[n] = Math.min(least[n], performance.now() - from);
            }
          return Math.max(...least) / 1000;
        })()"""
    )


def test_a_thousand_candidates_stay_smooth(opened, tmp_path):
    """Pictures are loaded as one scrolls; a mark, a move and a jump to the end take no longer in proportion to a few.

    Most of it takes as long for any number, and what the machine is slow at it is slow at on both pages.
    """
    opened.open(page_of_many(FEW, tmp_path / "few"))
    of_few = max(slowest_work(opened), FRAME)
    opened.open(page_of_many(MANY, tmp_path / "many"))
    loaded = "[...document.images].filter((image) => image.complete && image.naturalWidth).length"
    opened.wait_for(f"{loaded} > 0")
    assert opened.run(loaded) < MANY / 2
    assert slowest_work(opened) < of_few * MANY / FEW
    assert shown(opened)[:2] == [MANY - 3, 3]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_the_window(page, opened, tmp_path, width):
    opened.open(page, width=width)
    assert opened.run("document.documentElement.scrollWidth <= window.innerWidth")
    opened.wait_for("[...document.images].some((image) => image.naturalWidth)")
    opened.screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    assert ((pixels.max(axis=2) - pixels.min(axis=2)) > 60).any()
