"""Downloads: from a server of the test's own, whose answers are good, cut short, slow, wrong or malicious."""

import contextlib
import hashlib
import io
import os
import random
import shutil
import signal
import socket
import sys
import tarfile
import threading
import zipfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

import run_sample
from misc.errors import InputError
from misc.files import fetch as fetching
from misc.files.archives import BadArchive, missing_members, obstacle_to, place_folder, root_in, unpack
from misc.files.checksum import Digest
from misc.files.disk import readable_size
from misc.files.fetch import ATTEMPTS, NotFetched, fetch, finish, is_on_drive, part_of
from misc.run.config import enabled_steps, parse_config
from misc.run.plan import Plan
from step import download
from tests.web_site import Page, Site, serving

CONTENT = bytes(range(256)) * 40
CHANGED = bytes(reversed(CONTENT))
PAGE = b"\n<!DOCTYPE html><html>Quota exceeded</html>"
DISK = namedtuple("DISK", "total used free")


@pytest.fixture
def site():
    with serving() as site:
        yield site


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch):
    monkeypatch.setattr(fetching, "PAUSE", 0)


def get(address: str, folder: Path, **options) -> bytes:
    """What is fetched, as a file that has got its name."""
    path = folder / "file.bin"
    fetch(address, part_of(path), **{"timeout": 5, "report": lambda done, total: None} | options)
    finish(part_of(path), path)
    return path.read_bytes()


# The connection


def test_a_file_is_fetched_and_nothing_else_is_left(site, tmp_path):
    reports = []
    address = site.put("/file", Page(CONTENT))
    assert get(address, tmp_path, report=lambda *report: reports.append(report), size=len(CONTENT)) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    assert reports[0] == (0, len(CONTENT))
    assert reports[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("version", [{"etag": '"1"'}, {"etag": None, "modified": "Thu, 01 Jan 2015 00:00:00 GMT"}])
def test_what_broke_off_goes_on_and_no_byte_comes_twice(site, tmp_path, version):
    address = site.put("/file", Page(CONTENT, cuts=[4000, 3000], **version))
    assert get(address, tmp_path) == CONTENT
    assert [asked for _, asked in site.asked] == [None, "bytes=4000-", "bytes=7000-"]
    assert site.sent == len(CONTENT)


def left_over(site: Site, folder: Path, page: Page) -> str:
    """The address of a file of which an earlier, broken call has left the first 4,000 bytes."""
    page.cuts, ranges, page.ranges = [4000] * (ATTEMPTS + 1), page.ranges, False
    address = site.put("/file", page)
    with pytest.raises(
        NotFetched, match="the connection broke off after 4.00 kB of 10.2 kB .4.00 kB are kept; the same"
    ):
        get(address, folder)
    page.cuts, page.ranges = [], ranges
    assert (folder / "file.bin.part").stat().st_size == 4000
    site.asked.clear()
    site.sent = 0
    return address


def test_a_later_call_goes_on(site, tmp_path):
    address = left_over(site, tmp_path, Page(CONTENT))
    assert get(address, tmp_path) == CONTENT
    assert site.asked == [("/file", "bytes=4000-")]
    assert site.sent == len(CONTENT) - 4000


@pytest.mark.parametrize(
    ("change", "requests"),
    [
        ({"etag": '"2"'}, 1),
        ({"etag": '"2"', "heeds_if_range": False}, 2),  # sends the rest of another version
        ({"etag": None, "modified": "Thu, 01 Jan 2015 00:00:00 GMT"}, 1),
    ],
    ids=["another ETag", "If-Range ignored", "another kind of version"],
)
def test_a_file_that_has_changed_is_not_glued_together(site, tmp_path, change, requests):
    address = left_over(site, tmp_path, Page(CONTENT))
    site.put("/file", Page(CHANGED, **change))
    assert get(address, tmp_path) == CHANGED
    assert len(site.asked) == requests


@pytest.mark.parametrize("page", [Page(CONTENT, etag=None), Page(CONTENT, etag='W/"1"')], ids=["none", "weak"])
def test_without_a_version_everything_is_fetched_anew(site, tmp_path, page):
    address = left_over(site, tmp_path, page)
    site.put("/file", Page(CHANGED, etag=page.etag))
    assert get(address, tmp_path) == CHANGED
    assert site.asked == [("/file", None)]


def test_a_file_that_is_shorter_now_is_fetched_anew(site, tmp_path):
    address = left_over(site, tmp_path, Page(CONTENT))
    site.put("/file", Page(CHANGED[:100], heeds_if_range=False))
    assert get(address, tmp_path) == CHANGED[:100]


def test_a_server_that_sends_whole_files_only(site, tmp_path):
    address = left_over(site, tmp_path, Page(CONTENT, ranges=False))
    assert get(address, tmp_path) == CONTENT
    assert site.asked == [("/file", "bytes=4000-")]


def test_another_address_begins_anew(site, tmp_path):
    left_over(site, tmp_path, Page(CONTENT))
    assert get(site.put("/other", Page(CHANGED)), tmp_path) == CHANGED
    assert site.asked == [("/other", None)]


def test_what_was_whole_when_the_run_was_killed_is_not_asked_for(site, tmp_path):
    address, part = site.put("/file", Page(CONTENT)), part_of(tmp_path / "file.bin")
    fetch(address, part, timeout=5, report=lambda done, total: None)
    assert get(address, tmp_path) == CONTENT
    assert len(site.asked) == 1


def test_a_server_that_never_sends_all_is_given_up(site, tmp_path):
    left_over(site, tmp_path, Page(CONTENT, ranges=False))


def test_an_answer_without_length_is_taken_to_its_end(site, tmp_path):
    assert get(site.put("/file", Page(CONTENT, length=False)), tmp_path) == CONTENT


def test_a_cut_chunked_answer_is_noticed(site, tmp_path):
    chunk = b"7d0\r\n" + CONTENT[:2000]
    page = Page(chunk, etag=None, length=False, headers={"Transfer-Encoding": "chunked"})
    with pytest.raises(NotFetched, match="broke off"):
        get(site.put("/file", page), tmp_path)


def test_a_server_that_falls_silent_is_given_up(site, tmp_path, monkeypatch):
    """It is silent for as long as it is waited for; the limit is ample for what comes before, which it covers too."""
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    given_up = threading.Event()
    address = site.put("/file", Page(CONTENT, silent_until=given_up))
    try:
        with pytest.raises(NotFetched, match=r"no byte came for 2 s"):
            get(address, tmp_path, timeout=2)
    finally:
        given_up.set()


def test_a_server_that_does_not_answer_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(NotFetched, match=r"the server does not answer within 0\.05 s"):
            get(address, tmp_path, timeout=0.05)


def test_without_a_network(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/file"
    with pytest.raises(NotFetched, match=r"the server can't be reached \(Connection refused\)"):
        get(address, tmp_path)
    with pytest.raises(NotFetched, match="the server can't be reached"):
        get("http://nowhere.invalid/file", tmp_path)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, r"asks for a login \(401\)"),
        (403, r"refuses it, as for a file that is not public or is over its quota \(403\)"),
        (404, r"not there any more \(404\)"),
        (429, r"asked for too often, try again later \(429\)"),
        (500, r"the server answers with an error \(500\)"),
        (503, r"overloaded, try again later \(503\)"),
    ],
)
def test_refusals_are_told_at_once(site, tmp_path, status, reason):
    with pytest.raises(NotFetched, match=reason):
        get(site.put("/file", Page(b"no", status=status)), tmp_path)
    assert len(site.asked) == 1
    assert not [*tmp_path.iterdir()]


