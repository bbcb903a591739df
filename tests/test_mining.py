"""Hard OoD images: what is scored, what is left out, in which order, and what a review makes of it."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import CAM_START

import run_sample
from benchmarks import bench_mining
from misc.classifier import class_probabilities
from misc.errors import InputError
from misc.files.checkpointfile import classes_beside
from misc.files.images import read_image
from misc.imutils import normalize, to_chw
from misc.mining import NEAR, by_size, perceptual_hash, rank, scoring_size
from misc.report.review import read_review
from misc.run.config import parse_config, switches, to_arguments
from misc.run.sample_runs import sample_runs
from net.weights import save_weights
from tests import colour_network
from tests.test_fitting import limit
from voc12 import sample
from voc12.classes import write_classes
from voc12.lists import read_ood_paths

CHANNEL_OF = {"aeroplane": 0, "bottle": 1, "train": 2}


def scene(path, *, lead, channel=0, size=(48, 64), seed=0, **options):
    """A photograph of coarse noise, in which one channel leads the others by `lead`, of 255."""
    rng = np.random.default_rng([seed, channel, lead])
    cells = rng.integers(40, 100, (6, 8, 1), dtype=np.uint8).repeat(3, axis=2)
    cells[..., channel] += np.uint8(lead)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(cells).resize((size[1], size[0]), Image.Resampling.NEAREST).save(path, quality=95, **options)
    return str(path)


@pytest.fixture
def mine(toy):
    """The toy data with a classifier of colours and a pool of two folders; gives a function that mines."""
    save_weights(colour_network.Net(n_classes=3), toy.work / CAM_START)
    write_classes(classes_beside(toy.work / CAM_START), CHANNEL_OF)
    for number, (channel, lead) in enumerate([(0, 120), (0, 60), (1, 90), (2, 130), (0, 5), (1, 2)]):
        scene(f"pool/{'ab'[number % 2]}/{number}.jpg", lead=lead, channel=channel, size=(48 + 8 * number, 64))

    def run(**flags):
        flags = {"redo": (), "ood_pool": "pool", "cam_network": "tests.colour_network", **flags}
        flags = {"ood_root": "mined/images", "ood_list": "mined/list.txt", **flags}
        run_sample.run(toy.flags(**switches("mine_ood"), **flags))

    run.toy = toy
    return run


def table(name, folder="result/mined_ood"):
    with Path(folder, name).open(newline="") as file:
        return list(csv.DictReader(file))


def candidates():
    return {row["file"]: (row["class"], float(row["probability"])) for row in table("candidates.csv")}


def left_out():
    return {row["file"]: row["why"] for row in table("left_out.csv")}


def log_text():
    return Path("sample_train_eval.log").read_text()


def expected_probability(path, name):
    """From the formula of the network, at the image's own size."""
    image = normalize(torch.from_numpy(to_chw(read_image(path))))[None]
    leads = colour_network.Leads()(image)[-1].mean(dim=(2, 3))
    logit = colour_network.GAIN * leads[0, CHANNEL_OF[name]] - colour_network.THRESHOLD
    return float(logit.sigmoid())


def test_hard_backgrounds_come_before_easy_ones_with_their_classes(mine):
    mine(ood_hard_score=0.0)
    found = candidates()
    assert list(found)[:4] == ["pool/b/3.jpg", "pool/a/0.jpg", "pool/a/2.jpg", "pool/b/1.jpg"]
    assert [name for name, _ in found.values()][:4] == ["train", "aeroplane", "bottle", "aeroplane"]
    for path, (name, probability) in list(found.items())[:4]:
        assert probability == pytest.approx(expected_probability(path, name), abs=0.01)
    assert {*list(found)[4:]} == {"pool/a/4.jpg", "pool/b/5.jpg"}
    assert max(probability for _, probability in list(found.values())[4:]) < 0.1


