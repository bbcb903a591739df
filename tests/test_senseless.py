"""What would run to its end and mean nothing is told before it begins: an error where it can only be wrong."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from support import NO_STEPS, ToyData, make_all_inputs

import run_sample
from misc.errors import InputError
from misc.files.checksum import crc32_of
from misc.files.images import read_label, write_label
from misc.files.look import one_look
from misc.run.config import parse_config, switches
from misc.run.notices import notice
from voc12.classes import read_classes
from voc12.devkit import open_devkit
from voc12.labels import Labels, read_labels, tell_odd_classes
from voc12.lists import read_list
from voc12.verify import images_among, record_of, require_masks, require_no_training_images

LABELS = "voc12/cls_labels.npy"


@pytest.fixture
def told(caplog):
    """The sentences of all notices so far."""
    caplog.set_level(logging.INFO)
    return lambda: [r.getMessage() for r in caplog.records if r.getMessage().startswith("notice: ")]


def annotate(toy: ToyData, number: int, *names: str) -> None:
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    (toy.root / "Annotations" / f"{toy.ids[number]}.xml").write_text(f"<annotation>{objects}</annotation>")


def test_a_run_has_each_notice_once(told):
    with one_look():
        for sentence in ("a", "b", "a"):
            notice(sentence)
    with one_look():
        notice("a")
    assert told() == ["notice: a", "notice: b", "notice: a"]


@pytest.mark.parametrize(
    ("text", "told_of"),
    [
        ("background\ncat\n", "background"),
        ("_background_\ncat\n", "_background_"),
        ("__ignore__\n_background_\ncat\n", "__ignore__, _background_"),
        ("0\tbackground\n1\tcat\n", "0\tbackground"),
        ("0: Background\ncat\n", "0: Background"),
    ],
)
def test_a_class_list_that_begins_with_the_background(tmp_path, text, told_of):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=f"begins with {told_of}, which is no class: value 0 of a mask is the"):
        read_classes(tmp_path / "classes.txt")


def test_classes_that_resemble_the_background_stay(tmp_path):
    names = ("avoid", "cat", "background", "background noise")  # it does not begin with it
    (tmp_path / "classes.txt").write_text("\n".join(names))
    assert read_classes(tmp_path / "classes.txt") == names


@pytest.mark.parametrize("name", ["Train", "TRAIN", "tr-ain", "tr ain"])
def test_a_class_that_annotations_spell_otherwise(toy, name):
    annotate(toy, 2, name)
    sentence = rf"1 annotations in .*/Annotations name '{name}', the class list has 'train': both must spell"
    for _ in range(2):  # nothing was made of them
        with pytest.raises(InputError, match=sentence):
            read_labels(open_devkit(toy.root, ""), LABELS, toy.ids)
    assert not Path(LABELS).exists()


def test_names_in_annotations_that_are_no_classes(toy, told):
    annotate(toy, 0, "aeroplane", "airplane", "cup")
    devkit = open_devkit(toy.root, "")
    for _ in range(2):  # the second time the labels are there
        with one_look():
            read_labels(devkit, LABELS, toy.ids)
    sentence = (
        f"notice: annotations in {toy.root}/Annotations name what the class list has not, and such objects are taken "
        "for background: airplane (1 images, the nearest class is aeroplane), spoon (7 images), cup (1 images); where "
        "one of the classes is meant, correct the annotations or the class list."
    )
    assert told() == [sentence] * 2
    for number in range(len(toy.ids)):
        annotate(toy, number, "train")
    read_labels(devkit, LABELS, toy.ids)
    assert len(told()) == 2


def test_classes_in_no_image_or_in_every_image(told):
    classes = ("aeroplane", "bottle", "train")
    rows = np.array([[1, 0, 0]] * 5000 + [[1, 1, 0]])
    labels = Labels.of(rows)
    np.testing.assert_array_equal(labels.images_of_classes(), [5001, 1, 0])
    tell_odd_classes(labels, classes, flag="train_list")
    assert told() == [
        "notice: --train_list: no image carries train (1 of 3 classes), so no CAM will show them; add images, or take "
        "them out of the class list.",
        "notice: --train_list: every image carries aeroplane, so nothing teaches the classifier where they are not; "
        "add images without them.",
    ]
    tell_odd_classes(Labels.of(np.eye(3)), classes, flag="train_list")
    assert len(told()) == 2


def same_as(toy: ToyData, ood: list[Path]) -> None:
    devkit = open_devkit(toy.root, "")
    require_no_training_images(ood, devkit, toy.ids, list_flag="ood_list", train_flag="train_list")


def test_out_of_distribution_images_that_are_training_images(toy, monkeypatch):
    """Sizes tell first; what must be read is read once, until it changes."""
    first, second = (toy.root / "JPEGImages" / f"{toy.ids[number]}.jpg" for number in (0, 1))
    ood = [toy.ood_root / f"scene{number}.jpg" for number in range(5)]
    read = []
    monkeypatch.setattr("voc12.verify.checksum", lambda path: read.append(path) or crc32_of(path))
    same_as(toy, ood)
    assert read == []
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    ood[1].write_bytes(content)  # of the same size, but another image
    for _ in range(2):
        same_as(toy, ood)
        assert read == [str(ood[1]), str(first)]
    ood[3].write_bytes(second.read_bytes())
    sentence = rf"--ood_list: 1 of 5 out-of-distribution images are images of --train_list .*\({ood[3]} is {second}\)"
    with pytest.raises(InputError, match=sentence):
        same_as(toy, ood)
    assert sorted(read[2:]) == sorted([str(ood[3]), str(second)])


def test_a_photograph_that_the_import_has_turned_is_the_image_that_it_made(toy):
    """Which has other bytes, since it was written anew."""
    photograph, turned, upright = "photos/cat/a.jpg", Image.Exif(), Image.Exif()
    turned[ExifTags.Base.Orientation], upright[ExifTags.Base.Orientation] = 6, 1
    for number, (name, exif) in enumerate(((photograph, turned), ("photos/dog/b.jpg", turned), ("c.jpg", upright))):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 48), 30 + number).save(name, exif=exif)
    flags = {"import_from": "photos", "voc12_root": "Data/mine", "import_val_share": 0}
    run_sample.run(toy.flags(**NO_STEPS | flags | {"import_data_pass": True}))
    devkit = open_devkit("Data/mine", "")
    shutil.copy(photograph, toy.ood_root / "other_name.jpg")
    (toy.ood_root / "damaged.jpg").write_bytes(b"no image")
    pool = [*sorted(toy.ood_root.glob("*.jpg")), "c.jpg"]
    (number,) = images_among(pool, devkit, sorted(devkit.image_names))
    assert pool[number].name == "other_name.jpg"
    assert images_among(pool, devkit, [name for name in devkit.image_names if not name.startswith("a")]) == {}


def test_an_equal_checksum_alone_does_not_make_an_image_the_same(toy, monkeypatch):
    first, ood = toy.root / "JPEGImages" / f"{toy.ids[0]}.jpg", toy.ood_root / "scene0.jpg"
    ood.write_bytes(bytes(len(first.read_bytes())))
    monkeypatch.setattr("voc12.verify.checksum", lambda path: "0" * 8)
    same_as(toy, [ood])


def test_train_cam_checks_that(toy, monkeypatch):
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: pytest.fail("work began"))
    make_all_inputs(toy)
    (toy.ood_root / "scene2.jpg").write_bytes((toy.root / "JPEGImages" / f"{toy.ids[0]}.jpg").read_bytes())
    with pytest.raises(InputError, match=r"--ood_list: 1 of 5 .*scene2.jpg is .*2099_000001.jpg\), so the losses"):
        run_sample.run(toy.flags(**switches("train_cam"), redo=()))


@pytest.mark.parametrize("interval", [1, 100])
def test_a_choice_of_weights_that_outlasts_the_training(toy, monkeypatch, interval):
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: None)
    make_all_inputs(toy)
    monkeypatch.setattr("misc.selection.STARTS", 0)
    flags = {"cam_num_epoches": 1, "cam_batch_size": 2, "cam_select_interval": interval, "cam_select": "best_miou"}
    run_sample.run(toy.flags(**{**switches("train_cam"), **flags}, redo=()))
    said = (
        "notice: train_cam makes the CAMs of 6 images 3 times to choose its weights, which takes longer than to train"
    )
    assert (said in Path("sample_train_eval.log").read_text()) == (interval == 1)


@pytest.mark.parametrize(
    ("take_away", "said"),
    [
        ("SegmentationClass", "6 of 6 ground-truth masks are missing, so train_cam keeps its last weights"),
        ("ImageSets/Segmentation/train.txt", "train.txt, so train_cam keeps its last weights"),
    ],
)
def test_a_choice_of_weights_without_masks_is_told_once(toy, monkeypatch, take_away, said):
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: None)
    make_all_inputs(toy)
    (toy.root / take_away).rename(toy.root / "away")
    run_sample.run(toy.flags(**switches("train_cam"), cam_select="best_miou", redo=()))
    assert Path("sample_train_eval.log").read_text().count(said) == 1


def mask_of(toy: ToyData, number: int) -> Path:
    return toy.root / "SegmentationClass" / f"{toy.ids[number]}.png"


def test_masks_without_any_class_id(toy, told, monkeypatch):
    """0 and 255 alone, as many tools write an object: one such mask is sound, a whole list is not; also remembered."""
    devkit = open_devkit(toy.root, "")
    read = []
    monkeypatch.setattr("voc12.verify.read_label", lambda path: read.append(path) or read_label(path))
    for n_empty in range(1, len(toy.ids) + 1):
        mask = read_label(mask_of(toy, n_empty - 1))
        write_label(mask_of(toy, n_empty - 1), np.where(mask > 0, 255, 0).astype(np.uint8))
        for _ in range(2):
            if n_empty < len(toy.ids):
                require_masks(devkit, toy.ids, num_workers=0)
                assert told()[-1] == (
                    f"notice: {n_empty} of 8 masks in {toy.root}/SegmentationClass show none of the classes"
                )
            else:
                sentence = r"none of the 8 masks such as .*png holds the id of a class: their values are 0 \(background"
                with pytest.raises(InputError, match=sentence):
                    require_masks(devkit, toy.ids, num_workers=0)
    assert len(read) == 2 * len(toy.ids) - 1  # each when it is new or changed
    mask_of(toy, 0).write_bytes((toy.root / "SegmentationClassAug" / f"{toy.ids[0]}.png").read_bytes())
    require_masks(devkit, toy.ids, num_workers=0)
    assert told()[-1].startswith("notice: 7 of 8 masks")
    assert "mask of 3 classes, no class id" in json.loads(record_of(toy.root / "SegmentationClass").read_text())


def test_pixels_can_not_be_sure_to_be_foreground_and_background(toy):
    make_all_inputs(toy)
    flags = {"conf_fg_thres": 0.1, "conf_bg_thres": 0.3}
    with pytest.raises(
        InputError, match=r"--conf_fg_thres 0\.1 is below --conf_bg_thres 0\.3, so that pixels would be"
    ):
        run_sample.run(toy.flags(**switches("cam_to_ir_label"), **flags))


@pytest.mark.parametrize(
    ("step", "flag", "folder", "advice"),
    [
        ("train_irn", "ir_label_out_dir", "ir_label", "lower --conf_fg_thres and let cam_to_ir_label make them again"),
        ("train_deeplab", "deeplab_mask_dir", "sem_seg_ood", "write ids in the order of the class list"),
    ],
)
def test_trainings_refuse_masks_that_are_no_class_ids(toy, monkeypatch, step, flag, folder, advice):
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: pytest.fail("work began"))
    make_all_inputs(toy)
    flags = {"train_list": "voc12/train.txt", "infer_list": "voc12/train.txt", flag: f"result/{folder}"}
    paths = sorted((toy.work / "result" / folder).glob("*.png"))
    for path in paths:
        write_label(path, np.full_like(read_label(path), 255))
    with pytest.raises(InputError, match=f"none of the 6 masks such as .* holds the id of a class: .*; {advice}"):
        run_sample.run(toy.flags(**switches(step), **flags))
    write_label(paths[0], np.full_like(read_label(paths[0]), 4))
    with pytest.raises(InputError, match="the mask has class id 4, the class list ends at 3"):
        run_sample.run(toy.flags(**switches(step), **flags))


@pytest.mark.parametrize(("orientation", "is_told"), [(6, True), (8, True), (3, False), (None, False)])
def test_a_mask_of_a_photograph_that_was_turned(toy, orientation, is_told):
    """Images are read as they are stored; a mask that was drawn on what people see has the turned size."""
    image = Image.open(toy.root / "JPEGImages" / f"{toy.ids[0]}.jpg")
    if orientation is not None:
        image.getexif()[ExifTags.Base.Orientation] = orientation
    image.save(image.filename, exif=image.getexif())
    write_label(mask_of(toy, 0), np.ascontiguousarray(read_label(mask_of(toy, 0)).T))
    with pytest.raises(InputError, match="the mask has 64 x 48 pixels, its image 48 x 64") as caught:
        require_masks(open_devkit(toy.root, ""), toy.ids, num_workers=0)
    assert ("EXIF orientation" in str(caught.value)) == is_told


def test_one_id_with_two_suffixes(toy, told):
    devkit, path = open_devkit(toy.root, ""), toy.work / "list.txt"
    Image.new("RGB", (9, 9)).save(toy.root / "JPEGImages" / f"{toy.ids[0]}.png")
    path.write_text(f"{toy.ids[0]}\n{toy.ids[1]}\n")
    assert read_list(devkit, path, flag="train_list") == toy.ids[:2]
    assert told() == [
        f"notice: 1 images of {path} have several files in {devkit.image_folder} that differ in the suffix alone; read "
        f"are {toy.ids[0]}.jpg, not {toy.ids[0]}.png"
    ]
    path.write_text(f"{toy.ids[1]}\n")
    read_list(devkit, path, flag="train_list")
    assert len(told()) == 1
    path.write_text(f"JPEGImages/{toy.ids[0]}.png\n{toy.ids[0]}.jpg\n")
    sentence = rf"--train_list: {path} names {toy.ids[0]}.png, and .* has {toy.ids[0]}.jpg, too, which would be read"
    with pytest.raises(InputError, match=sentence):
        read_list(devkit, path, flag="train_list")


@pytest.mark.parametrize(
    ("flags", "is_told"),
    [
        (["--predict_pass", "True"], False),
        (["--predict_pass", "True", "--cam_to_ir_label_pass", "True"], True),
        (["--predict_pass", "True", "--make_cam_pass", "True", "--train_cam_pass", "False"], True),  # eval_cam is off
        (["--cam_to_ir_label_pass", "True"], False),
        (["--predict_pass", "True", "--train_classifier_pass", "True"], False),  # which uses nothing of theirs
        (["--predict_pass", "True", "--recipe", "cam"], False),  # whose steps are those of the recipe
    ],
)
def test_steps_of_a_bare_call_that_predict_switches_off(flags, is_told):
    sentences = []
    parse_config(flags, explain=sentences.append)
    assert any("beside --predict_pass only steps that are switched on run" in text for text in sentences) == is_told


def test_they_are_named():
    sentences = []
    parse_config(["--predict_pass", "True", "--cam_to_ir_label_pass", "True"], explain=sentences.append)
    assert sentences == [
        "notice: beside --predict_pass only steps that are switched on run: train_cam, make_cam, eval_cam do not, and "
        "cam_to_ir_label would use what earlier runs have left; add --train_cam_pass True and so on, where they are "
        "meant to run."
    ]


def test_evaluations_refuse_masks_with_other_ids(toy, monkeypatch):
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: None)
    make_all_inputs(toy)
    paths = sorted((toy.work / "result/sem_seg_ood").glob("*.png"))
    for path in paths:
        write_label(path, np.zeros_like(read_label(path)))
    run_sample.run(toy.flags(**switches("eval_sem_seg")))
    sentence = "notice: 6 of 6 masks in result/sem_seg_ood show none of the classes"
    assert Path("sample_train_eval.log").read_text().count(sentence) == 1
    write_label(paths[0], np.full_like(read_label(paths[0]), 4))
    with pytest.raises(InputError, match="the mask has class id 4, the class list ends at 3"):
        run_sample.run(toy.flags(**switches("eval_sem_seg")))