def test_a_web_page_is_not_the_file(site, tmp_path):
    with pytest.raises(NotFetched, match="a web page came instead of the file"):
        get(site.put("/file", Page(PAGE, content_type="text/html; charset=utf-8")), tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_file_of_another_size_is_refused_before_it_is_fetched(site, tmp_path):
    with pytest.raises(NotFetched, match="the server offers 10,240 bytes, expected 20,000"):
        get(site.put("/file", Page(CONTENT)), tmp_path, size=20_000)
    with pytest.raises(NotFetched, match="the server sends more than the 100 bytes that the file has"):
        get(site.put("/file", Page(CONTENT, length=False)), tmp_path, size=100)


def test_a_full_disk_is_told_before_the_file_is_fetched(site, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: DISK(10**6, 10**6 - 10_000, 10_000))
    with pytest.raises(NotFetched, match=r"it needs 10\.2 kB on the disk of .*, where 10\.0 kB are free"):
        get(site.put("/file", Page(CONTENT)), tmp_path)
    assert not [*tmp_path.iterdir()]


def test_sizes_are_readable():
    assert [readable_size(n) for n in (512, 2_345, 97_781_000, 1_999_639_040)] == [
        "512 bytes",
        "2.35 kB",
        "97.8 MB",
        "2.00 GB",
    ]


# Archives


def tar_of(path: Path, *entries: tuple[str, bytes | None, dict], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content, fields in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content or b"")
            for field, value in fields.items():
                setattr(entry, field, value)
            archive.addfile(entry, io.BytesIO(content) if content is not None else None)
    return path


def zip_of(path: Path, *entries: tuple[str, bytes, int]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, kind in entries:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = kind << 16
            archive.writestr(entry, content)
    return path


def with_stated_size(path: Path, size: int) -> Path:
    """A zip archive whose directory claims another size of its only entry."""
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = size.to_bytes(4, "little")
    path.write_bytes(data)
    return path


GOOD = (("a/b.txt", b"one" * 500, {}), ("a", None, {"type": tarfile.DIRTYPE}), ("c.txt", b"two", {"mode": 0o6777}))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_archives_of_every_kind_are_unpacked(tmp_path, mode):
    path, folder = tmp_path / "archive", tmp_path / "unpacked"
    if mode == "zip":
        zip_of(path, *((name, content or b"", 0o100644) for name, content, _ in GOOD if content))
    else:
        tar_of(path, *GOOD, mode=mode)
    unpack(path, folder)
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert files == {"a/b.txt": b"one" * 500, "c.txt": b"two"}
    assert not (folder / "c.txt").stat().st_mode & 0o6111  # neither set-user-id nor executable


LINK, HARD = {"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}
MALICIOUS = {
    "tar: upwards": (lambda path: tar_of(path, ("../evil", b"x", {})), "'../evil' leads out of its folder"),
    "tar: upwards within": (lambda path: tar_of(path, ("a/../../evil", b"x", {})), "leads out of its folder"),
    "tar: absolute": (lambda path: tar_of(path, (f"{path.parent}/evil", b"x", {})), "has an absolute path"),
    "tar: link outwards": (lambda path: tar_of(path, ("a", None, LINK | {"linkname": "/etc"})), "'a' is a link"),
    "tar: file through a link": (
        lambda path: tar_of(path, ("a", None, LINK | {"linkname": ".."}), ("a/evil", b"x", {})),
        "'a' is a link",
    ),
    "tar: hard link": (lambda path: tar_of(path, ("a", None, HARD | {"linkname": "../archive"})), "'a' is a link"),
    "tar: device": (lambda path: tar_of(path, ("a", None, {"type": tarfile.CHRTYPE})), "'a' is a device or the like"),
    "tar: pipe": (lambda path: tar_of(path, ("a", None, {"type": tarfile.FIFOTYPE})), "is a device or the like"),
    "tar: bomb": (
        lambda path: tar_of(path, *bomb(), mode="w:gz"),
        "it has more than 1,000,000 entries or 1,000,000 bytes",
    ),
    "zip: upwards": (lambda path: zip_of(path, ("../evil", b"x", 0)), "'../evil' leads out of its folder"),
    "zip: upwards as in Windows": (lambda path: zip_of(path, ("..\\evil", b"x", 0)), "leads out of its folder"),
    "zip: absolute": (lambda path: zip_of(path, (f"{path.parent}/evil", b"x", 0)), "has an absolute path"),
    "zip: drive": (lambda path: zip_of(path, ("C:/evil", b"x", 0)), "has an absolute path"),
    "zip: link": (lambda path: zip_of(path, ("a", b"/etc", 0o120777)), "'a' is a link"),
    "zip: device": (lambda path: zip_of(path, ("a", b"", 0o060644)), "'a' is a device or the like"),
    "zip: bomb by stated size": (
        lambda path: with_stated_size(zip_of(path, ("a", b"x", 0)), 2**31),
        "it has more than 1,000,000 entries or 1,000,000 bytes, as no pictures have",
    ),
    "zip: bomb that states a small size": (
        lambda path: with_stated_size(zip_of(path, ("a", b"\0" * 500_000, 0)), 10),
        "damaged",
    ),
    "file and folder": (
        lambda path: tar_of(path, ("a", b"x", {}), ("a/b", b"x", {})),
        "'a/b' is both a file and a folder",
    ),
}


def bomb():
    return [(f"zeros{number}", b"\0" * 300_000, {}) for number in range(5)]


@pytest.mark.parametrize("case", MALICIOUS)
def test_malicious_archives_are_refused(tmp_path, monkeypatch, case):
    monkeypatch.setattr("misc.files.archives.SMALL", 10**6)
    make, reason = MALICIOUS[case]
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = make(inner / "archive")
    with pytest.raises(BadArchive, match=reason):
        unpack(archive, inner / "unpacked")
    assert {path.name for path in tmp_path.iterdir()} == {"inner"}
    assert {path.name for path in inner.iterdir()} <= {"archive", "unpacked"}
    written = sum(path.stat().st_size for path in inner.rglob("unpacked/*") if path.is_file())
    assert written <= 10
    assert not [path for path in inner.rglob("*") if path.is_symlink()]


def damaged(path: Path) -> Path:
    """The same archive with another byte in the middle of its first entry."""
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    return path


def cut(path: Path, at: float | int) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(at * len(data)) if isinstance(at, float) else at])
    return path


NOISE = b"".join(hashlib.sha256(bytes([k])).digest() for k in range(100))
TWO = (("a", NOISE, {}), ("b", NOISE, {}))
DAMAGED = {
    "tar: cut in an entry": lambda path: cut(tar_of(path, *TWO), 2000),
    "tar: cut between entries": lambda path: cut(tar_of(path, *TWO), 512 + 3584),
    "tar: damaged header": lambda path: damaged(tar_of(path, *TWO)),
    "tar.gz: cut": lambda path: cut(tar_of(path, *TWO, mode="w:gz"), 0.7),
    "tar.gz: damaged": lambda path: damaged(tar_of(path, *TWO, mode="w:gz")),
    "tar.bz2: cut": lambda path: cut(tar_of(path, *TWO, mode="w:bz2"), 0.7),
    "tar.xz: cut": lambda path: cut(tar_of(path, *TWO, mode="w:xz"), 0.7),
    "tar.xz: damaged": lambda path: damaged(tar_of(path, *TWO, mode="w:xz")),
    "zip: cut": lambda path: cut(zip_of(path, ("a", NOISE, 0)), 0.7),
    "zip: damaged": lambda path: damaged(zip_of(path, ("a", NOISE, 0))),
    "empty": lambda path: cut(tar_of(path), 0),
    "another kind": lambda path: cut(tar_of(path, ("\x89PNG", b"", {})), 100),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_archives_are_refused(tmp_path, case):
    with pytest.raises(BadArchive, match="damaged, cut short or no zip or tar archive"):
        unpack(DAMAGED[case](tmp_path / "archive"), tmp_path / "unpacked")


def test_a_full_disk_is_no_fault_of_the_archive(tmp_path, monkeypatch):
    archive = tar_of(tmp_path / "archive", *GOOD)
    monkeypatch.setattr("shutil.disk_usage", lambda path: DISK(1, 1, 100))
    with pytest.raises(OSError, match="1,503 bytes needed, 100 free"):
        unpack(archive, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_folder_with_the_members_is_found(tmp_path):
    make(tmp_path, "x/y/A/1.png", "x/y/B/1.txt", "x/y/z/A/1.png", "__MACOSX/A/1.png", "read.me")
    assert root_in(tmp_path, ["A/*.png"]) == tmp_path / "x/y"
    assert root_in(tmp_path, ["A/*.png", "C/*"]) is None
    make(tmp_path, "x/other/A/1.png")
    assert root_in(tmp_path, ["A/*.png"]) is None


def test_a_folder_is_renamed_or_fills_up_one_that_is_there(tmp_path):
    members = ["A/*.png"]
    place = tmp_path / "place"
    assert place_folder(make(tmp_path / "one", "A/1.png", "B/1.txt"), place, members) == []
    assert names_in(place) == {"A/1.png", "B/1.txt"}
    make(tmp_path / "two", "A/2.png", "C/2.txt")
    assert place_folder(tmp_path / "two", place, ["C/*.txt"]) == [place / "A"]
    assert names_in(place) == {"A/1.png", "B/1.txt", "C/2.txt"}


def test_what_lies_in_the_way_is_named(tmp_path):
    place = make(tmp_path / "place", "A/notes.txt", "B/1.png")
    assert missing_members(place, ["A/*.png", "B/*.png", "C/*.png"]) == ["A/*.png", "C/*.png"]
    assert obstacle_to(place, ["A/*.png"]) == place / "A"
    assert obstacle_to(place, ["B/*.png", "C/*.png"]) is None
    assert obstacle_to(place, ["*.png"]) == place
    assert obstacle_to(tmp_path / "nowhere", ["*.png"]) is None


# The step


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run_download(*names: str, **sources: str | Path) -> None:
    """Check and run the step, as `run_sample.py` does."""
    where = [f"{name}={source}" for name, source in sources.items()]
    flags = ["--download", *(names or sources)] + (["--download_from", *where] if where else [])
    args = parse_config([*flags, "--download_pass", "True", "--download_timeout", "5"])
    assert enabled_steps(args) == ["download"]
    assert download.check(args, Plan()) == {}
    download.run(args)


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "JPEG")
    return file.getvalue()


def checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, file)
    return file.getvalue()


def damaged_checkpoint() -> bytes:
    """One with another byte in its weights, which `torch.load` does not notice."""
    content = bytearray(checkpoint())
    content[content.index(torch.ones(3).numpy().tobytes())] ^= 1
    assert torch.load(io.BytesIO(content), weights_only=True)["weight"][0] != 1
    return bytes(content)


def archive_of(folder: Path, *names: str) -> bytes:
    folder.mkdir(exist_ok=True)
    return zip_of(folder / "served.zip", *((name, jpeg(), 0) for name in names)).read_bytes()


VOC_AUG = ("VOC2012/SegmentationClassAug/1.png", "VOC2012/JPEGImages/1.jpg")
IN_VOC = "Data/VOCdevkit/VOC2012"


def test_all_that_the_authors_offer_comes_into_its_place(site, work, tmp_path, caplog):
    caplog.set_level("INFO")
    images = archive_of(tmp_path / "images", "OoD/scene1.jpg", "OoD/scene2.jpg")
    pages = {
        "voc_aug": archive_of(tmp_path / "voc", *VOC_AUG),
        "ood_images": images,
        "ood_list": b"scene1.jpg\nscene2.jpg\n",
        "classifier": checkpoint(),
        "deeplab_start": checkpoint(),
    }
    sources = {name: site.put(f"/{name}", Page(content)) for name, content in pages.items()}
    run_download("authors", **sources)
    assert names_in(work) == {
        f"{IN_VOC}/SegmentationClassAug/1.png",
        f"{IN_VOC}/JPEGImages/1.jpg",
        "WOoD_dataset/openimages/OoD_images/scene1.jpg",
        "WOoD_dataset/openimages/OoD_images/scene2.jpg",
        "WOoD_dataset/openimages/ood_list.txt",
        "sess/res50_cam_orig.pth",
        "sess/deeplab_resnet101_imagenet.pth",
    }
    told = "voc_aug: VOC 2012 with the augmented masks, of W-OoD's authors; size not published, from http://127"
    assert told in caplog.text
    assert "2 images of WOoD_dataset/openimages/ood_list.txt are in WOoD_dataset" in caplog.text
    assert len(site.asked) == 5

    run_download("authors", **sources)
    assert len(site.asked) == 5  # nothing was asked for again
    assert "classifier: in-distribution classifier, of W-OoD's authors; is there already" in caplog.text


def test_flags_say_where_it_goes(site, work, tmp_path):
    args = parse_config(
        ["--download_pass", "True", "--download", "ood_list", "--ood_list", "elsewhere/list.txt", "--download_from"]
        + [f"ood_list={site.put('/list', Page(b'a.jpg'))}"]
    )
    download.check(args, Plan())
    download.run(args)
    assert names_in(work) == {"elsewhere/list.txt"}


def test_a_devkit_that_is_there_gets_what_it_lacks(site, work, tmp_path, caplog):
    caplog.set_level("INFO")
    make(work / IN_VOC, "JPEGImages/own.jpg")
    run_download(voc_aug=site.put("/voc", Page(archive_of(tmp_path / "voc", *VOC_AUG))))
    assert names_in(work / IN_VOC) == {"JPEGImages/own.jpg", "SegmentationClassAug/1.png"}
    assert f"{work / IN_VOC / 'JPEGImages'} was there before and stays as it is" in caplog.text


def test_masks_alone_are_told(site, work, tmp_path, caplog):
    caplog.set_level("INFO")
    run_download(voc_aug=site.put("/voc", Page(archive_of(tmp_path / "voc", VOC_AUG[0]))))
    assert "VOC2012 has no JPEGImages/; --download voc2012 brings them" in caplog.text


def test_a_file_fetched_by_hand_is_put_in_place(work, tmp_path):
    archive_of(tmp_path / "voc", *VOC_AUG)
    weights = tmp_path / "weights"
    weights.write_bytes(checkpoint())
    run_download(voc_aug=tmp_path / "voc/served.zip", classifier=weights)
    assert names_in(work) == {
        f"{IN_VOC}/SegmentationClassAug/1.png",
        f"{IN_VOC}/JPEGImages/1.jpg",
        "sess/res50_cam_orig.pth",
    }
    assert (tmp_path / "voc/served.zip").is_file()
    assert weights.is_file()


def test_it_goes_on_where_an_earlier_run_was_killed(site, work, tmp_path):
    folder = work / "Data/VOCdevkit"
    make(folder, "voc_aug.unpacked/half")
    page = Page(archive_of(tmp_path / "voc", *VOC_AUG))
    address = site.put("/voc", page)
    fetch(address, folder / "voc_aug.archive.part", timeout=5, report=lambda done, total: None)
    whole = (folder / "voc_aug.archive.part").read_bytes()
    (folder / "voc_aug.archive.part").write_bytes(whole[:100])
    run_download(voc_aug=address)
    assert site.asked[1:] == [("/voc", "bytes=100-")]
    assert names_in(folder) == {"VOC2012/SegmentationClassAug/1.png", "VOC2012/JPEGImages/1.jpg"}


def test_two_runs_at_once_fetch_it_once(site, work, tmp_path):
    address = site.put("/voc", Page(archive_of(tmp_path / "voc", *VOC_AUG), pause=0.05))
    with ThreadPoolExecutor(2) as runs:
        for run in [runs.submit(run_download, voc_aug=address) for _ in range(2)]:
            run.result()
    assert len(site.asked) == 1
    assert names_in(work) == {f"{IN_VOC}/SegmentationClassAug/1.png", f"{IN_VOC}/JPEGImages/1.jpg"}


@pytest.mark.parametrize("there", [(), ("ImageSets/own.txt",)], ids=["new folder", "folder that is there"])
def test_it_goes_on_after_an_end_before_any_renaming(site, work, tmp_path, monkeypatch, there):
    """The run ends before its n-th renaming, n = 1, 2, ..., until it has no more."""
    address = site.put("/voc", Page(archive_of(tmp_path / "voc", *VOC_AUG, "VOC2012/Annotations/1.xml")))
    whole = {f"{IN_VOC}/{name.removeprefix('VOC2012/')}" for name in (*VOC_AUG, "VOC2012/Annotations/1.xml")}
    whole |= {f"{IN_VOC}/{name}" for name in there}
    for last in range(1, 20):
        shutil.rmtree(work / "Data", ignore_errors=True)
        make(work / IN_VOC, *there)
        with monkeypatch.context() as patch:
            left = [last]

            def ending(function, left=left):
                def call(*args):
                    left[0] -= 1
                    if not left[0]:
                        raise KeyboardInterrupt
                    return function(*args)

                return call

            patch.setattr(os, "replace", ending(os.replace))
            patch.setattr(Path, "rename", ending(Path.rename))
            try:
                run_download(voc_aug=address)
                break
            except KeyboardInterrupt:
                assert not (work / IN_VOC / "SegmentationClassAug").exists()
        run_download(voc_aug=address)
        assert names_in(work) == whole
    assert names_in(work) == whole
    assert last == (5 if there else 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_killed_at_any_moment(site, work, tmp_path):
    """Runs that are killed again and again, at random moments of fetching and unpacking, and then left alone.

    The moments count from the first request of a run that has something to ask for: some machines take longer to it
    than to all that follows.
    """
    rng = random.Random(0)
    names = [f"VOC2012/{folder}/{number}.png" for folder in ("A", "SegmentationClassAug") for number in range(40)]
    entries = [(name, rng.randbytes(10_000), 0) for name in names]
    content = zip_of(tmp_path / "served.zip", *entries).read_bytes()
    address = site.put("/voc", Page(content, rest=0.002))
    whole = {f"{IN_VOC}/{name.removeprefix('VOC2012/')}": data for name, data, _ in entries}

    def is_unpacking(files):
        return any("archive" in Path(name).suffix for name in files)

    def kill(child, ended, requests, seconds):
        while len(site.asked) < requests:
            if ended.wait(0.001):
                return
        if not ended.wait(seconds):
            os.kill(child, signal.SIGKILL)

    kills, went_on = {"before": 0, "fetching": 0, "unpacking": 0}, []
    for _ in range(20):
        shutil.rmtree(work / "Data", ignore_errors=True)
        site.asked.clear()
        sizes, found = [0], {}
        for last in (0.1, 0.2, 0.3, 0.4, 60):
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):
                    run_download(voc_aug=address)
                    os._exit(0)
                os._exit(1)
            requests = 0 if last == 60 or is_unpacking(found) else len(site.asked) + 1
            ended = threading.Event()
            seconds = rng.uniform(0, last) if last < 1 else last
            killer = threading.Thread(target=kill, args=(child, ended, requests, seconds))
            killer.start()
            _, status = os.waitpid(child, 0)
            ended.set()
            killer.join()
            found = {name: (work / name).read_bytes() for name in names_in(work)}
            if status == 0:
                break
            assert os.WIFSIGNALED(status)
            if before := found.get("Data/VOCdevkit/voc_aug.archive.part"):
                sizes.append(len(before))
            assert not (work / IN_VOC).exists() or {name: found[name] for name in whole} == whole
            stage = "unpacking" if is_unpacking(found) else "fetching"
            kills[stage if found else "before"] += 1
        assert status == 0
        assert found == whole
        starts = [int(asked[len("bytes=") : -1]) if asked else 0 for _, asked in site.asked]
        assert starts == sorted(starts)
        assert {*starts} <= {*sizes}  # no byte that had come was asked for again
        went_on += starts[1:]
    print(f"{sum(kills.values())} kills: {kills}; went on {len(went_on)} times")
    assert kills["fetching"] >= 10


def test_an_archive_that_was_whole_is_not_fetched_again(site, work, tmp_path):
    folder = work / "Data/VOCdevkit"
    folder.mkdir(parents=True)
    (folder / "voc_aug.archive").write_bytes(archive_of(tmp_path / "voc", *VOC_AUG))
    run_download(voc_aug=site.put("/voc", Page(b"")))
    assert site.asked == []
    assert names_in(folder) == {"VOC2012/SegmentationClassAug/1.png", "VOC2012/JPEGImages/1.jpg"}


WRONG = [
    ("classifier", PAGE, "a web page came instead of the file"),
    ("classifier", b"nothing", "this is no checkpoint that can be read"),
    ("classifier", damaged_checkpoint(), "this checkpoint is damaged: its checksums do not fit"),
    ("classifier", b"", "this is no checkpoint that can be read"),
    ("ood_list", b"nothing\n", "this is no list of images"),
    ("ood_images", b"nothing", "it is damaged, cut short or no zip or tar archive"),
    ("resnet50", b"nothing", "this is not the published file: its SHA256 is 1785cfc3, expected 0676ba61"),
    ("resnet101", b"nothing", "this is not the published file: its SHA256 is 1785cfc3, expected 63fe2227"),
    ("voc2012", b"nothing", "the server offers 7 bytes, expected 1,999,639,040"),
]


@pytest.mark.parametrize(("name", "content", "reason"), WRONG)
def test_what_is_not_the_file_is_removed_and_the_manual_way_told(site, work, monkeypatch, name, content, reason):
    monkeypatch.setattr("shutil.disk_usage", lambda path: DISK(10**12, 0, 10**12))
    address = site.put("/file", Page(content))
    by_hand = (
        f"get it from {download.OFFERS[name].address} or elsewhere by hand, then pass --download_from {name}=FILE."
    )
    with pytest.raises(InputError) as caught:
        run_download(**{name: address})
    assert str(caught.value).startswith(f"--download {name}: {address}: {reason}")
    assert str(caught.value).endswith(by_hand)
    assert "\n" not in str(caught.value)
    assert names_in(work) == set()


def test_without_a_network_the_manual_way_is_told(work, monkeypatch):
    def fail(*args, **options):
        raise NotFetched("the server can't be reached (no network)")

    monkeypatch.setattr(download, "fetch", fail)
    with pytest.raises(InputError) as caught:
        run_download("resnet50")
    assert str(caught.value) == (
        "--download resnet50: https://download.pytorch.org/models/resnet50-0676ba61.pth: the server can't be reached "
        "(no network); get it from there or elsewhere by hand, then pass --download_from resnet50=FILE."
    )


def test_an_archive_of_other_content_is_kept(site, work, tmp_path):
    address = site.put("/voc", Page(archive_of(tmp_path / "voc", "VOC2012/JPEGImages/1.jpg")))
    with pytest.raises(InputError, match=r"has no folder with SegmentationClassAug/\*\.png, or several; it is kept as"):
        run_download(voc_aug=address)
    assert names_in(work) == {"Data/VOCdevkit/voc_aug.archive"}


def test_one_that_fails_does_not_keep_the_others_waiting(site, work):
    sources = {
        "ood_list": f"{site.address}/gone",
        "classifier": site.put("/weights", Page(checkpoint())),
        "deeplab_start": f"{site.address}/gone",
    }
    with pytest.raises(InputError, match=r"ood_list: .*\(404\).*FILE\. --download deeplab_start: .*\(404\)"):
        run_download(**sources)
    assert names_in(work) == {"sess/res50_cam_orig.pth"}


def test_published_digests_are_compared(work, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    for algorithm in ("md5", "sha256"):
        whole = hashlib.new(algorithm, CONTENT).hexdigest()
        assert Digest(algorithm, whole[:8]).mismatch(file) is None
        assert (
            Digest(algorithm, "0" * 32).mismatch(file)
            == f"its {algorithm.upper()} is {whole[:32]}, expected {'0' * 32}"
        )
    voc, resnet = download.OFFERS["voc2012"], download.OFFERS["resnet50"]
    assert voc.digest == Digest("md5", "6cd6e144f989b92b3379bac3b3de84fd")
    assert voc.address.endswith("VOCtrainval_11-May-2012.tar")
    assert resnet.digest == Digest("sha256", "0676ba61")
    assert resnet.place == "sess/resnet50-0676ba61.pth"
    assert all(is_on_drive(offer.address) for offer in download.OFFERED_BY_AUTHORS.values())


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--download", "voc"], "--download voc is not known; expected some of authors, voc_aug, ood_images, "),
        (["--download_from", "voc_aug"], "--download_from voc_aug must be NAME=ADDRESS or NAME=FILE, with a NAME"),
        (["--download_from", "voc2012=x"], "with a NAME that --download has: voc_aug, ood_images, ood_list, "),
        (["--download_from", "voc_aug=x.zip"], "there is no file x.zip, and it is no address"),
        (["--download_from", "voc_aug=ftp://host/x"], "there is no file ftp://host/x, and it is no address"),
    ],
)
def test_wrong_flags(work, flags, reason):
    with pytest.raises(InputError, match=reason):
        download.check(parse_config(["--download_pass", "True", *flags]), Plan())


