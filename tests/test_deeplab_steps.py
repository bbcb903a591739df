"""Training, evaluation, export of DeepLab, and its predictions for photographs, as a user runs them."""

import errno
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from support import NO_STEPS, TOY_CLASSES, make_toy_data

import run_sample
from misc.crf import crf_inference_softmax
from misc.errors import InputError
from misc.files import camfile
from misc.files.checkpointfile import classes_beside
from misc.files.images import read_image, read_label
from misc.imutils import to_chw
from misc.run.device import set_precision
from misc.run.provenance import recorded_contents
from misc.segmentation import masks_of_images, pixel_probabilities
from net.deeplab import MultiScale, Segmenter, load_segmenter
from net.efficientnet_lite0_deeplab import DeepLab as EfficientDeepLab
from net.weights import read_checkpoint, save_weights
from step.eval_deeplab import SERVER_LAYOUT
from step.export_deeplab import CLASSES_FILE, can_export
from tests.own_network import DeepLab, EdgeDisplacement
from voc12.classes import voc_palette, write_classes

WEIGHTS = "sess/deeplab_v2_ood.pth"
CPU = torch.device("cpu")

needs_export = pytest.mark.skipif(
    torch.__version__ < (2, 11) and not can_export(),  # from 2.11 on it can: there a network must be exported
    reason="this PyTorch can't export networks for images of any size",
)


def run(toy, **flags):
    run_sample.run(toy.flags(**{**NO_STEPS, **flags}))