def test_a_batch_that_does_not_fit_is_halved(mine, monkeypatch):
    for number in range(4):
        scene(f"pool/c/{number}.jpg", lead=70 + 20 * number, channel=1, size=(64, 64))
    mine(make_cam_batch_size=1, ood_mine_dir="result/one_by_one")
    scored = limit(monkeypatch, colour_network.Net, "forward", len, room=2)
    pictured = limit(monkeypatch, colour_network.CAM, "logit_maps", lambda images: len(images) // 2, room=2)
    mine(make_cam_batch_size=4)
    assert max(scored) == max(pictured) == 4
    assert table("candidates.csv") == table("candidates.csv", "result/one_by_one")
    pictures = [sorted(Path(f"result/{name}/pictures").rglob("*.jpg")) for name in ("one_by_one", "mined_ood")]
    for one, other in zip(*pictures, strict=True):
        assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())
    assert log_text().count("no GPU memory for 4 images at once; going on with 2") == 2


def test_images_below_the_score_are_no_candidates(mine):
    mine()
    assert {*candidates()} == {"pool/b/3.jpg", "pool/a/0.jpg", "pool/a/2.jpg", "pool/b/1.jpg"}
    assert left_out() == dict.fromkeys(("pool/a/4.jpg", "pool/b/5.jpg"), "less probable than 0.5")
    assert "4 images of the pool are hard: the classifier gives a class a probability of at least 0.5" in log_text()
    assert "Nobody has looked at them yet" in log_text()
    page = Path("result/mined_ood/review.html").read_text()
    assert "Nobody has looked at them yet" in page
    assert "Left out of 6 images: 2 (less probable than 0.5)" in page
    assert not Path("mined/list.txt").exists()


def test_what_is_no_candidate_is_left_out_and_named(mine):
    image_id = mine.toy.ids[0]
    os.link(mine.toy.root / f"JPEGImages/{image_id}.jpg", "pool/another_name.jpg")
    with Image.open("pool/a/0.jpg") as image:
        image.resize((50, 40)).save("pool/a/again.jpg", quality=40)
    Path("pool/cut.jpg").write_bytes(Path("pool/a/0.jpg").read_bytes()[:500])
    Path("pool/text.jpg").write_text("no image")
    scene(os.fsdecode(b"pool/\xff.jpg"), lead=100)
    scene("pool/.hidden/x.jpg", lead=100)
    Path("labels.csv").write_text("file,labels\na/2.jpg,cup;Bottle\nb/1.jpg,cup\n")
    mine(ood_pool_labels="labels.csv", ood_per_class=1, ood_hard_score=0.4)
    first, better = candidates()
    why = left_out()
    twins = {"pool/a/0.jpg", "pool/a/again.jpg"}
    assert first == "pool/b/3.jpg"
    assert better in twins
    assert why[(twins - {better}).pop()] == f"nearly {better}"
    assert why["pool/another_name.jpg"] == "training images"
    assert why["pool/a/2.jpg"] == "labelled bottle"
    assert why["pool/b/1.jpg"] == "beyond the 1 strongest of their class"
    assert why["pool/\\udcff.jpg"] == "names that no list can hold"
    assert all("can't be read" in why[f"pool/{name}.jpg"] for name in ("cut", "text"))
    assert not any("hidden" in path for path in why)
    assert "notice: 2 images of the pool can't be read: pool/cut.jpg, pool/text.jpg" in log_text()
    assert "no label of --ood_pool_labels names the classes aeroplane, train" in log_text()


def test_the_plan_tells_what_would_be_done_and_does_nothing(mine):
    mine(plan=True)
    assert "mine_ood  runs: it has not been done here yet" in log_text()
    assert not any(Path("result/mined_ood").iterdir())


def test_a_pool_of_nothing_hard_says_so(mine):
    scene("pool/none/x.jpg", lead=0)
    mine(ood_pool="pool/none")
    assert candidates() == {}
    assert "0 images of the pool are hard" in log_text()
    assert "Lower --ood_hard_score" in Path("result/mined_ood/review.html").read_text()