def test_what_lies_in_the_way_is_told_before_anything_is_fetched(work, site):
    make(work / IN_VOC, "SegmentationClassAug/notes.txt")
    with pytest.raises(
        InputError, match=r"SegmentationClassAug is there, but lacks SegmentationClassAug/\*\.png; move"
    ):
        run_download(voc_aug=f"{site.address}/voc")
    make(work, "sess/resnet50-0676ba61.pth")
    with pytest.raises(InputError, match="resnet50-0676ba61.pth is there, but is not the published file: its SHA256"):
        run_download("resnet50")
    assert site.asked == []


def test_what_an_earlier_one_puts_in_the_way_is_told_before_the_later_is_fetched(site, work, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: DISK(10**12, 0, 10**12))
    first = site.put("/voc", Page(archive_of(tmp_path / "voc", *VOC_AUG, "VOC2012/ImageSets/own.txt")))
    with pytest.raises(InputError, match=r"--download voc2012: .*ImageSets is there, but lacks .*; move it away first"):
        run_download(voc_aug=first, voc2012=f"{site.address}/other")
    assert site.asked == [("/voc", None)]


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(work, site, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: DISK(10**10, 0, 2 * 10**9))
    with pytest.raises(
        InputError, match=r"--download voc2012 resnet50: it needs 4\.10 GB on the disk of .* 2\.00 GB are free"
    ):
        run_download("voc2012", "resnet50")