def refusal(toy, **flags):
    with pytest.raises(InputError) as caught:
        run(toy, **flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save_balanced_network():
    """A random network in which no class outweighs the others and every class wins somewhere."""
    network = DeepLab(n_classes=4)
    images = network.prepare(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        network.aspp.c0.bias -= network(images).mean(dim=(0, 2, 3))
        scale = 1 / network(images).std()
        for parameter in network.aspp.parameters():
            parameter *= scale
    save_weights(network, WEIGHTS)


@pytest.fixture
def trained(toy):
    """The toy data with a balanced network."""
    save_balanced_network()
    return toy


def segmenter():
    return load_segmenter("tests.own_network", WEIGHTS, CPU, n_classes=4)


def photograph(path, size=(40, 60), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 255, (*size, 3), dtype=np.uint8)
    pixels[: size[0] // 2, : size[1] // 2] = (250, 20, 20)
    image = Image.fromarray(pixels)
    image = (
        Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)
        if mode == "I;16"
        else image.convert(mode)
    )
    image.save(path, **options)
    return path


def test_training_on_masks_of_ones_own_learns_them(toy):
    losses = Path("result/metrics/train_deeplab.jsonl")
    flags = {
        "deeplab_network": "net.efficientnet_lite0_deeplab",
        "deeplab_mask_dir": toy.root / "SegmentationClass",
        "deeplab_train_list": "voc12/train.txt",
        "deeplab_learning_rate": 3e-5,  # much higher ones let the loss jump first, and then mostly guess
    }
    run(toy, train_deeplab_pass=True, deeplab_init_weights="auto", deeplab_max_iter=30, **flags)
    totals = [json.loads(line)["total"] for line in losses.read_text().splitlines()]
    assert np.mean(totals[-5:]) < 0.8 * totals[0]
    first = read_checkpoint(WEIGHTS)
    assert first["aspp.c0.weight"].shape[0] == 4
    start = shutil.copy(WEIGHTS, "sess/start.pth")
    run(toy, train_deeplab_pass=True, deeplab_init_weights=start, deeplab_max_iter=1, **flags)
    (line,) = losses.read_text().splitlines()
    assert json.loads(line)["total"] < 0.8 * totals[0]


@pytest.mark.parametrize("crf", ["torch", "pydensecrf"])
def test_evaluation_with_processes_equals_evaluation_without(trained, crf):
    if crf == "pydensecrf":
        pytest.importorskip("pydensecrf")
    run(trained, eval_deeplab_pass=True, crf=crf, crf_workers=2)
    model = segmenter()
    for image_id in trained.ids[6:]:
        image = read_image(trained.root / "JPEGImages" / f"{image_id}.jpg")
        probabilities = pixel_probabilities(model, torch.from_numpy(to_chw(image))).numpy()
        assert probabilities.shape == (4, *image.shape[:2])
        np.testing.assert_allclose(probabilities.sum(axis=0), 1, rtol=1e-5)
        np.testing.assert_array_equal(read_label(f"result/deeplab/{image_id}.png"), probabilities.argmax(axis=0))
        refined = crf_inference_softmax(image, probabilities, backend=crf)
        np.testing.assert_array_equal(read_label(f"result/deeplab_crf/{image_id}.png"), refined)
        with Image.open(f"result/deeplab/{image_id}.png") as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[:768] == voc_palette().ravel().tolist()


def test_masks_of_both_ways_are_equal_and_in_order():
    torch.manual_seed(1)
    model = Segmenter(MultiScale(DeepLab(n_classes=3))).eval()
    images = [torch.randint(0, 255, (3, 20 + 5 * k, 33), dtype=torch.uint8) for k in range(4)]
    how = {"device": CPU, "paths": range(len(images)), "workers": 0}
    plain = [mask for (mask,) in masks_of_images(model, images, crf=False, **how)]
    both = list(masks_of_images(model, images, crf=True, **how))
    for image, mask, (same, refined) in zip(images, plain, both, strict=True):
        assert mask.shape == refined.shape == image.shape[1:]
        np.testing.assert_array_equal(mask, same)


def test_the_test_set_gets_the_servers_layout_and_no_score(trained):
    (trained.root / "ImageSets/Segmentation/test.txt").write_text(f"{trained.ids[7]}\n")
    (trained.root / "SegmentationClass" / f"{trained.ids[7]}.png").unlink()
    run(trained, eval_deeplab_pass=True, deeplab_eval_set="test")
    (path,) = Path("result/voc_server").rglob("*.png")
    assert path == Path("result/voc_server") / SERVER_LAYOUT / f"{trained.ids[7]}.png"
    assert path.read_bytes() == Path(f"result/deeplab_crf/{trained.ids[7]}.png").read_bytes()
    assert not list(Path("result/scores").glob("*"))
    assert "no score: the set test has no masks" in Path("sample_train_eval.log").read_text()


def test_evaluation_without_crf_writes_no_more_than_it_should(trained):
    run(trained, eval_deeplab_pass=True, deeplab_crf=False)
    assert [path.name for path in Path("result/scores").iterdir()] == ["eval_deeplab.json"]
    assert not Path("result/deeplab_crf").exists()
    assert not Path("result/voc_server").exists()


def test_masks_without_dense_crf_are_not_made_again_for_those_with_it(trained):
    plain = Path("result/deeplab", f"{trained.ids[7]}.png")
    run(trained, eval_deeplab_pass=True, redo=())
    made = plain.stat().st_mtime_ns
    run(trained, eval_deeplab_pass=True, deeplab_crf=False, redo=())
    run(trained, eval_deeplab_pass=True, redo=())
    assert plain.stat().st_mtime_ns == made

    (trained.root / "ImageSets/Segmentation/test.txt").write_text(f"{trained.ids[7]}\n")
    server = Path("result/voc_server") / SERVER_LAYOUT / plain.name
    for crf, folder in ((True, "deeplab_crf"), (False, "deeplab"), (True, "deeplab_crf")):
        run(trained, eval_deeplab_pass=True, deeplab_eval_set="test", deeplab_crf=crf, redo=())
        assert server.read_bytes() == Path("result", folder, plain.name).read_bytes()


def test_what_is_noted_of_a_mask_is_what_that_mask_holds(trained, monkeypatch):
    """Dense CRF may remove much of what a mask without it has."""

    def masks(model, images, *, paths, **how):
        for path in paths:
            plain = np.ones(read_image(path).shape[:2], dtype=np.uint8)
            yield [plain, np.where(np.arange(plain.shape[1]) % 2, plain, 0).astype(np.uint8)]

    monkeypatch.setattr("step.eval_deeplab.masks_of_images", masks)
    run(trained, eval_deeplab_pass=True)
    for folder, share in (("deeplab", 1.0), ("deeplab_crf", 0.5)):
        noted = recorded_contents(Path("result", folder))
        assert [content["foreground"] for content in noted.values()] == pytest.approx([share] * 2, abs=0.01)


def test_images_of_one_pixel_are_segmented(trained):
    sizes = {trained.ids[6]: (1, 90), trained.ids[7]: (1, 1)}
    for image_id, size in sizes.items():
        photograph(trained.root / "JPEGImages" / f"{image_id}.jpg", size=size)
        Image.new("L", size[::-1], 1).save(trained.root / "SegmentationClass" / f"{image_id}.png")
    run(trained, eval_deeplab_pass=True)
    for image_id, size in sizes.items():
        for folder in ("deeplab", "deeplab_crf"):
            assert read_label(f"result/{folder}/{image_id}.png").shape == size


def test_evaluation_without_crf_leaves_no_score_of_an_earlier_one_with_crf(trained):
    stale = Path("result/scores/eval_deeplab_crf.json")
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    run(trained, eval_deeplab_pass=True, deeplab_crf=False)
    assert not stale.exists()
    assert json.loads(Path("result/scores/eval_deeplab.json").read_text())["weights"] == WEIGHTS
    assert f"removed {stale}: it is of an earlier run" in Path("sample_train_eval.log").read_text()


def test_a_network_keeps_its_class_names(trained):
    balanced = Path(WEIGHTS).read_bytes()
    flags = {"deeplab_mask_dir": trained.root / "SegmentationClass", "deeplab_train_list": "voc12/train.txt"}
    run(trained, train_deeplab_pass=True, eval_deeplab_pass=True, deeplab_crf=False, deeplab_max_iter=160, **flags)
    Path(WEIGHTS).write_bytes(balanced)
    assert Path("sess/deeplab_v2_ood.classes.txt").read_text() == "aeroplane\nbottle\ntrain\n"
    predict = {"predict_pass": True, "predict_input": photograph(trained.work / "photos/a.png")}
    own = trained.work / "own.txt"
    own.write_text("cat\ndog\ncow\n")
    for more, names in (
        ({"voc12_root": "nowhere"}, {"background", "aeroplane", "bottle", "train"}),
        ({"class_list": own}, {"background", "cat", "dog", "cow"}),
    ):
        run(trained, **predict, **more)
        (shares,) = json.loads(Path("result/predict/classes.json").read_text())["shares"].values()
        assert shares.keys() <= names
        assert shares.keys() - {"background"}

    evaluate = {"eval_deeplab_pass": True, "deeplab_crf": False}
    of_data = trained.root / "classes.txt"
    sentence = "class 1 is aeroplane in sess/deeplab_v2_ood.classes.txt, cat in the data; correct --voc12_root or"
    shutil.copy(own, of_data)
    assert sentence in refusal(trained, **evaluate)
    of_data.write_text("aeroplane\nbottle\n")
    assert "class 3 is train in sess/deeplab_v2_ood.classes.txt, no class in the data" in refusal(trained, **evaluate)
    Path("sess/deeplab_v2_ood.classes.txt").unlink()
    hint = "expected (21, 64, 3, 3); pass the --class_list of the classes that it was trained on."
    assert refusal(trained, **predict, voc12_root="nowhere").endswith(hint)


@pytest.fixture(scope="module")
def program_file(tmp_path_factory):
    """A program that export_deeplab wrote, in a run of another precision and without the data set, and its network's
    working directory. Exporting takes seconds, so that it is done once.
    """
    toy = make_toy_data(tmp_path_factory.mktemp("export"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(toy.work)
        torch.manual_seed(0)
        save_balanced_network()
        write_classes(classes_beside(WEIGHTS), TOY_CLASSES)
        run(toy, export_deeplab_pass=True, voc12_root="nowhere", precision="bf16")
        set_precision("fp32", CPU)
    return toy.work / "sess/deeplab_v2_ood.pt2"


def load_program(path, **how):
    """As a user would, whom some versions of PyTorch then warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return torch.export.load(path, **how)


def exported(path):
    extra = {CLASSES_FILE: ""}
    return load_program(path, extra_files=extra).module(), extra[CLASSES_FILE]


@needs_export
def test_the_exported_program_gives_equal_logits_at_any_size(program_file, monkeypatch):
    """Also after a run in bf16, which is no property of the program."""
    monkeypatch.chdir(program_file.parent.parent)
    program, classes = exported(program_file)
    assert classes.split("\n") == ["background", *TOY_CLASSES]
    model = segmenter()
    for size in ((1, 3, 64, 64), (3, 3, 101, 97), (2, 3, 128, 75)):
        images = torch.randint(0, 256, size, dtype=torch.uint8)
        with torch.no_grad():
            expected = model(images)
            torch.testing.assert_close(program(images), expected, rtol=1e-5, atol=1e-5)
        assert expected.shape == (size[0], 4, *size[2:])
        assert expected.std() > 0.1


@needs_export
def test_the_exported_program_moves_to_another_device(program_file):
    move_to_device_pass = pytest.importorskip("torch.export.passes").move_to_device_pass
    program = move_to_device_pass(load_program(program_file), "meta").module()
    logits = program(torch.zeros(1, 3, 70, 80, dtype=torch.uint8, device="meta"))
    assert (logits.shape, logits.device.type) == ((1, 4, 70, 80), "meta")


@pytest.mark.slow
@needs_export
@pytest.mark.parametrize(
    "module",
    [
        *("net.deeplab_v2", "net.resnet101_deeplab", "net.efficientnet_lite0_deeplab", "net.wresnet38_deeplab"),
        *("net.timm_deeplab:resnet50", "net.timm_deeplab:convnext_tiny", "net.timm_deeplab:efficientnet_b0"),
        *("net.timm_deeplab:mobilenetv3_small_100", "net.timm_deeplab:tf_efficientnet_lite0"),
        "net.timm_deeplab:resnet18d",
    ],
)
def test_every_network_can_be_exported(toy, module):
    from net.build import build_network

    if "timm" in module:
        pytest.importorskip("timm", reason="the package timm is not installed")
    save_weights(build_network(module, "DeepLab", n_classes=4), WEIGHTS)
    run(toy, export_deeplab_pass=True, deeplab_network=module)
    program, _ = exported("sess/deeplab_v2_ood.pt2")
    images = torch.randint(0, 256, (1, 3, 83, 66), dtype=torch.uint8)
    with torch.no_grad():
        expected = load_segmenter(module, WEIGHTS, CPU, n_classes=4)(images)
        torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-5)


@needs_export
def test_a_network_that_cannot_be_exported_is_one_sentence(trained, monkeypatch):
    def forward(self, images, own=DeepLab.forward):
        return own(self, images) if images.sum() > 0 else own(self, -images)

    monkeypatch.setattr(DeepLab, "forward", forward)
    with pytest.raises(InputError, match=r"--deeplab_network .*: torch.export can't take this network \(\w+: "):
        run(trained, export_deeplab_pass=True)
    assert not Path("sess/deeplab_v2_ood.pt2").exists()


@needs_export
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), RuntimeError("can't start new thread")],
)
def test_what_the_machine_lacks_is_not_the_networks_fault(trained, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("torch.export.save", fail)
    with pytest.raises(InputError) as caught:
        run(trained, export_deeplab_pass=True)
    assert "can't take this network" not in str(caught.value)


def test_photographs_of_every_kind_are_segmented(trained):
    folder = trained.work / "photos"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photograph(folder / "turned.jpg", exif=exif)
    photograph(folder / "grey.png", mode="L")
    photograph(folder / "deep.png", mode="I;16")
    photograph(folder / "clear.png", mode="RGBA")
    photograph(folder / "print.JPG", mode="CMYK")
    photograph(folder / "dot.png", size=(1, 1))
    photograph(folder / "strip.bmp", size=(1, 90))
    photograph(folder / "large.webp", size=(900, 620))
    (folder / "notes.txt").write_text("no photograph")
    run(trained, predict_pass=True, predict_input=folder)
    sizes = {"turned": (60, 40), "dot": (1, 1), "strip": (1, 90), "large": (900, 620)}
    stems = ("turned", "grey", "deep", "clear", "print", "dot", "strip", "large")
    found = {path.name for path in Path("result/predict").iterdir()}
    assert found == {
        "classes.json",
        "made_with.jsonl",
        *(f"{s}{end}" for s in stems for end in (".png", "_overlay.jpg")),
    }
    for stem in stems:
        mask = read_label(f"result/predict/{stem}.png")
        assert mask.shape == sizes.get(stem, (40, 60))
        overlay = read_image(f"result/predict/{stem}_overlay.jpg")
        assert overlay.shape[0] >= mask.shape[0]
        assert overlay.shape[1] >= mask.shape[1]
    classes = json.loads(Path("result/predict/classes.json").read_text())
    assert classes["classes"] == [
        {"id": 0, "name": "background", "colour": "#000000"},
        {"id": 1, "name": "aeroplane", "colour": "#800000"},
        {"id": 2, "name": "bottle", "colour": "#008000"},
        {"id": 3, "name": "train", "colour": "#808000"},
    ]
    shares = classes["shares"]
    assert shares.keys() == {path.name for path in folder.iterdir()} - {"notes.txt"}
    mask = read_label("result/predict/turned.png")
    names = ["background", "aeroplane", "bottle", "train"]
    expected = {names[k]: float((mask == k).mean()) for k in np.unique(mask)}
    assert len(expected) > 1
    assert shares["turned.jpg"] == pytest.approx(expected)
    assert list(shares["turned.jpg"].values()) == sorted(expected.values(), reverse=True)


def test_masks_of_other_photographs_are_not_replaced(trained):
    """Cameras repeat the names of their files."""
    first = photograph(trained.work / "photos/IMG_1.png")
    (first.parent / "._IMG_1.png").write_bytes(b"what macOS adds")
    run(trained, predict_pass=True, predict_input=first.parent)
    other = photograph(trained.work / "others/IMG_1.png", size=(50, 50))
    sentence = f"--predict_out_dir result/predict has masks of other photographs, such as {first.resolve()}, of which"
    sibling = photograph(first.with_suffix(".bmp"), size=(50, 50))
    for path in (other, sibling):
        assert sentence in refusal(trained, predict_pass=True, predict_input=path, redo=())
    sibling.unlink()
    noted = json.loads(Path("result/predict/classes.json").read_text())
    noted["photographs"] = {"IMG_1.png": str(first.parent.resolve())}  # as earlier versions wrote it
    Path("result/predict/classes.json").write_text(json.dumps(noted))
    run(trained, predict_pass=True, predict_input=first.parent, predict_long_side=99, redo=())
    assert read_label("result/predict/IMG_1.png").shape == (40, 60)
    for path, how in ((photograph(first, size=(31, 31)), {"redo": ()}), (other, {"redo": "predict"})):
        run(trained, predict_pass=True, predict_input=path, **how)  # the same one, changed; another one, as asked for
        assert read_label("result/predict/IMG_1.png").shape == read_image(path).shape[:2]
    another = photograph(other.parent / "IMG_2.png")
    run(trained, predict_pass=True, predict_input=another, redo=())
    assert json.loads(Path("result/predict/classes.json").read_text())["shares"].keys() == {"IMG_1.png", "IMG_2.png"}
    another.unlink()
    moved = shutil.copytree(other.parent, trained.work / "moved") / other.name
    run(trained, predict_pass=True, predict_input=moved, redo=())  # nothing is to be replaced


def test_shares_are_those_of_the_photographs_whose_masks_are_there(trained):
    for name in ("a.png", "b.png", "a.bmp"):
        path = photograph(trained.work / "photos" / name)
        run(trained, predict_pass=True, predict_input=path, redo="predict")
    noted = json.loads(Path("result/predict/classes.json").read_text())
    assert noted["shares"].keys() == {"a.bmp", "b.png"}
    folder = str(path.parent.resolve())
    assert noted["photographs"] == {"a.png": f"{folder}/a.bmp", "b.png": f"{folder}/b.png"}


def test_a_photograph_is_segmented_as_it_is_seen(trained):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = photograph(trained.work / "photos/turned.png", exif=exif)
    run(trained, predict_pass=True, predict_input=path)
    with Image.open(path) as stored:
        seen = np.asarray(ImageOps.exif_transpose(stored))
    seen = [torch.from_numpy(to_chw(seen))]
    ((expected,),) = masks_of_images(segmenter(), seen, device=CPU, paths=[path], crf=False, workers=0)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(read_label("result/predict/turned.png"), expected)


def test_large_photographs_are_reduced_for_the_network(trained, monkeypatch):
    seen = []
    network_logits = Segmenter.network_logits
    monkeypatch.setattr(
        Segmenter, "network_logits", lambda self, x: seen.append(tuple(x.shape[2:])) or network_logits(self, x)
    )
    path = photograph(trained.work / "photos/large.png", size=(200, 300))
    for long_side in (150, 250, 0, 500):
        run(trained, predict_pass=True, predict_input=path, predict_long_side=long_side)
        assert read_label("result/predict/large.png").shape == (200, 300)
    assert seen == [(100, 150), (167, 250), (200, 300), (200, 300)]


def test_predictions_with_crf(trained):
    path = photograph(trained.work / "photos/a.png")
    run(trained, predict_pass=True, predict_input=path, predict_crf=True)
    image = read_image(path)
    probabilities = pixel_probabilities(segmenter(), torch.from_numpy(to_chw(image))).numpy()
    np.testing.assert_array_equal(read_label("result/predict/a.png"), crf_inference_softmax(image, probabilities))


def test_photographs_that_differ_in_their_suffix_keep_it(trained):
    for name in ("a.jpg", "a.png", "b.png"):
        photograph(trained.work / "photos" / name)
    run(trained, predict_pass=True, predict_input="photos")
    assert {path.name for path in Path("result/predict").glob("*.png")} == {"a.jpg.png", "a.png.png", "b.png"}
    photograph(trained.work / "photos/a.jpg.png")  # whose name without a suffix is that of another one with it
    run(trained, predict_pass=True, predict_input="photos", predict_out_dir="result/other")
    names = {"a.jpg.png", "a.png.png", "a.jpg.png.png", "b.png.png"}
    assert {path.name for path in Path("result/other").glob("*.png")} == names


def test_wrong_photographs_are_refused_before_work(trained, monkeypatch):
    monkeypatch.setattr("step.predict.run", lambda args: pytest.fail("work began"))
    assert "predict needs --predict_input; expected a photograph or" in refusal(trained, predict_pass=True)
    flags = {"predict_pass": True, "predict_input": "photos"}
    assert "--predict_input photos is missing; expected a photograph or a folder" in refusal(trained, **flags)
    (trained.work / "photos").mkdir()
    assert "--predict_input photos has no photographs; expected files .jpg" in refusal(trained, **flags)
    assert refusal(trained, predict_pass=True, predict_input="x" * 300).startswith(
        f"--predict_input {'x' * 30}... is too"
    )
    sentence = (
        "--predict_input /dev/null can't be read (Not a directory); expected a photograph or a folder of photographs."
    )
    assert refusal(trained, predict_pass=True, predict_input="/dev/null") == sentence
    with monkeypatch.context() as patch:  # as a folder without the right to read it, also where root runs the tests
        patch.setattr(Path, "iterdir", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        assert "--predict_input photos can't be read (Permission denied); expected" in refusal(trained, **flags)
    good, bad = photograph(trained.work / "photos/good.jpg"), trained.work / "photos/bad.jpg"
    bad.write_bytes(good.read_bytes()[:500])
    assert "1 of 2 images can't be used (photos/bad.jpg; " in refusal(trained, **flags)
    assert "bad.jpg; " in refusal(trained, predict_pass=True, predict_input=bad)
    bad.write_text("no image at all")
    assert "cannot identify image file" in refusal(trained, predict_pass=True, predict_input=bad)
    bad.unlink()
    sentence = "--predict_out_dir photos is the photographs' own folder, where masks could replace them; name another."
    assert refusal(trained, predict_pass=True, predict_input=good, predict_out_dir="photos") == sentence
    sentence = "--predict_input and --predict_out_dir are both photos: predict would write over what it reads"
    assert refusal(trained, predict_out_dir="photos", **flags).startswith(sentence)
    (trained.work / WEIGHTS).unlink()
    assert f"checkpoint {WEIGHTS} is missing" in refusal(trained, **flags)


def test_a_folder_of_one_run_may_be_written_in_several_ways(toy, monkeypatch):
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: None)
    for image_id in toy.ids[:6]:
        camfile.save(f"result/cam_ood/{image_id}.npy", [], torch.zeros(0, 3, 4), torch.zeros(0, 12, 16))
    save_weights(EdgeDisplacement(), "sess/irn.pth")
    masks = {"make_sem_seg_pass": True, "infer_list": "voc12/train.txt", "irn_weights_name": "sess/irn.pth"}
    for folder in ("result/sem_seg_ood/", toy.work / "result/sem_seg_ood"):
        run(toy, **masks, train_deeplab_pass=True, deeplab_mask_dir=folder)


def test_wrong_training_input_is_refused_before_work(toy, monkeypatch):
    monkeypatch.setattr("step.train_deeplab.run", lambda args: pytest.fail("work began"))
    on = {"train_deeplab_pass": True}
    own = {**on, "deeplab_mask_dir": toy.root / "SegmentationClass", "deeplab_train_list": "voc12/train.txt"}
    sentence = "--sem_seg_out_dir: folder result/sem_seg_ood is missing; run make_sem_seg first"
    assert sentence in refusal(toy, **on)
    assert "--deeplab_mask_dir: folder nowhere is missing" in refusal(toy, **on, deeplab_mask_dir="nowhere")
    assert "--deeplab_train_list: list none.txt is missing" in refusal(toy, **on, deeplab_train_list="none.txt")
    assert "--deeplab_train_list has 6 images, fewer than one batch (--deeplab_batch_size 7)" in refusal(
        toy, **own, deeplab_batch_size=7
    )
    assert "network module net.nothing can't be imported" in refusal(toy, **own, deeplab_network="net.nothing")
    assert "checkpoint none.pth is missing" in refusal(toy, **own, deeplab_init_weights="none.pth")
    sentence = (
        "checkpoint sess/deeplab_resnet101_imagenet.pth is missing: pass another --deeplab_init_weights, or a "
        "--deeplab_network such as net.resnet101_deeplab, or download it into sess/ (see sess/README.md)."
    )
    assert sentence in refusal(toy, **own, deeplab_network="net.deeplab_v2", deeplab_init_weights="auto")
    save_weights(EfficientDeepLab(n_classes=4), "sess/other.pth")
    assert "sess/other.pth is no checkpoint of DeepLab" in refusal(toy, **own, deeplab_init_weights="sess/other.pth")
    mask = toy.root / "SegmentationClass" / f"{toy.ids[0]}.png"
    Image.new("L", (64, 48), 9).save(mask)
    assert "the mask has class id 9, the class list ends at 3" in refusal(toy, **own)
    mask.unlink()
    assert "lacks 1 of the 6 images of --deeplab_train_list (2099_000001)" in refusal(toy, **own)


def test_wrong_input_of_evaluation_and_export_is_refused_before_work(trained, monkeypatch):
    on = {"eval_deeplab_pass": True, "deeplab_crf": False}
    assert "--deeplab_eval_set: list" in refusal(trained, **on, deeplab_eval_set="nothing")
    mask = trained.root / "SegmentationClass" / f"{trained.ids[6]}.png"
    content = mask.read_bytes()
    mask.unlink()
    assert "(2099_000007); correct --deeplab_eval_set or" in refusal(trained, **on)
    mask.write_bytes(content)
    sentence = "--deeplab_export_name sess/a.pth must end in .pt2."
    assert refusal(trained, export_deeplab_pass=True, deeplab_export_name="sess/a.pth") == sentence
    with monkeypatch.context() as patch:
        patch.setattr("step.export_deeplab.can_export", lambda: False)
        assert "can't export a network for images of any size" in refusal(trained, export_deeplab_pass=True)
    save_weights(DeepLab(n_classes=21), WEIGHTS)
    sentence = "aspp.c0.weight has shape (21, 64, 3, 3), expected (4, 64, 3, 3)"
    for flags in (
        on,
        {"export_deeplab_pass": True},
        {"predict_pass": True, "predict_input": trained.root / "JPEGImages"},
    ):
        assert sentence in refusal(trained, **flags)