@pytest.mark.parametrize("kind", ["unreadable", "training"])
def test_a_pool_of_which_no_image_can_be_scored_says_so(mine, kind):
    Path("pool/none").mkdir()
    if kind == "unreadable":
        Path("pool/none/x.jpg").write_text("no image")
    else:
        os.link(mine.toy.root / f"JPEGImages/{mine.toy.ids[0]}.jpg", "pool/none/x.jpg")
    mine(ood_pool="pool/none")
    assert candidates() == {}
    assert [*left_out()] == ["pool/none/x.jpg"]
    assert "0 images of the pool are hard" in log_text()
    assert Path("result/mined_ood/scores.jsonl").read_bytes() == b""
    mine(ood_pool="pool/none")
    assert "mine_ood is done, since" in log_text()


@pytest.fixture
def scored(monkeypatch):
    """The shapes of the batches that were scored."""
    shapes = []

    def watched(model, images):
        shapes.append(tuple(images.shape))
        return class_probabilities(model, images)

    monkeypatch.setattr("voc12.scoring.class_probabilities", watched)
    return shapes


def n_scored(shapes):
    return sum(shape[0] for shape in shapes)


def test_scores_are_kept_and_only_what_is_new_or_changed_is_scored(mine, scored):
    mine()
    assert n_scored(scored) == 6
    before = Path("result/mined_ood/candidates.csv").read_bytes()
    mine()
    assert "mine_ood is done" in log_text()
    mine(ood_hard_score=0.3, ood_per_class=2)
    Path("pool").rename("moved")
    mine(ood_pool="moved")
    assert Path("result/mined_ood/candidates.csv").read_bytes() == before.replace(b"pool/", b"moved/")
    assert n_scored(scored) == 6
    scene("moved/a/new.jpg", lead=140, seed=9)
    scene("moved/a/4.jpg", lead=150, channel=1)
    mine(ood_pool="moved")
    assert n_scored(scored) == 8
    assert {"moved/a/new.jpg", "moved/a/4.jpg"} <= candidates().keys()
    mine(ood_pool="moved", redo="mine_ood")
    assert n_scored(scored) == 8 + 7


def test_a_run_that_was_killed_goes_on(mine, scored, monkeypatch):
    def killed(model, images):
        if scored:
            raise KeyboardInterrupt
        scored.append(tuple(images.shape))
        return class_probabilities(model, images)

    with monkeypatch.context() as patch:
        patch.setattr("voc12.scoring.class_probabilities", killed)
        with pytest.raises(KeyboardInterrupt):
            mine()
    n_before = n_scored(scored)
    assert 1 <= n_before < 6
    with Path("result/mined_ood/scores.jsonl").open("a") as file:
        file.write('{"file": "pool/')  # half a line
    mine()
    assert n_scored(scored) == 6
    assert "of 6 images are scored already" in log_text()
    assert len(candidates()) == 4


@pytest.mark.parametrize(
    "change",
    [{"name": "horse"}, {"probability": 2.0}, {"hash": "00"}, {"hash": "zz" * 192}, {"size": "x"}, {"made_with": "0"}],
    ids=lambda change: str(change)[:30],
)
def test_lines_of_the_record_that_are_not_sound_count_for_nothing(mine, scored, change):
    mine()
    before = candidates()
    record = Path("result/mined_ood/scores.jsonl")
    lines = [json.dumps({**json.loads(line), **change}) for line in record.read_text().splitlines()]
    record.write_text("\n".join(lines))
    mine()
    assert n_scored(scored) == 12
    assert candidates() == before


def test_other_weights_score_anew(mine, scored):
    mine()
    network = colour_network.Net(n_classes=3)
    with torch.no_grad():
        network.classifier.weight *= 0.5
    save_weights(network, CAM_START)
    mine()
    assert n_scored(scored) == 12


def write_review(decisions, path="ood_review.csv"):
    rows = [f"{file},{int(shows)}" for file, shows in decisions.items()]
    Path(path).write_text("\n".join(["file,shows_object", *rows]) + "\n")


