"""The drawn sample data set: layout, exact masks, co-occurrence, determinism, and safety on disk."""

import shutil
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image

from misc.errors import InputError
from misc.files.images import image_size
from voc12 import sample
from voc12.classes import voc_palette
from voc12.devkit import open_devkit
from voc12.instances import read_instances
from voc12.sample import dataset
from voc12.sample.plans import BACKGROUNDS, CLASSES, KINDS, plan_image
from voc12.verify import require_instances, require_masks

SMALL = {"seed": 3, "n_train": 24, "n_val": 8, "n_ood": 8, "long_side": 128}
TINY = {"seed": 3, "n_train": 3, "n_val": 1, "n_ood": 2, "long_side": 96}
VOID = 255


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small set, made by two workers; tests only read it."""
    folder = tmp_path_factory.mktemp("sample") / "small"
    sample.generate(folder, workers=2, **SMALL)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny set that a test may spoil."""
    sample.generate(tmp_path / "tiny", workers=1, **TINY)
    return tmp_path / "tiny"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def labelled(folder: Path) -> list[str]:
    lists = folder / "ImageSets" / "Segmentation"
    return lines(lists / "train.txt") + lines(lists / "val.txt")


def read_mask(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.getpalette()[: 3 * 21] == voc_palette()[:21].flatten().tolist()
        return np.array(image)


# --- what is drawn -----------------------------------------------------------------------------------------


def test_layout(root: Path) -> None:
    names = labelled(root)
    assert len(names) == len(set(names)) == SMALL["n_train"] + SMALL["n_val"]
    assert lines(root / "classes.txt") == list(CLASSES)
    ood = lines(root / "ood_list.txt")
    assert sorted(ood) == sorted(p.name for p in (root / "OoD_images").iterdir())
    assert len(ood) == SMALL["n_ood"]
    for folder, suffix in (
        ("JPEGImages", "jpg"),
        ("SegmentationClass", "png"),
        ("SegmentationObject", "png"),
        ("Annotations", "xml"),
    ):
        assert sorted(p.name for p in (root / folder).iterdir()) == sorted(f"{n}.{suffix}" for n in names)
    sizes = [image_size(root / "JPEGImages" / f"{name}.jpg") for name in names]
    assert len(set(sizes)) > len(sizes) / 2
    assert all(max(size) <= SMALL["long_side"] for size in sizes)
    assert sum(width > height for height, width in sizes) > len(sizes) / 2


def test_masks_agree_with_annotations(root: Path) -> None:
    for name in labelled(root):
        annotation = ElementTree.parse(root / "Annotations" / f"{name}.xml").getroot()
        classes = read_mask(root / "SegmentationClass" / f"{name}.png")
        instances = read_mask(root / "SegmentationObject" / f"{name}.png")
        assert image_size(root / "JPEGImages" / f"{name}.jpg") == classes.shape
        size = [int(annotation.findtext(f"size/{key}")) for key in ("height", "width")]
        assert size == list(classes.shape) == list(instances.shape)

        objects = annotation.findall("object")
        assert set(np.unique(instances)) == {0, VOID, *range(1, len(objects) + 1)}
        assert ((instances == VOID) == (classes == VOID)).all()
        assert ((instances == 0) == (classes == 0)).all()
        for number, entry in enumerate(objects, start=1):
            mask = instances == number
            assert (classes[mask] == CLASSES.index(entry.findtext("name")) + 1).all()
            ys, xs = np.nonzero(mask)
            box = [int(entry.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
            assert box == [xs.min() + 1, ys.min() + 1, xs.max() + 1, ys.max() + 1]
            assert cv2.connectedComponents(mask.astype(np.uint8))[0] == 2
            assert mask.mean() >= 0.005


def test_instances_are_what_evaluations_read(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    devkit = open_devkit(str(root), "")
    names = labelled(root)
    require_masks(devkit, names, num_workers=0)
    require_instances(devkit, names, num_workers=0)
    for name in names:
        masks, classes = read_instances(devkit, name)
        annotation = ElementTree.parse(root / "Annotations" / f"{name}.xml")
        assert [CLASSES[k] for k in classes] == [entry.findtext("name") for entry in annotation.iterfind("object")]
        assert (masks.sum(axis=0) <= 1).all()


def test_void_is_a_thin_strip_around_objects(root: Path) -> None:
    for name in labelled(root):
        instances = read_mask(root / "SegmentationObject" / f"{name}.png")
        objects = ((instances > 0) & (instances != VOID)).astype(np.uint8)
        near, next_to = (cv2.dilate(objects, np.ones((k, k), np.uint8)) > objects for k in (5, 3))
        assert near[instances == VOID].all()
        assert (instances[next_to] == VOID).all()


def test_ood_images_have_no_object() -> None:
    settings = dataset.Settings(**SMALL)
    scenes = [dataset.draw_image(settings, "ood", index) for index in range(len(BACKGROUNDS))]
    assert {scene.plan.background for scene in scenes} == {kind.background for kind in KINDS.values()}
    assert all(scene.plan.objects == () and not scene.instances.any() for scene in scenes)


@pytest.mark.parametrize("count", [8, 88, 120, 240, 1000])
def test_classes_keep_to_their_background(count: int) -> None:
    plans = [plan_image(np.random.default_rng([0, index]), index) for index in range(count)]
    for name, kind in KINDS.items():
        backgrounds = [plan.background for plan in plans if name in plan.objects]
        assert backgrounds.count(kind.background) > 0.9 * len(backgrounds)
        allowed = {kind.background, *kind.elsewhere} | ({kind.guest.background} if kind.guest else set())
        assert set(backgrounds) <= allowed
    if count >= 240:
        assert any(len(plan.objects) == 2 and plan.objects[0] == plan.objects[1] for plan in plans)
        assert any(len(set(plan.objects)) == 2 for plan in plans)


def test_annotation_names_the_background(root: Path) -> None:
    for name in labelled(root):
        annotation = ElementTree.parse(root / "Annotations" / f"{name}.xml").getroot()
        first = annotation.findtext("object/name")
        assert annotation.findtext("source/image") == KINDS[first].background


# --- determinism -------------------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_workers(root: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    sample.generate(tmp_path / "one", workers=1, progress=lambda done, total: calls.append((done, total)), **SMALL)
    assert contents(tmp_path / "one") == contents(root)
    assert calls == [(done, 40) for done in range(1, 41)]


def test_images_do_not_depend_on_the_number_of_images(root: Path, tmp_path: Path) -> None:
    sample.generate(tmp_path / "few", workers=1, **(SMALL | {"n_train": 2, "n_val": 1, "n_ood": 1}))
    few, many = contents(tmp_path / "few"), contents(root)
    images = {name for name in few if name.endswith((".jpg", ".png", ".xml"))}
    assert len(images) == 3 * 4 + 1
    assert all(few[name] == many[name] for name in images)


def test_seeds_differ(root: Path) -> None:
    first, second = (dataset.draw_image(dataset.Settings(seed=seed), "train", 0).picture for seed in (0, 1))
    assert first.shape != second.shape or (first != second).any()


# --- on disk -----------------------------------------------------------------------------------------------


def test_ensure_makes_it_once(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tiny"
    assert not sample.is_intact(folder, **TINY)
    assert sample.ensure(folder, workers=1, **TINY)
    assert sample.is_intact(folder, **TINY)
    assert not sample.ensure(folder, workers=1, **TINY)
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
@pytest.mark.parametrize(
    "name",
    [
        "JPEGImages/2099_000001.jpg",
        "SegmentationObject/2099_100001.png",
        "OoD_images/sky_000001.jpg",
        "ImageSets/Segmentation/train.txt",
        "classes.txt",
    ],
)
def test_damage_is_mended(tiny: Path, name: str, damage) -> None:
    sound = contents(tiny)
    damage(tiny / name)
    assert not sample.is_intact(tiny, **TINY)
    assert sample.ensure(tiny, workers=1, **TINY)
    assert contents(tiny) == sound


def test_truncated_manifest_is_mended(tiny: Path) -> None:
    truncate(tiny / "manifest.json")
    assert not sample.is_intact(tiny, **TINY)
    assert sample.ensure(tiny, workers=1, **TINY)
    assert sample.is_intact(tiny, **TINY)


def test_lost_manifest_is_mended(tiny: Path) -> None:
    (tiny / "manifest.json").unlink()
    assert sample.ensure(tiny, workers=1, **TINY)
    assert sample.is_intact(tiny, **TINY)


def test_other_settings_or_version_replace(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = TINY | {"n_train": 2}
    assert not sample.is_intact(tiny, **other)
    assert sample.ensure(tiny, workers=1, **other)
    assert lines(tiny / "ImageSets/Segmentation/train.txt") == ["2099_000001", "2099_000002"]
    assert not (tiny / "JPEGImages/2099_000003.jpg").exists()
    monkeypatch.setattr(dataset, "VERSION", dataset.VERSION + 1)
    assert not sample.is_intact(tiny, **other)


def test_interrupted_run_leaves_nothing_behind(tiny: Path) -> None:
    before = contents(tiny)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample.generate(tiny, workers=1, progress=interrupt, **(TINY | {"seed": 4}))
    assert contents(tiny) == before
    assert [p.name for p in tiny.parent.iterdir()] == ["tiny"]


def test_killed_run_is_not_taken_for_a_finished_one(tiny: Path) -> None:
    unfinished = tiny.with_name(".tiny.unfinished")
    tiny.rename(unfinished)
    (unfinished / "manifest.json").unlink()
    assert not sample.is_intact(tiny, **TINY)
    assert sample.ensure(tiny, workers=1, **TINY)
    assert not unfinished.exists()

    shutil.copytree(tiny, unfinished)
    (unfinished / "manifest.json").unlink()
    shutil.rmtree(tiny)
    shutil.move(unfinished, tiny)
    assert not sample.is_intact(tiny, **TINY)


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "JPEGImages" / "2099_000001.jpg").write_text("mine")
    (folder / "manifest.json").write_text('{"name": "mine"}')
    before = contents(folder)
    for make in (sample.generate, sample.ensure):
        with pytest.raises(InputError, match=r"photos exists and is not a sample data set"):
            make(folder, workers=1, **TINY)
    assert contents(folder) == before
    with pytest.raises(InputError, match=r"manifest.json exists and is not a sample"):
        sample.ensure(folder / "manifest.json", workers=1, **TINY)


def test_empty_folder_is_used(tmp_path: Path) -> None:
    assert sample.ensure(tmp_path, workers=1, **TINY)
    assert sample.is_intact(tmp_path, **TINY)


def test_files_added_to_the_sample_are_not_deleted(tiny: Path) -> None:
    (tiny / "notes.txt").write_text("mine")
    assert sample.is_intact(tiny, **TINY)
    with pytest.raises(InputError, match=r"holds notes.txt, which is not part of the sample"):
        sample.ensure(tiny, workers=1, **(TINY | {"seed": 4}))
    assert (tiny / "notes.txt").read_text() == "mine"
    assert sample.is_intact(tiny, **TINY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_train": 0}, "n_train must be a whole number from 1"),
        ({"long_side": 20}, "long_side must be a whole number from 96"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": 0.5}, "not 0.5"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample.generate(tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()
