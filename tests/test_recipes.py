"""Recipes: which one runs, what it sets, what it decides by the files that are there, and what it says about that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import NO_STEPS

import run_sample
from misc.errors import InputError
from misc.files.atomic import write_json
from misc.files.devkitfiles import IMPORT_RECORD
from misc.run.config import Config, changed_flags, enabled_steps, parse_config, to_arguments
from misc.run.recipes import DEEPLAB_START, RECIPES

ROOT = Path(__file__).resolve().parent.parent
CAM_CHAIN = {
    *("train_classifier", "train_cam", "make_cam", "eval_cam", "cam_to_ir_label", "eval_ir_label", "train_irn"),
    *("make_sem_seg", "eval_sem_seg", "make_report"),
}
ADVCAM = {"make_advcam", "eval_advcam"}
DEEPLAB = {"train_deeplab", "eval_deeplab"}
SMALL_CHAIN = (CAM_CHAIN | DEEPLAB | {"make_ins_seg", "eval_ins_seg"}) - {"train_classifier"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def voc():
    Path("Data/VOCdevkit/VOC2012/JPEGImages").mkdir(parents=True)


def explained(*flags):
    """The configuration, and what the user is told."""
    sentences = []
    config = parse_config(flags, explain=sentences.append)
    return config, sentences


def steps(*flags):
    return set(enabled_steps(parse_config(flags)))


def touch(path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch()


def test_without_a_recipe_everything_is_as_in_the_original():
    assert parse_config([]) == Config()
    assert parse_config([]).recipe == "original"


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_made_of_flags(name):
    recipe = RECIPES[name]
    types = {flag: type(value) for flag, value in vars(Config()).items()}
    for flag, value in recipe.flags.items():
        assert isinstance(value, types[flag]) or (types[flag], type(value)) == (float, int), flag
    assert recipe.source
    assert name in (ROOT / "docs/recipes.md").read_text()
    assert parse_config(["--recipe", name]).recipe == name


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    sentence = "--recipe smal is unknown; the recipes are original, authors, cam, sample, small, and auto chooses one."
    with pytest.raises(InputError) as caught:
        parse_config(["--recipe", "smal"])
    assert str(caught.value) == sentence


def test_the_authors_chain():
    config = parse_config(["--recipe", "authors"])
    assert set(enabled_steps(config)) == CAM_CHAIN | ADVCAM
    assert config.train_list == config.infer_list == "voc12/train_aug.txt"
    assert (config.chainer_eval_set, config.np_power, config.sem_seg_bg_thres) == ("train", 1.5, 0.22)
    assert config.mask_cams.folder == "result/cam_ood_advcam"


@pytest.mark.parametrize("flags", [["--recipe", "cam"], ["--recipe", "auto", "--masks_from=cam", "--sample=no"]])
def test_the_chain_from_plain_cams(flags):
    config = parse_config(flags)
    assert config.recipe == "cam"
    assert set(enabled_steps(config)) == CAM_CHAIN
    assert (config.np_power, config.sem_seg_bg_thres) == (1.0, 0.25)
    assert config.mask_cams.folder == "result/cam_ood"


def test_flags_replace_those_of_a_recipe():
    flags = ["--np_power", "2", "--train_list", "mine.txt", "--train_classifier_pass", "no", "--recipe", "authors"]
    config = parse_config(flags)
    assert (config.np_power, config.sem_seg_bg_thres, config.train_list) == (2, 0.22, "mine.txt")
    assert not config.train_classifier_pass


@pytest.mark.parametrize("name", ["res50_cam_orig.pth", "res50_cam_orig.pth.pth", "res50_cam_orig"])
def test_the_classifier_is_trained_only_if_there_is_none(name):
    assert "train_classifier" in steps("--recipe", "cam")
    touch(f"sess/{name}")
    assert "train_classifier" not in steps("--recipe", "cam")
    assert "train_classifier" in steps("--recipe", "cam", "--cam_init_weights_name", "other.pth")


@pytest.mark.parametrize("recipe", ["cam", "small"])
def test_a_classifier_that_was_trained_here_is_kept_up_to_date(toy, recipe):
    given = ["--recipe", recipe, "--cam_init_weights_name", "sess/own.pth"]
    run_sample.run(toy.flags(**NO_STEPS | {"train_classifier_pass": True, "cam_init_weights_name": "sess/own.pth"}))
    record = Path("result/steps/train_classifier.json")
    assert parse_config(given).train_classifier_pass
    assert not parse_config([*given, "--result_dir", "other"]).train_classifier_pass
    touch("sess/foreign.pth")
    assert not parse_config([*given[:-1], "sess/foreign.pth"]).train_classifier_pass

    finished = json.loads(record.read_text())
    write_json(record, {**finished, "finished": None})  # interrupted while it makes another one
    assert parse_config(given).train_classifier_pass
    first_ever = {key: value for key, value in finished.items() if key != "outputs"} | {"finished": None}
    for damaged in ({}, {**finished, "outputs": []}, {**finished, "outputs": {"look": 3}}, first_ever):
        write_json(record, damaged)
        assert not parse_config(given).train_classifier_pass
    write_json(record, finished)
    Path("sess/own.pth").write_bytes(b"from elsewhere")
    assert not parse_config(given).train_classifier_pass


def test_a_step_to_be_done_again_that_is_not_among_the_steps_is_told():
    _, sentences = explained("--redo", "make_cam", "train_irn")
    assert sentences == [
        "notice: --redo train_irn: it is not among the steps of this run, and is not done again; add --train_irn_pass "
        "True, where it is meant to run."
    ]
    assert explained("--redo", "all", "make_cam")[1] == []
    assert not any("--redo" in sentence for sentence in explained("--sample", "True", "--redo", "train_irn")[1])


@pytest.mark.parametrize(
    "flags", [["--deeplab_network", "net.resnet101_deeplab"], ["--deeplab_init_weights=x"], [], None]
)
def test_deeplab_runs_where_it_has_a_start(flags):
    if flags == []:
        touch(DEEPLAB_START)
    config, sentences = explained("--recipe", "authors", *(flags or []))
    if flags is None:
        assert not DEEPLAB & set(enabled_steps(config))
        assert sentences == [
            f"DeepLab-v2 is left out: its start {DEEPLAB_START} is not there (sess/README.md). Torchvision's weights "
            "will do with --deeplab_network net.resnet101_deeplab."
        ]
    else:
        assert enabled_steps(config)[-3:] == ["train_deeplab", "eval_deeplab", "make_report"]
        assert sentences == []


@pytest.mark.parametrize("recipe", ["authors", "cam"])
def test_deeplabs_batch_has_an_image_for_each_process(recipe, monkeypatch):
    """The same ten images a step, in one batch where two of five could not be shared."""
    touch(DEEPLAB_START)
    for n_processes, batches in ((None, (5, 2)), (5, (5, 2)), (6, (10, 1)), (10, (10, 1)), (11, (5, 2))):
        monkeypatch.setenv("WORLD_SIZE", str(n_processes or 1))
        config, sentences = explained("--recipe", recipe)
        assert (config.deeplab_batch_size, config.deeplab_iter_size) == batches
        assert len(sentences) == (batches == (10, 1))
    monkeypatch.setenv("WORLD_SIZE", "8")
    config, sentences = explained("--recipe", recipe, "--deeplab_iter_size", "4")
    assert (config.deeplab_batch_size, config.deeplab_iter_size, sentences) == (5, 4, [])
    _, sentences = explained("--recipe", recipe)
    assert sentences == [
        "DeepLab takes the 10 images of a step as one batch, in place of 2 batches of 5, so that each of the 8 "
        "processes has a share; with other numbers of processes pass --deeplab_batch_size 10 --deeplab_iter_size 1, or "
        "it is trained anew."
    ]


def test_auto_runs_the_sample_where_voc_is_missing_and_says_so():
    config, sentences = explained("--recipe", "auto", "--seed", "3")
    assert (config.recipe, config.sample, config.seed) == ("sample", True, 3)
    assert sentences == [
        "VOC 2012 is not at Data/VOCdevkit/VOC2012: this runs the built-in sample instead (generated pictures, ten to "
        "sixty minutes).",
        "To run VOC 2012, put it there (Data/README.md) or pass --voc12_root FOLDER.",
    ]
    for data in ("VOC2012", "sample"):
        Path(f"Data/{data}/JPEGImages").mkdir(parents=True)
    _, (*_, hint) = explained("--recipe", "auto")
    assert hint == "There is a data set in Data/VOC2012: did you mean --voc12_root Data/VOC2012?"


def test_auto_runs_voc_where_it_is(voc):
    config, sentences = explained("--recipe", "auto")
    assert (config.recipe, config.sample) == ("authors", False)
    assert not any("sample" in sentence for sentence in sentences)
    assert parse_config(["--recipe", "auto", "--sample", "True"]).recipe == "sample"


@pytest.mark.parametrize("flags", [["--voc12_root", "/nowhere"], ["--sample", "False"]])
def test_auto_runs_the_sample_neither_for_a_named_folder_nor_against_the_users_word(flags):
    assert parse_config(["--recipe", "auto", *flags]).recipe == "authors"


def test_the_sample_and_its_recipe_are_one():
    assert parse_config(["--sample", "True"]) == parse_config(["--recipe", "sample"])
    for name, sample in (("cam", True), ("sample", False)):
        with pytest.raises(InputError, match=f"--recipe {name} and --sample {sample} contradict each other"):
            parse_config(["--recipe", name, "--sample", str(sample)])


def test_prediction_joins_a_recipes_steps():
    assert steps("--recipe", "cam", "--predict_pass", "True") == CAM_CHAIN | {"predict"}


@pytest.fixture
def photographs():
    """Ten photographs and six OoD images, with no masks."""
    splits = Path("mine/ImageSets/Segmentation")
    splits.mkdir(parents=True)
    (splits / "train.txt").write_text("".join(f"{k}\n" for k in range(10)))
    Path("mine/OoD_images").mkdir()
    Path("mine/ood_list.txt").write_text("a.jpg\nb.jpg\n\nc.jpg\nc.jpg\nd.jpg\ne.jpg\nf.jpg\n")
    return ["--recipe", "small", "--voc12_root", "mine"]


def test_small_fits_batches_clusters_and_epochs_to_the_images(photographs):
    config = parse_config(photographs)
    train = "mine/ImageSets/Segmentation/train.txt"
    assert (config.train_list, config.infer_list, config.val_list) == (train, train, train)
    assert (config.ood_root, config.ood_list) == ("mine/OoD_images", "mine/ood_list.txt")
    assert (config.cam_batch_size, config.irn_batch_size, config.deeplab_batch_size) == (10, 4, 8)
    assert (config.ood_batch_size, config.cluster_K) == (6, 6)
    assert (config.cam_num_epoches, config.irn_num_epoches) == (76, 152)  # of one step, and of two
    assert parse_config([*photographs, "--cluster_K", "2", "--cam_num_epoches", "3"]).only(
        ["cluster_K", "cam_num_epoches"]
    ) == {"cluster_K": 2, "cam_num_epoches": 3}


@pytest.mark.parametrize(
    "table",
    [
        "file,labels\n" + "".join(f"{k}.png,{'no;0' if k < 3 else ''}\n" for k in range(12)) + "1.png,\n",
        "File;cat;dog\n" + "".join(f"{k}.png;{int(k == 2)};{'yes' if k < 2 else 'no'}\n" for k in range(12)),
    ],
)
def test_small_fits_irn_and_deeplab_to_the_images_with_a_class(photographs, table):
    """The classifier of an imported folder is trained on the others, too."""
    Path("mine/ImageSets/Main").mkdir()
    Path("mine/ImageSets/Main/train.txt").write_text("".join(f"{k}\n" for k in range(12)))
    Path("mine", IMPORT_RECORD).touch()
    Path("mine/ImageSets/Segmentation/train.txt").write_text("0\n")  # the only one with a mask
    Path("mine/labels.csv").write_text(table)
    config = parse_config(photographs)
    assert config.train_list == "mine/ImageSets/Main/train.txt"
    assert (config.cam_batch_size, config.irn_batch_size, config.deeplab_batch_size) == (12, 3, 3)
    assert (config.cam_num_epoches, config.irn_num_epoches) == (76, 304)


@pytest.mark.parametrize("name", ["{}", "{}.jpg", "a.b.{}.JPG", "images\\{}.png", "images/{}.png"])
def test_small_knows_images_however_lists_and_tables_call_them(photographs, name):
    """DeepLab's batch fits to the list of its own images, whatever IRN's is."""
    bare = name.replace("\\", "/").rpartition("/")[2].rpartition(".")[0] or "{}"
    rows = "".join(f"{name.format(k)},{'cat' if k < 3 else ''}\n" for k in range(10))
    Path("mine/labels.csv").write_text("file,labels\n" + rows)
    Path("listed.txt").write_text("".join(f"{bare.format(k)}\n" for k in range(10)))
    Path("two.txt").write_text(f"{bare.format(0)}\n{name.format(1)}\n{name.format(5)}\n")
    given = [*photographs, "--label_file", "mine/labels.csv", "--train_list", "listed.txt", "--infer_list", "two.txt"]
    config = parse_config(given)
    assert (config.cam_batch_size, config.irn_batch_size, config.deeplab_batch_size) == (10, 3, 2)


def test_a_list_of_training_images_is_that_of_the_masks_on_an_imported_folder_too(photographs):
    Path("mine/ImageSets/Main").mkdir()
    Path("mine/ImageSets/Main/train.txt").write_text("".join(f"{k}\n" for k in range(10)))
    Path("few.txt").write_text("1\n2\n")
    for is_imported in (False, True):
        if is_imported:
            Path("mine", IMPORT_RECORD).touch()
        for flags in (photographs, ["--voc12_root", "mine"] if is_imported else photographs):
            config = parse_config([*flags, "--train_list", "few.txt"])
            assert (config.train_list, config.infer_list, config.val_list) == ("few.txt",) * 3
    config, sentences = explained("--voc12_root", "mine", "--train_list", "few.txt")
    assert sentences[0].startswith("mine was imported: ")


def test_lists_in_utf_16_count_as_others_do(photographs):
    Path("mine/ImageSets/Segmentation/train.txt").write_text("".join(f"{k}\r\n" for k in range(10)), encoding="utf-16")
    assert parse_config(photographs).cam_batch_size == 10


def test_small_takes_its_own_numbers_where_there_are_enough_images(photographs):
    for name in (f"mine/{part}" for part in ("ImageSets/Segmentation/train.txt", "ood_list.txt")):
        Path(name).write_text("".join(f"{k}\n" for k in range(311)))
    config = parse_config(photographs)
    assert (config.cam_batch_size, config.irn_batch_size, config.deeplab_batch_size) == (16, 4, 8)
    assert (config.ood_batch_size, config.cluster_K) == (8, 20)
    assert (config.cam_num_epoches, config.irn_num_epoches) == (4, 4)
    assert (config.deeplab_loss, config.deeplab_max_iter, config.deeplab_crop_size) == ("balanced", 200, 257)
    assert (config.cam_network, config.cam_crop_size, config.imagenet_weights) == (
        "net.efficientnet_lite0_cam",
        256,
        "auto",
    )


def test_small_with_overlays_makes_nothing_anew(photographs):
    config = parse_config([*photographs, "--show_pass", "True", "--labels_from", "classifier"])
    assert enabled_steps(config) == ["show"]
    asked = parse_config([*photographs, "--show_pass", "True", "--make_cam_pass", "True"])
    assert enabled_steps(asked) == ["make_cam", "show"]


def test_small_with_mining_trains_the_classifier_alone_and_names_the_places_of_the_chain(photographs):
    Path("mine/OoD_images").rmdir()
    config = parse_config([*photographs, "--mine_ood_pass", "True", "--ood_pool", "pool"])
    assert enabled_steps(config) == ["train_classifier", "mine_ood"]
    assert (config.ood_root, config.ood_list) == ("mine/OoD_images", "mine/ood_list.txt")
    assert (config.cam_network, config.cam_init_weights_name) == (
        "net.efficientnet_lite0_cam",
        "sess/small_cam_orig.pth",
    )
    touch("sess/small_cam_orig.pth")
    asked = parse_config([*photographs, "--mine_ood_pass", "True", "--ood_pool", "pool", "--make_cam_pass", "True"])
    assert enabled_steps(asked) == ["mine_ood", "make_cam"]


def test_small_evaluates_only_what_has_masks(photographs):
    config, sentences = explained(*photographs)
    evaluations = {step for step in SMALL_CHAIN if step.startswith("eval")}
    assert set(enabled_steps(config)) == SMALL_CHAIN - evaluations | {"train_classifier"}
    assert sentences == ["evaluations are left out: there are no masks in mine/SegmentationClass."]
    touch("mine/SegmentationClass/0.png")
    touch("sess/small_cam_orig.pth")
    config, sentences = explained(*photographs)
    assert set(enabled_steps(config)) == SMALL_CHAIN - {"eval_ins_seg", "eval_deeplab"}
    val = "mine/ImageSets/Segmentation/val.txt"
    assert sentences == [f"evaluations that need it are left out: there is no list {val} of images with masks."]
    touch("mine/SegmentationObject/0.png")
    touch("mine/ImageSets/Segmentation/val.txt")
    config, sentences = explained(*photographs)
    assert set(enabled_steps(config)) == SMALL_CHAIN
    assert config.val_list == "mine/ImageSets/Segmentation/val.txt"
    assert sentences == []


@pytest.mark.parametrize("recipe", ["cam", "authors"])
def test_no_evaluation_of_an_imported_folder_without_masks_is_left(photographs, recipe):
    """Those that a recipe switches on where DeepLab has a start are left out as well."""
    Path("mine", IMPORT_RECORD).touch()
    flags = ["--recipe", recipe, "--voc12_root", "mine", "--deeplab_network", "net.resnet101_deeplab"]
    config, sentences = explained(*flags)
    assert config.train_deeplab_pass
    assert not [step for step in enabled_steps(config) if step.startswith("eval")]
    assert "evaluations are left out: there are no masks in mine/SegmentationClass." in sentences
    assert parse_config([*flags, "--eval_deeplab_pass", "True"]).eval_deeplab_pass


def test_an_evaluations_list_that_is_named_has_to_be_there(photographs):
    touch("mine/SegmentationClass/0.png")
    touch("sess/small_cam_orig.pth")
    for is_imported in (False, True):
        if is_imported:
            Path("mine", IMPORT_RECORD).touch()
        flags = ["--chainer_eval_set", "trian", "--deeplab_eval_set", "vall"]
        assert steps(*photographs, *flags) == SMALL_CHAIN - {"eval_ins_seg"}


@pytest.mark.parametrize("flag", ["cam_batch_size", "irn_batch_size", "deeplab_batch_size", "ood_batch_size"])
def test_batches_without_images_are_refused(photographs, flag):
    with pytest.raises(InputError, match=f"--{flag} must be at least 1, got 0"):
        parse_config([*photographs, f"--{flag}", "0"])


def test_small_without_lists_leaves_the_complaint_to_the_steps():
    config = parse_config(["--recipe", "small", "--voc12_root", "nowhere"])
    assert (config.cam_batch_size, config.cluster_K) == (16, 20)
    assert config.ood_list == Config().ood_list


@pytest.mark.parametrize("place", [[], ["--work_dir", "project", "--cam_out_dir", "result/cam_ood"]])
@pytest.mark.parametrize("name", RECIPES)
def test_changed_flags_give_the_same_without_the_recipe(name, place):
    config = parse_config(["--recipe", name, "--beta", "3", *place])
    again = parse_config(to_arguments(changed_flags(vars(config))))
    differ = {flag for flag, value in vars(config).items() if getattr(again, flag) != value}
    assert {flag for flag in differ if not flag.endswith("_pass")} <= {"recipe", "sample"}


@pytest.mark.parametrize(
    ("flags", "code", "answer"),
    [(["--help"], 0, "usage: run_sample.py"), (["--recipe", "x"], 2, "error: --recipe x is unknown")],
)
def test_help_and_wrong_flags_answer_without_loading_torch(flags, code, answer):
    program = (
        "import sys, run_sample\n"
        "sys.argv[1:] = sys.argv[2:]\n"
        "try:\n    code = run_sample.main()\n"
        "except SystemExit as end:\n    code = end.code\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    line = [sys.executable, "-c", program, "run_sample.py", *flags]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == code, done.stderr
    assert answer in done.stdout + done.stderr


def outputs(config):
    """The flags that by default lie in sess/ or result/, and the log."""
    names = [name for name, value in vars(Config()).items() if str(value).startswith(("sess/", "result"))]
    return config.only([*names, "log_name"])


@pytest.mark.parametrize("name", RECIPES)
def test_a_working_folder_takes_every_output_and_no_input(name):
    before, after = parse_config(["--recipe", name]), parse_config(["--recipe", name, "--work_dir", "a/b/"])
    assert outputs(after) == {flag: f"a/b/{value}" for flag, value in outputs(before).items()}
    others = vars(after).keys() - outputs(after).keys() - {"work_dir"}
    assert after.only(sorted(others)) == before.only(sorted(others))


def test_single_flags_go_before_the_working_folder():
    config = parse_config(["--work_dir", "a", "--cam_out_dir", "x", "--cam_init_weights_name", "/b/c.pth"])
    assert (config.cam_out_dir, config.cam_init_weights_name, config.mask_cams.folder) == ("x", "/b/c.pth", "x")


def test_a_classifier_is_looked_for_in_the_working_folder_alone():
    touch("sess/res50_cam_orig.pth")
    touch(DEEPLAB_START)  # of no data set: it serves every working folder
    flags = ["--recipe", "cam", "--work_dir", "a"]
    config, sentences = explained(*flags)
    assert (config.train_classifier_pass, config.train_deeplab_pass) == (True, True)
    assert sentences == [
        "The in-distribution classifier is trained anew, since --work_dir a has none; to start from the one that there "
        "is, pass --cam_init_weights_name sess/res50_cam_orig.pth."
    ]
    config, sentences = explained(*flags, "--cam_init_weights_name", "sess/res50_cam_orig.pth")
    assert (config.train_classifier_pass, sentences) == (False, [])
    config, sentences = explained(*flags, "--train_classifier_pass", "False")
    assert (config.train_classifier_pass, sentences) == (False, [])
    touch("a/sess/res50_cam_orig.pth")
    config, sentences = explained(*flags)
    assert (config.train_classifier_pass, sentences) == (False, [])


def test_a_working_folder_that_can_not_be_written_is_named():
    touch("file")
    with pytest.raises(InputError, match="--work_dir: can't write into file"):
        run_sample.run(["--work_dir", "file"])