def test_a_review_becomes_ood_data_that_train_cam_reads(mine):
    mine()
    keys = list(candidates())
    write_review({keys[0]: False, keys[1]: True, keys[2]: False})
    mine(ood_review="ood_review.csv")
    assert Path("mined/list.txt").read_text().splitlines() == [Path(keys[0]).name, Path(keys[2]).name]
    paths = read_ood_paths("mined/images", "mined/list.txt")
    for path, source in zip(paths, (keys[0], keys[2]), strict=True):
        assert path.samefile(source)
    assert (
        "People have looked at 3, and marked 1 that show an object and are left out. Nobody has looked at 1"
        in log_text()
    )
    write_review({keys[0]: False, keys[2]: False, keys[3]: False})
    mine(ood_review="ood_review.csv")
    assert len(read_ood_paths("mined/images", "mined/list.txt")) == 3
    flags = {"ood_root": "mined/images", "ood_list": "mined/list.txt", "cam_network": "tests.colour_network"}
    flags |= {"cluster_K": 3, "cam_select": "last", "cam_learning_rate": 1e-6}
    Path("sess").mkdir(exist_ok=True)
    args = parse_config(mine.toy.flags(**switches("train_cam"), **flags))
    assert len(read_ood_paths(args.ood_root, args.ood_list)) == args.cluster_K


def test_ood_images_are_placed_where_the_flag_says_now_and_anew_where_they_are_gone(mine):
    mine()
    write_review(dict.fromkeys(candidates(), False))
    mine(ood_review="ood_review.csv")
    for root in ("elsewhere/images", "mined/images"):
        mine(ood_review="ood_review.csv", ood_root=root)
        assert len(read_ood_paths(root, "mined/list.txt")) == len(candidates())
    gone = read_ood_paths("mined/images", "mined/list.txt")[0]
    gone.unlink()
    mine(ood_review="ood_review.csv")
    assert gone.is_file()


def test_names_that_lists_or_folders_cannot_hold_twice_are_changed(mine):
    scene("pool/b/0.jpg", lead=140, channel=1)
    scene("pool/b/back\\slash.jpg", lead=141, channel=2, seed=1)
    scene(f"pool/b/{'n' * 240}.jpg", lead=143, channel=1, seed=3)
    scene(f"mined/images/{'n' * 240}.jpg", lead=0)  # somebody's own
    scene("pool/b/turned.jpg", lead=142, channel=2, seed=2, exif=_orientation(3))
    scene("mined/images/2.jpg", lead=0)  # somebody's own
    own = Path("mined/images/2.jpg").read_bytes()
    mine()
    write_review(dict.fromkeys(candidates(), False))
    for _ in range(2):
        mine(ood_review="ood_review.csv", redo="mine_ood")
        paths = read_ood_paths("mined/images", "mined/list.txt")
        assert len({str(path).lower() for path in paths}) == len(candidates()) == 8
        assert len(list(Path("mined/images").iterdir())) == 10
    assert Path("mined/images/2.jpg").read_bytes() == own
    (turned,) = (path for path in paths if path.name.startswith("turned_"))
    stored = read_image("pool/b/turned.jpg")
    assert np.abs(read_image(turned).astype(int) - stored[::-1, ::-1]).mean() < 3


def _orientation(value):
    exif = Image.Exif()
    exif[274] = value
    return exif