def test_from_the_command_line(site, work, capsys, monkeypatch):
    def main(source: str) -> tuple[int, str]:
        flags = ["--download_pass", "True", "--download", "classifier", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["run_sample.py", *flags, "--download_from", f"classifier={source}"])
        return run_sample.main(), capsys.readouterr().err

    code, printed = main(f"{site.address}/gone")
    assert code == run_sample.EXIT_BAD_INPUT
    assert "the file is not there any more (404)" in printed
    assert "Traceback" not in printed
    code, _ = main(site.put("/weights", Page(checkpoint())))
    assert code == 0
    assert "sess/res50_cam_orig.pth" in names_in(work)


# Google Drive

DRIVE = "https://drive.google.com/uc?id=abc"


def test_google_drive_needs_gdown(work, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "problem_of", lambda requirement: f"{requirement} is missing")
    with pytest.raises(
        InputError, match=r"gdown>=6.3 is missing, which Google Drive needs; run pip install 'gdown>=6.3'"
    ):
        run_download("classifier")
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(NotFetched, match="Google Drive needs a package more: pip install 'gdown>=6.3'"):
        get(DRIVE, tmp_path)


@pytest.fixture
def drive(site, monkeypatch) -> Site:
    """A stand-in for Google Drive, to which the real gdown is led."""
    pytest.importorskip("gdown", reason="the package gdown is not installed")
    import requests

    request = requests.Session.request

    def led(self, method, url, **options):
        return request(self, method, url.replace("https://drive.google.com", site.address), **options)

    monkeypatch.setattr(requests.Session, "request", led)
    return site


