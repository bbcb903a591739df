"""Images, crops and the order of samples."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torch.utils.data import DataLoader

from misc.errors import InputError, message_of
from misc.files.images import read_image, read_label, write_label, write_palette
from misc.imutils import (
    crop_into,
    long_side_size,
    normalize,
    random_crop_boxes,
    reduce_label,
    resize_image,
    scaled_size,
    to_chw,
)
from misc.run.loaders import (
    GroupedLoader,
    ShuffledBatches,
    generator,
    sequential_loader,
    size_groups,
    training_loader,
)
from misc.torchutils import PolyOptimizer
from voc12.classes import voc_palette
from voc12.dataloader import AffinityCrops, ClassificationCrops, PoolImages, ScaledImages, TopLeftCrops, images_of
from voc12.verify import require_readable


def test_sizes_round_half_to_even_and_never_vanish():
    assert scaled_size((281, 500), 0.5) == (140, 250)
    assert scaled_size((375, 3), 0.5) == (188, 2)
    assert scaled_size((1, 400), 0.25) == (1, 100)
    assert long_side_size((300, 200), 150) == (150, 100)
    assert long_side_size((200, 301), 150) == (100, 150)
    assert long_side_size((1, 1000), 320) == (1, 320)
    assert long_side_size((1000, 1), 320) == (320, 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P", "I;16"])
def test_images_of_every_kind_become_rgb(tmp_path, mode):
    suffix = "jpg" if mode in ("RGB", "L", "CMYK") else "png"
    path = tmp_path / f"image.{suffix}"
    image = Image.new("L", (7, 5), 100)
    deep = Image.fromarray(np.full((5, 7), 100 * 257, dtype=np.uint16))
    (deep if mode == "I;16" else image.convert(mode)).save(path)
    array = read_image(path)
    assert array.shape == (5, 7, 3)
    assert array.dtype == np.uint8
    if mode != "CMYK":
        assert abs(int(array[2, 3, 0]) - 100) <= 1


def test_pixels_of_an_unknown_range_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, dtype in (("I", np.int32), ("F", np.float32)):
        path = tmp_path / f"{name}.tif"
        Image.fromarray(np.ones((5, 7), dtype=dtype)).save(path)
        sentence = f"{name}.tif.*it has 32-bit pixels of PIL's mode {name}, whose range is not known, expected 8 or 16"
        with pytest.raises(InputError, match=sentence):
            read_image(path)
        with pytest.raises(InputError, match=sentence):
            require_readable([path], num_workers=1)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    Image.fromarray(np.full((5, 7), 100 * 257, dtype=np.uint16)).save(tmp_path / f"deep.{suffix}")
    assert (read_image(tmp_path / f"deep.{suffix}") == 100).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_of_several_pages_the_first_is_read(tmp_path, suffix):
    """Also of an animated PNG."""
    path, pages = tmp_path / f"a{suffix}", [Image.new("RGB", (6, 4), (value, 0, 0)) for value in (10, 20)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_image(path), np.full((4, 6, 3), (10, 0, 0)))


def test_unreadable_files_are_named(tmp_path):
    truncated, text = tmp_path / "cut.jpg", tmp_path / "text.png"
    Image.new("RGB", (64, 64), 90).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:-200])
    text.write_text("hello")
    for path in (truncated, text, tmp_path / "missing.jpg"):
        with pytest.raises(InputError, match=path.name):
            read_image(path)
    with pytest.raises(InputError, match=r"text.png"):
        read_label(text)
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match="colour.png is a RGB image"):
        read_label(tmp_path / "colour.png")


def test_labels_round_trip_with_and_without_palette(tmp_path):
    label = np.random.default_rng(0).choice([0, 1, 20, 255], (9, 7)).astype(np.uint8)
    write_label(tmp_path / "a" / "x.png", label)
    write_palette(tmp_path / "a" / "x_palette.png", label, voc_palette())
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["x.png", "x_palette.png"]
    np.testing.assert_array_equal(read_label(tmp_path / "a" / "x.png"), label)
    np.testing.assert_array_equal(read_label(tmp_path / "a" / "x_palette.png"), label)
    with Image.open(tmp_path / "a" / "x_palette.png") as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), voc_palette()[label])


def test_palette_is_vocs():
    expected = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for index, colour in expected.items():
        assert tuple(voc_palette()[index]) == colour


def test_reduced_labels_sample_cells_2_plus_4i():
    label = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(reduce_label(label, 4), label[2::4, 2::4])
    assert reduce_label(label[:7, :5], 4).shape == (1, 1)


def test_images_of_a_pool_are_upright(tmp_path):
    lying, exif = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(lying).save(tmp_path / "lying.png", exif=exif)
    Image.fromarray(np.rot90(lying, -1)).save(tmp_path / "upright.png")
    lying, upright = PoolImages([str(tmp_path / f"{name}.png") for name in ("lying", "upright")], long_side=40)
    assert torch.equal(lying["image"], upright["image"])
    assert lying["hash"] == upright["hash"]


@pytest.mark.parametrize("size", [(20, 30), (50, 30), (40, 90)])
def test_images_of_the_validation_are_cropped_at_the_top_left(tmp_path, size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    (batch,) = DataLoader(TopLeftCrops([str(tmp_path / "a.png")], crop_size=40))
    kept = image[:40, :40]
    expected = torch.zeros(1, 3, 40, 40)
    expected[0, :, : kept.shape[0], : kept.shape[1]] = normalize(torch.from_numpy(to_chw(kept)))
    torch.testing.assert_close(images_of(batch, torch.device("cpu")), expected)


def test_crops_cover_large_images_and_hold_small_ones():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 255, (30, 9, 3), dtype=np.uint8)
    tops, lefts = set(), set()
    for _ in range(200):
        boxes = random_crop_boxes(image.shape[:2], 16, rng)
        (image_top, image_left, height, width), (top, left, same_height, same_width) = boxes
        assert (height, width) == (same_height, same_width) == (16, 9)
        assert (image_left, top) == (0, 0)
        crop = crop_into(image, boxes, 16)
        np.testing.assert_array_equal(crop[:, left : left + 9], image[image_top : image_top + 16])
        assert (crop == 0).all(axis=2).sum() == 16 * (16 - 9)
        tops.add(image_top)
        lefts.add(left)
    assert tops == set(range(15))
    assert lefts == set(range(8))


def test_padding_is_zero_after_normalisation():
    images = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    normalized = normalize(images, torch.tensor([[1, 2, 3, 2], [0, 0, 4, 4]]))
    filled = normalized[0, 0] != 0
    assert filled.nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (2, 3)]
    assert normalized[1, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229)
    torch.testing.assert_close(normalized[1], normalize(images[1]))


def items_of(toy, **loader):
    crops = ClassificationCrops(
        [toy.root / "JPEGImages" / f"{i}.jpg" for i in toy.ids],
        np.eye(8, dtype=np.float32),
        resize_long=(40, 80),
        crop_size=32,
        seed=(5,),
    )
    return list(training_loader(crops, batch_size=3, n_batches=5, seed=(5,), device=torch.device("cpu"), **loader))


def test_samples_do_not_depend_on_the_number_of_workers(toy):
    alone, many = items_of(toy, num_workers=0), items_of(toy, num_workers=2)
    for a, b in zip(alone, many, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    first_epoch = torch.cat([batch["label"].argmax(dim=1) for batch in alone[:2]])
    assert len(set(first_epoch.tolist())) == 6
    assert not torch.equal(alone[0]["image"], alone[2]["image"])


def test_batches_differ_between_epochs_and_seeds():
    whole = list(ShuffledBatches(10, batch_size=3, n_batches=8, seed=(1,)))
    assert [{epoch for epoch, _ in batch} for batch in whole] == [{k // 3} for k in range(8)]
    assert [i for batch in whole[:3] for _, i in batch] != [i for batch in whole[3:6] for _, i in batch]
    assert list(ShuffledBatches(10, batch_size=3, n_batches=8, seed=(2,))) != whole


def test_seeds_streams_and_places_have_random_numbers_of_their_own():
    keys = [((seed, stream), place) for seed in (0, 1, 2**32) for stream in (0, 1) for place in ((0,), (1,), (0, 0))]
    numbers = [int(generator(seed, *place).integers(2**62)) for seed, place in keys]
    assert len(set(numbers)) == len(keys)
    assert numbers == [int(generator(seed, *place).integers(2**62)) for seed, place in keys]


def test_irn_crops_keep_image_and_label_together(tmp_path):
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 2, (6, 8)), np.ones((16, 16))).astype(np.uint8)
    Image.fromarray(np.repeat(label[..., None] * 200, 3, axis=2)).save(tmp_path / "x.png")
    write_label(tmp_path / "label.png", label)
    crops = AffinityCrops([tmp_path / "x.png"], [tmp_path / "label.png"], crop_size=128, seed=(0,))
    for epoch in range(20):
        item = crops[epoch, 0]
        assert item["image"].shape == (3, 128, 128)
        assert item["label"].shape == (32, 32)
        brightness = item["image"][0, 2::4, 2::4]
        inside = item["label"] != 255
        agree = (brightness > 100) == (item["label"] == 1)
        assert agree[inside].float().mean() > 0.9
        top, left, height, width = item["box"].tolist()
        rows, columns = torch.arange(2, 128, 4)[:, None], torch.arange(2, 128, 4)[None]
        in_box = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
        assert torch.equal(inside, in_box)


def test_scaled_images_hold_scales_keys_and_mask(toy):
    paths = [toy.root / "JPEGImages" / f"{i}.jpg" for i in toy.ids[:2]]
    masks = [toy.root / "SegmentationClass" / f"{i}.png" for i in toy.ids[:2]]
    data = ScaledImages(paths, np.array([[0, 1, 1], [0, 0, 0]], np.float32), (1.0, 0.5), mask_paths=masks)
    item = data[0]
    assert [tuple(image.shape) for image in item["images"]] == [(3, 48, 64), (3, 24, 32)]
    assert (item["size"], item["keys"], item["mask"].shape) == ((48, 64), [1, 2], (48, 64))
    assert data[1]["keys"] == []


def test_a_mask_of_another_size_is_named_also_from_a_worker(toy):
    path, mask = toy.root / "JPEGImages" / f"{toy.ids[0]}.jpg", toy.root / "SegmentationClass" / f"{toy.ids[1]}.png"
    data = ScaledImages([path], np.ones((1, 3), np.float32), (1.0,), mask_paths=[mask])
    with pytest.raises(InputError) as caught:
        next(iter(DataLoader(data, batch_size=None, num_workers=1)))
    expected = f"label {mask} has size (61, 47), its image (48, 64) (rows, columns); replace it."
    assert message_of(caught.value) == expected


def test_kept_images_are_read_once(toy, monkeypatch):
    paths = [toy.root / "JPEGImages" / f"{i}.jpg" for i in toy.ids[:1]]
    masks = [toy.root / "SegmentationClass" / f"{i}.png" for i in toy.ids[:1]]
    data = ScaledImages(paths, np.ones((1, 3), np.float32), (1.0, 0.5), mask_paths=masks, keep=True)
    first = data[0]
    monkeypatch.setattr("voc12.dataloader.read_image", lambda path: pytest.fail("read again"))
    monkeypatch.setattr("voc12.dataloader.resize_image", lambda image, size: pytest.fail("resized again"))
    again = data[0]
    assert all(torch.equal(a, b) for a, b in zip(first["images"], again["images"], strict=True))
    assert (first["mask"] == again["mask"]).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_no_more_images_are_kept_than_there_is_room_for(toy, monkeypatch, tmp_path, workers):
    ids = toy.ids[:4]
    paths, masks = (
        [toy.root / folder / f"{i}.{kind}" for i in ids]
        for folder, kind in (("JPEGImages", "jpg"), ("SegmentationClass", "png"))
    )
    scaled = partial(ScaledImages, paths, np.ones((4, 3), np.float32), (1.0, 0.5), mask_paths=masks)
    expected = [*scaled()]
    sizes = [sum(image.numel() for image in item["images"]) + item["mask"].size for item in expected]
    # Of each worker's images, or of all, there is room for the first
    monkeypatch.setattr("voc12.dataloader.KEPT_BYTES", max(sizes[:2]) * max(1, workers))
    log = tmp_path / "read"

    def logged(path):
        with log.open("a") as file:
            file.write(f"{path.stem}\n")
        return read_image(path)

    monkeypatch.setattr("voc12.dataloader.read_image", logged)
    loader = sequential_loader(scaled(keep=True), num_workers=workers, device=torch.device("cpu"), keep_workers=True)
    for _ in range(3):
        for item, other in zip(loader, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(item["images"], other["images"], strict=True))
            assert np.array_equal(item["mask"], other["mask"])
            assert ([*item["size"]], item["keys"]) == ([*other["size"]], other["keys"])
    times = Counter(log.read_text().split())
    assert [times[i] for i in ids] == ([1, 1, 3, 3] if workers else [1, 3, 3, 3])


def test_groups_are_of_one_size_and_not_too_large():
    sizes = [(1, 2), (3, 4), (1, 2), (1, 2), (3, 4), (1, 2)]
    assert size_groups(sizes, 2) == [[0, 2], [3, 5], [1, 4]]
    assert size_groups(sizes, 2, n_parts=[1, 5, 1, 0, 1, 2]) == [[0, 2], [3], [5], [1], [4]]
    assert size_groups([], 1) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_grouped_loader_yields_each_group_whole(workers):
    loader = GroupedLoader(range(100, 106), [[0, 4], [2], [5, 1, 3]], num_workers=workers, device=torch.device("cpu"))
    assert len(loader) == 3
    assert list(loader) == [[100, 104], [102], [105, 101, 103]]


def test_bicubic_is_antialiased():
    checkerboard = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = np.repeat(checkerboard[..., None], 3, axis=2).astype(np.uint8)
    assert resize_image(image, (16, 16))[4:-4, 4:-4].std() < 3


def test_optimizer_equals_the_recording(fixture_json):
    recording = fixture_json("poly_optimizer.json")
    weight = torch.nn.Parameter(torch.tensor(recording["start"], dtype=torch.float32))
    group = {"params": [weight], "lr": recording["lr"], "weight_decay": recording["weight_decay"]}
    optimizer = PolyOptimizer(
        [group], lr=recording["lr"], weight_decay=recording["weight_decay"], max_step=recording["max_step"]
    )
    for expected, rate in recording["trajectory"]:
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
        assert weight.tolist() == pytest.approx(expected, abs=1e-6)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-6)


def test_a_part_whose_gradients_come_later_is_updated_as_well(monkeypatch):
    """Also by the fused kernel, which GPUs have, and which the CPU has for tests."""

    def trained(fused):
        monkeypatch.setattr("misc.torchutils.may_fuse", lambda parameters: fused)
        weights = [torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
        optimizer = PolyOptimizer([{"params": weights, "weight_decay": 0.5}], lr=0.1, weight_decay=0.5, max_step=9)
        for step in range(4):
            optimizer.zero_grad()
            sum((weight**3).sum() for weight in weights[: 1 + (step > 1)]).backward()
            optimizer.step()
        return torch.cat(weights).detach()

    torch.testing.assert_close(trained(fused=True), trained(fused=False))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_photographs_are_turned_upright_on_request(tmp_path, orientation, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        upright = ImageOps.exif_transpose(stored).convert("RGB")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", upright=True), np.asarray(upright))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(image.convert("RGB")))