def test_links_that_a_disk_refuses_become_copies(mine, monkeypatch):
    def refuse(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("voc12.ood_data.os.link", refuse)
    mine()
    write_review(dict.fromkeys(candidates(), False))
    mine(ood_review="ood_review.csv")
    for path, source in zip(read_ood_paths("mined/images", "mined/list.txt"), candidates(), strict=True):
        assert path.read_bytes() == Path(source).read_bytes()
        assert not path.samefile(source)


WRONG = {
    "no pool": ({"ood_pool": ()}, "mine_ood needs --ood_pool; expected one or more folders"),
    "missing": ({"ood_pool": ("pool", "none")}, "--ood_pool none is missing; expected a folder of images"),
    "file": ({"ood_pool": "pool/a/0.jpg"}, "--ood_pool pool/a/0.jpg is a file; expected a folder of images"),
    "empty": ({"ood_pool": "empty"}, "--ood_pool empty has no images; expected files .jpg, "),
    "labels missing": ({"ood_pool_labels": "none.csv"}, "--ood_pool_labels: none.csv is missing; expected a CSV"),
    "labels a folder": ({"ood_pool_labels": "pool"}, r"--ood_pool_labels: pool can't be read \(.*Is a directory"),
    "labels no text": ({"ood_pool_labels": "pool/a/0.jpg"}, "--ood_pool_labels: pool/a/0.jpg can't be read"),
    "labels empty": ({"ood_pool_labels": "blank"}, "--ood_pool_labels: blank has no rows below its header"),
    "labels columns": ({"ood_pool_labels": "other.csv"}, "--ood_pool_labels: other.csv has the columns x, y; expected"),
    "labels of others": (
        {"ood_pool_labels": "labels.csv"},
        "labels.csv name none of the 6 images of --ood_pool, such as",
    ),
    "names missing": ({"ood_label_names": "none.csv"}, "--ood_label_names: none.csv is missing"),
    "names of one column": ({"ood_label_names": "one.csv"}, "--ood_label_names: one.csv has a line of one column"),
    "review missing": ({"ood_review": "none.csv"}, "--ood_review: none.csv is missing"),
    "review columns": ({"ood_review": "other.csv"}, "--ood_review: other.csv lacks the column file or shows_object"),
    "review decision": ({"ood_review": "maybe.csv"}, "--ood_review: maybe.csv says 'maybe' of a.jpg; expected"),
    "review of others": (
        {"ood_review": "others.csv"},
        "no image is left for --ood_list, since it has none of the cand",
    ),
    "review of objects": ({"ood_review": "objects.csv"}, "no image is left .* since all of its images show an object"),
    "another's list": (
        {"ood_review": "sound.csv", "ood_list": "own.txt"},
        "--ood_list own.txt is there, and mine_ood has not made it; name another place",
    ),
    "list a folder": (
        {"ood_review": "sound.csv", "ood_list": "pool"},
        "--ood_list pool is a folder; expected the name",
    ),
    "folder a file": ({"ood_review": "sound.csv", "ood_root": "own.txt"}, "--ood_root: can't write into own.txt"),
    "mining folder a file": ({"ood_mine_dir": "own.txt"}, "--ood_mine_dir: can't write into own.txt"),
    "score": ({"ood_hard_score": 1.5}, "--ood_hard_score must be between 0 and 1, got 1.5"),
    "per class": ({"ood_per_class": 0}, "--ood_per_class must be at least 1, got 0"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_told_in_a_sentence(mine, kind):
    flags, sentence = WRONG[kind]
    Path("empty/.hidden").mkdir(parents=True)
    scene("empty/.hidden/x.jpg", lead=100)
    Path("blank").write_text("\n")
    Path("other.csv").write_text("x,y\n1,2\n")
    Path("one.csv").write_text("a\n")
    Path("labels.csv").write_text("file,labels\nx.jpg,bottle\n")
    Path("maybe.csv").write_text("file,shows_object\na.jpg,maybe\n")
    Path("others.csv").write_text("file,shows_object\na.jpg,0\n")
    Path("objects.csv").write_text("file;shows_object\npool/a/0.jpg;1\n")
    Path("sound.csv").write_text("file,shows_object\npool/a/0.jpg,0\n")
    Path("own.txt").write_text("a.jpg\n")
    with pytest.raises(InputError, match=sentence) as caught:
        mine(**flags)
    assert "\n" not in str(caught.value)
    assert Path("own.txt").read_text() == "a.jpg\n"


def test_a_network_that_gives_no_numbers_is_told(mine, monkeypatch):
    sound = colour_network.Net.forward
    monkeypatch.setattr(colour_network.Net, "forward", lambda self, x: (sound(self, x)[0] * torch.inf, x.mean((2, 3))))
    with pytest.raises(InputError, match="--cam_init_weights_name: the network gives NaN or infinity for pool/"):
        mine()


def test_a_class_list_of_another_order_is_told(mine):
    (mine.toy.root / "classes.txt").write_text("bottle\naeroplane\ntrain\n")
    with pytest.raises(InputError, match="was trained on other classes"):
        mine()


def test_what_mining_writes_is_no_part_of_a_pool_around_it(mine):
    mine(ood_pool=".", ood_hard_score=0.0)
    n_first = len(candidates()) + len(left_out())
    write_review(dict.fromkeys(candidates(), False))
    mine(ood_pool=".", ood_hard_score=0.0, ood_review="ood_review.csv")
    mine(ood_pool=".", ood_hard_score=0.0, ood_review="ood_review.csv", redo="mine_ood")
    assert len(candidates()) + len(left_out()) == n_first


OPEN_IMAGES = """ImageID,Source,LabelName,Confidence
0,verification,/m/bottle,1
1,verification,/m/plane,1
2,verification,/m/plane,0
3,verification,/m/cup,1
"""


def test_labels_of_open_images_count_by_their_names_and_confidence(mine):
    Path("labels.csv").write_text(OPEN_IMAGES)
    Path("names.csv").write_text("/m/bottle,Bottle\n/m/cup,Cup\n/m/plane,Airplane\nAirplane,aeroplane\n")
    mine(ood_pool_labels="labels.csv", ood_label_names="names.csv", ood_hard_score=0.0)
    labelled = {path: why for path, why in left_out().items() if why.startswith("labelled")}
    assert labelled == {"pool/a/0.jpg": "labelled bottle", "pool/b/1.jpg": "labelled aeroplane"}
    assert "no label of --ood_pool_labels names the classes train" in log_text()


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("2.jpg,bottle", True),
        ("2,BOTTLE", True),
        ("a/2.jpg,cup|bottle", True),
        (r".\a\2.jpg,bottle", True),
        ("pool/a/2.jpg,bottle", True),
        ("b/2.jpg,bottle", False),
        ("2.png,bottle", False),
        ("2.jpg,bottles", False),
        ("2.jpg,", False),
    ],
)
def test_an_image_is_found_in_a_table_by_its_path_or_name(mine, row, found):
    Path("labels.csv").write_text(f"\ufefffile,labels\n{row}\nx,train\n0.jpg,cup\n")
    mine(ood_pool_labels="labels.csv")
    assert ("pool/a/2.jpg" not in candidates()) == found


def test_images_come_in_few_sizes_and_are_never_enlarged_or_distorted_by_more_than_half_a_cell():
    rng = np.random.default_rng(0)
    sizes = [tuple(map(int, size)) for size in rng.integers(40, 5000, (2000, 2))]
    found = {scoring_size(size, 500) for size in sizes if max(size) >= 500}
    assert len(found) <= 2 * 500 // 16
    for size in sizes:
        scaled = scoring_size(size, 500)
        factor = min(1, 500 / max(size))
        assert all(side % 16 == 0 for side in scaled)
        assert all(abs(side * factor - own) <= 8 or own == 16 for side, own in zip(size, scaled, strict=True))
    assert scoring_size((480, 320), 500) == (480, 320)
    assert scoring_size((5, 900), 500) == (16, 496)


def test_batches_hold_equal_sizes_and_fill_before_the_end():
    shapes = [(3, 16, 32), (3, 32, 16), (3, 16, 32), (3, 512, 1024), (3, 16, 32), (3, 16, 32)]
    items = [{"image": torch.zeros(shape), "index": number} for number, shape in enumerate(shapes)]
    batches = [[item["index"] for item in batch] for batch in by_size(items, 3)]
    assert batches == [[3], [0, 2, 4], [1], [5]]


def test_equal_probabilities_keep_the_order_and_classes_are_capped():
    hashes = (np.arange(5)[:, None] * 40 * np.ones(192)).astype(np.uint8)
    found = rank(np.array([0.7, 0.9, 0.7, 0.9, 0.2]), [0, 1, 1, 1, 0], hashes, hard_score=0.5, per_class=2)
    assert (found.candidates, found.surplus, found.n_hard) == ([1, 3, 0], [2], 4)
    same = rank(np.array([0.7, 0.9, 0.8]), [0, 0, 0], hashes[[0, 0, 1]], hard_score=0, per_class=9)
    assert (same.candidates, same.duplicates) == ([1, 2], {0: 1})


def test_photographs_that_were_saved_again_are_near_and_others_are_not(voc_subset, tmp_path):
    hashes, again = [], []
    for path in sorted((voc_subset / "OoD_images").iterdir())[::3]:
        with Image.open(path) as image:
            image = image.convert("RGB")
        hashes.append(perceptual_hash(np.asarray(image)))
        image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(tmp_path / "x.jpg", quality=60)
        again.append(perceptual_hash(read_image(tmp_path / "x.jpg")))
    hashes = np.array(hashes).astype(int)
    assert np.abs(hashes - np.array(again)).mean(axis=1).max() < NEAR / 2
    apart = np.abs(hashes[:, None] - hashes[None]).mean(axis=2)[np.triu_indices(len(hashes), 1)]
    assert apart.min() > 2 * NEAR


def test_decisions_may_be_separated_and_spelled_as_spreadsheets_do(tmp_path):
    path = tmp_path / "review.csv"
    path.write_text('\ufeffFile;Class;Shows_Object\n"a;b.jpg";cat;TRUE\nc.jpg;dog;0\n\n', encoding="utf-8")
    assert read_review(str(path)) == {"a;b.jpg": True, "c.jpg": False}


def test_the_benchmark_reviews_by_place_and_trains_with_each_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"n_train": 8, "n_val": 3, "n_ood": 6, "long_side": 96}
    tiny = {"cam_network": "tests.own_network", "imagenet_weights": "none", "cam_batch_size": 4, "cam_num_epoches": 1}
    tiny |= {"cam_crop_size": 64, "cam_resize_long": (64, 96), "cam_learning_rate": 0.001, "cam_scales": (1.0,)}
    tiny |= {"ood_batch_size": 2, "cluster_K": 2, "ood_long_side": 96, "ood_hard_score": 0.0, "num_workers": 0}
    flags = to_arguments({**tiny, "device": "cpu"})
    lines = bench_mining.sample(tmp_path / "bench", seeds=[0], flags=flags, data=data)
    assert [line.count("|") for line in lines] == [9] * 4
    shown, marked, images, *scores = (float(cell) for cell in lines[2].strip("| ").split(" | ")[1:])
    of_seed = tmp_path / "bench/seed0"
    names = (of_seed / "mined/list.txt").read_text().split()
    assert (shown, marked, images) == (len(names) + 3, 3, len(names))
    assert all(name.split("_")[0] != "2099" for name in names)
    assert all(0 <= score <= 100 for score in scores[:3])
    assert scores[3] == pytest.approx(scores[2] - scores[1], abs=0.11)
    lines = bench_mining.sizes(tmp_path / "bench", seeds=[0], flags=flags)
    assert lines[0].startswith("9 images of ")
    assert len(lines) == 7