def on_drive(content: bytes, **options) -> Page:
    return Page(content, headers={"Content-Disposition": 'attachment; filename="file.bin"'}, **options)


def asking(site: Site) -> Page:
    """The page that asks whether a large file, which can't be scanned for viruses, is wanted all the same."""
    form = f'<form id="download-form" action="{site.address}/download"><input type="hidden" name="confirm" value="t">'
    return Page(f"<html>{form}</form></html>".encode(), content_type="text/html")


def test_a_large_file_comes_from_google_drive(drive, tmp_path):
    drive.put("/uc", asking(drive))
    drive.put("/download", on_drive(CONTENT))
    reports = []
    assert get(DRIVE, tmp_path, report=lambda *report: reports.append(report)) == CONTENT
    assert reports[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


LARGE = CONTENT * 200
"""gdown keeps what it has in pieces of 512 KiB."""


def test_google_drive_goes_on_where_it_broke_off(drive, tmp_path):
    drive.put("/uc", on_drive(LARGE, cuts=[1_500_000]))
    assert get(DRIVE, tmp_path) == LARGE
    assert [asked for _, asked in drive.asked] == [None, None, "bytes=1048576-"]  # gdown looks before it goes on


def test_google_drive_that_sends_whole_files_only(drive, tmp_path):
    drive.put("/uc", on_drive(LARGE, cuts=[1_500_000], ranges=False))
    assert get(DRIVE, tmp_path) == LARGE


def test_a_file_of_another_size_on_google_drive_is_not_glued_together(drive, tmp_path):
    drive.put("/uc", on_drive(LARGE, cuts=[1_500_000] + [100] * 2 * ATTEMPTS))
    with pytest.raises(NotFetched, match=r"Google Drive broke off .* \(1\.05 MB are kept; the same command goes on"):
        get(DRIVE, tmp_path)
    drive.put("/uc", on_drive(CHANGED * 201, etag='"2"'))
    assert get(DRIVE, tmp_path) == CHANGED * 201
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (
            Page(
                b'<html><p class="uc-error-subcaption">Too many users have viewed it.</p></html>',
                content_type="text/html",
            ),
            "Google Drive does not hand it out: Too many users have viewed it",
        ),
        (Page(b"<html>Sign in</html>", content_type="text/html"), "Google Drive does not hand it out: Cannot retrieve"),
        (Page(b"<html>Not found</html>", content_type="text/html", status=404), "Google Drive does not hand it out"),
    ],
    ids=["quota", "login", "gone"],
)
def test_what_google_drive_does_not_hand_out(drive, tmp_path, page, reason):
    drive.put("/uc", page)
    with pytest.raises(NotFetched, match=reason) as caught:
        get(DRIVE, tmp_path)
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_google_drive_that_can_not_be_reached(drive, tmp_path):
    drive.address = "http://127.0.0.1:1"
    with pytest.raises(NotFetched, match=r"Google Drive can't be reached \(ConnectionError\)"):
        get(DRIVE, tmp_path)
