"""Whatever has happened in a folder, the chain gives there what it gives in an empty one (docs/reliability.md)."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import NO_STEPS, RATES_THAT_SHOW, TOY_CLASSES, make_toy_data

from misc.errors import InputError
from tests.test_going_on import CHAIN, FLAGS, STEPS, TRAININGS, counting, outputs

N_HISTORIES = int(os.environ.get("WOOD_HISTORIES", "3"))
N_EVENTS = 30
SETTINGS = {
    "seed": (0, 1),
    "train_list": ("six", "four", "seven"),
    "infer_list": ("six", "four", "seven"),
    "chainer_eval_set": ("train", "few"),
    "deeplab_eval_set": ("val", "few"),
    "cam_num_epoches": (1, 2),
    "cam_select": ("best_miou", "last"),
    "cam_scales": ((1.0, 0.5), (1.0,), (1.0, 1.5)),
    "cam_eval_sweep": ((0.08, 0.1), (0.3, 0.4, 0.5)),
    "cam_files": ("float32", "float16"),
    "cam_weights_name": ("sess/res50_cam_ood.pth", "sess/other.pth"),
    "cam_out_dir": ("result/cam_ood", "result/other"),
    "labels_from": ("file", "classifier"),
    "label_threshold": (0.5, 0.3),
    "ood_coeff": (0.25, 0.0, 1.0),
    "cluster_K": (3, 2),
    "distance_lambda": (0.007, 0.0),
    "adv_iter": (2, 3),
    "masks_from": ("cam", "advcam"),
    "conf_fg_thres": (0.3, 0.5),
    "irn_num_epoches": (1, 2),
    "irn_weights_name": ("sess/res50_irn_ood.pth", "sess/other_irn.pth"),
    "keep_irn": (False, True),
    "beta": (10, 2),
    "np_power": (1.0, 1.5),
    "sem_seg_bg_thres": (0.25, 0.1, 0.6),
    "ins_seg_bg_thres": (0.25, 0.1),
    "cocoann_format": ("polygon", "rle"),
    "deeplab_max_iter": (3, 5),
    "deeplab_loss": ("balanced", "plain"),
    "deeplab_crf": (True, False),
}


def _compared(content):
    """Without the line of a score on where its files lay: files that were moved are the same, and so is their score."""
    return content and b"\n".join(line for line in content.split(b"\n") if not line.startswith(b' "folder"'))


class History:
    """A working folder, what happens in it, drawn at random, and a run in an empty folder to compare with."""

    def __init__(self, folder, seed, patch):
        self.rng, self.patch, self.folder = random.Random(seed), patch, folder
        self.toy, self.settings, self.events, self.n_compared = make_toy_data(folder), {}, [], 0
        sets, ids = self.toy.root / "ImageSets/Segmentation", self.toy.ids
        self.lists = {"six": folder / "six.txt", "four": folder / "four.txt", "seven": folder / "seven.txt"}
        for path, some in zip(self.lists.values(), (ids[:6], ids[1:5], ids[:7]), strict=True):
            path.write_text("".join(f"{image_id}\n" for image_id in some))
        (sets / "few.txt").write_text("".join(f"{image_id}\n" for image_id in ids[1:4]))

    def run(self, folder, *, kill_at=None, **switches):
        """What a run in a folder says, beginning with `done`, `refused` or `killed`."""
        self.patch.chdir(folder)
        settings = {name: self.lists.get(value, value) for name, value in self.settings.items()}
        flags = {**NO_STEPS, **CHAIN, **FLAGS, **RATES_THAT_SHOW, "make_report_pass": False, **settings, **switches}
        with pytest.MonkeyPatch.context() as patch, counting(self.toy, patch) as chain:
            chain.kill_at = kill_at
            try:
                chain.run(**flags)
            except InputError as error:
                return f"refused: {error}"
            return "killed" if chain.work[kill_at] else "done"

    def setting(self):
        name = self.rng.choice([*SETTINGS])
        self.settings[name] = self.rng.choice(SETTINGS[name])
        return f"--{name} {self.settings[name]}"

    def image(self):
        path = self.rng.choice([*self.toy.root.glob("JPEGImages/*"), *self.toy.ood_root.iterdir()])
        with Image.open(path) as image:
            width, height = image.size
        pixels = np.random.default_rng(self.rng.randrange(2**30)).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return f"other pixels in {path.name}"

    def mask(self):
        path = self.rng.choice([*self.toy.root.glob("Segmentation*/*.png")])
        mask = np.array(Image.open(path))
        mask[:5] = mask[mask.shape[0] // 2, mask.shape[1] // 2]
        Image.fromarray(mask).save(path)
        return f"another mask {path.parent.name}/{path.name}"

    def label(self):
        path = self.rng.choice([*self.toy.root.glob("Annotations/*")])
        names = self.rng.sample(TOY_CLASSES, self.rng.choice([1, 2]))
        entries = "".join(f"<object><name>{name}</name></object>" for name in names)
        path.write_text(f"<annotation>{entries}</annotation>")
        return f"{path.name}: {names}"

    def shorter_list(self):
        path = self.rng.choice([self.toy.ood_list, *self.lists.values()])
        lines = path.read_text().split()
        path.write_text("".join(f"{line}\n" for line in lines if len(lines) < 5 or self.rng.random() < 0.8))
        return f"fewer lines in {path.name}"

    def damage(self):
        files = [path for part in ("result", "sess") for path in (self.toy.work / part).rglob("*") if path.is_file()]
        if not files:
            return "nothing to damage"
        path = self.rng.choice(files)
        how = self.rng.choice(("removed", "cut", "replaced", "changed"))
        content = bytearray(path.read_bytes())
        if how == "removed":
            path.unlink()
        elif how == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif how == "replaced":
            path.write_bytes(self.rng.choice([p for p in files if p.suffix == path.suffix]).read_bytes())
        elif content:
            content[self.rng.randrange(len(content))] ^= 1
            path.write_bytes(content)
        return f"{how}: {path.relative_to(self.toy.work)}"

    def some_steps(self):
        switches = {f"{name}_pass": self.rng.random() < 0.7 for name in STEPS if name != "make_report"}
        off = [name for name, on in switches.items() if not on]
        return f"without {off}: {self.run(self.toy.work, **switches)}"

    def kill(self):
        places = [("step", name) for name in STEPS] + [("training", name, 2) for name in TRAININGS]
        place = self.rng.choice(places)
        return f"{self.run(self.toy.work, kill_at=place)} at {place}"

    def whole(self):
        """A whole run, which is compared."""
        empty = self.folder / f"empty{len(self.events)}"
        empty.mkdir()
        expected_said, expected, checkpoints = self.run(empty), outputs(), sorted(Path("sess").glob("*.pth"))
        said = self.run(self.toy.work)
        assert said.split(":")[0] == expected_said.split(":")[0], (said, expected_said, self.events)
        if said == "done":
            given = outputs(checkpoints)  # others may be damaged ones, which the run had no use for
            others = [name for name, content in expected.items() if _compared(given.get(name)) != _compared(content)]
            assert others == [], self.events
            self.n_compared += 1
        return f"whole: {said}"

    def happen(self):
        kinds = [self.setting] * 4 + [self.image, self.mask, self.label, self.shorter_list]
        kinds += [self.damage] * 2 + [self.some_steps, self.kill, self.whole, self.whole]
        self.events.append(self.rng.choice(kinds)())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(N_HISTORIES))
def test_a_whole_run_gives_what_it_gives_in_an_empty_folder(seed, tmp_path, monkeypatch, capsys):
    history = History(tmp_path, seed, monkeypatch)
    for _ in range(N_EVENTS):
        history.happen()
    history.whole()
    with capsys.disabled():
        print(f"\nhistory {seed}: {len(history.events)} events, {history.n_compared} whole runs compared")