@pytest.mark.slow
def test_on_the_built_in_sample_backgrounds_of_the_classes_come_before_plain_scenes(tmp_path, monkeypatch):
    """The classifier that the sample trains takes most of its classes' backgrounds for a class, and noise for none."""
    monkeypatch.chdir(tmp_path)
    sample.ensure("sample", workers=1, n_ood=80)
    (line,) = (line for name, line in sample_runs("sample", []) if name == bench_mining.CLASSIFIER_RUN)
    config = parse_config(line)
    bench_mining.run(config, "train_classifier", folder=tmp_path)
    for number in range(40):
        scene(f"pool/plain/{number}.jpg", lead=0, channel=number % 3, size=(216, 288), seed=number)
    Path("sample/OoD_images").rename("pool/scenes")
    pool = dataclasses.replace(config, ood_pool=("pool",), ood_hard_score=0.0, ood_per_class=1000)
    bench_mining.run(pool, "mine_ood", folder=tmp_path)
    scores = [json.loads(line) for line in Path("result/mined_ood/scores.jsonl").read_text().splitlines()]
    hard, plain = (
        np.array([score["probability"] for score in scores if score["file"].startswith(f"pool/{kind}/")])
        for kind in ("scenes", "plain")
    )
    assert (len(hard), len(plain)) == (80, 40)
    default = parse_config([]).ood_hard_score
    assert (hard >= default).mean() > 0.75
    assert (plain >= default).mean() < 0.1
    assert np.median(hard) > plain.max()
