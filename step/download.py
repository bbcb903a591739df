"""Before the first step: fetch data and weights that others offer, checked and put in place (not in the original)."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from torchvision.datasets.voc import DATASET_YEAR_DICT
from torchvision.models import ResNet50_Weights, ResNet101_Weights, WeightsEnum

from misc.errors import InputError
from misc.files.archives import BadArchive, is_damaged_zip, missing_members, obstacle_to, place_folder, root_in, unpack
from misc.files.checkpointfile import checkpoint_names
from misc.files.checksum import Digest, digest_in_name
from misc.files.devkitfiles import IMAGES
from misc.files.disk import readable_size, room_for
from misc.files.fetch import (
    GDOWN,
    WEB_PAGE,
    NotFetched,
    Report,
    discard,
    fetch,
    finish,
    is_address,
    is_on_drive,
    is_web_page,
    mismatch,
    part_of,
    size_fetched,
)
from misc.files.images import IMAGE_SUFFIXES
from misc.run.check_requirements import Requirement, problem_of
from misc.run.config import Config
from misc.run.lock import alone_in
from misc.run.notices import notice
from misc.run.plan import Planned, require_writable
from misc.run.progress import progress
from misc.run.recipes import DEEPLAB_START
from misc.run.step import Step
from net.weights import read_checkpoint
from voc12.lists import read_ood_paths

STEP = Step(
    name="download",
    description="fetch data and weights that others offer, check them and put them in place",
    reads=("download_from",),
    writes=("voc12_root", "ood_root", "ood_list", "cam_init_weights_name"),
    flags=("download", "download_timeout"),
    remembered=False,
)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A file that somebody offers.

    Attributes:
        what: what it is, and whose.
        address: where it lies; a browser that is sent there gets it, too.
        place: the flag that names where it, or what it unpacks to, belongs; or, as a path, the place itself.
        kind: an archive of a folder, a list of images or a checkpoint.
        members: of an archive, patterns of paths in its folder, each of which must be there.
        size: bytes, where they are published; a file of another size is not taken.
        about: bytes, where they are published roundly.
        digest: where one is published.
    """

    what: str
    address: str
    place: str
    kind: Literal["archive", "list", "checkpoint"]
    members: tuple[str, ...] = ()
    size: int | None = None
    about: int | None = None
    digest: Digest | None = None


def _on_drive(file_id: str) -> str:
    return f"https://drive.google.com/uc?id={file_id}"


def _of_torchvision(name: str, weights: WeightsEnum) -> Offer:
    """ImageNet weights, whose file names end in the first digits of their SHA-256."""
    file = PurePath(weights.url).name
    return Offer(
        what=f"ImageNet weights of {name}, of torchvision",
        address=weights.url,
        place=f"sess/{file}",
        kind="checkpoint",
        about=round(weights.meta["_file_size"] * 2**20),
        digest=digest_in_name(file),
    )


VOC = DATASET_YEAR_DICT["2012"]
AUTHORS = "authors"
OFFERED_BY_AUTHORS = {
    "voc_aug": Offer(
        what="VOC 2012 with the augmented masks, of W-OoD's authors",
        address=_on_drive("1-2cYvmJ4u52FvZ722eIti1jf5hfGr6Rz"),
        place="voc12_root",
        kind="archive",
        members=("SegmentationClassAug/*.png",),
    ),
    "ood_images": Offer(
        what="out-of-distribution images from OpenImages, of W-OoD's authors",
        address=_on_drive("1Zrwqiy-dt9aymtEzCt9qqWROMDj3EUUX"),
        place="ood_root",
        kind="archive",
        members=("*.jpg",),
    ),
    "ood_list": Offer(
        what="list of these images, of W-OoD's authors",
        address=_on_drive("1KjK55YL1jGHgA0LVA3djHu6vtFyho8kP"),
        place="ood_list",
        kind="list",
    ),
    "classifier": Offer(
        what="in-distribution classifier, of W-OoD's authors",
        address=_on_drive("1Eaa7BV6PAfRPEZYBz5WtllUJxpnO-a-m"),
        place="cam_init_weights_name",
        kind="checkpoint",
    ),
    "deeplab_start": Offer(
        what="ImageNet ResNet-101 that DeepLab-v2 starts from, of AdvCAM's authors",
        address=_on_drive("14soMKDnIZ_crXQTlol9sNHVPozcQQpMn"),
        place=DEEPLAB_START,
        kind="checkpoint",
    ),
}
OFFERS = OFFERED_BY_AUTHORS | {
    "voc2012": Offer(
        what="VOC 2012, of the VOC project",
        address=VOC["url"],
        place="voc12_root",
        kind="archive",
        members=(
            *("JPEGImages/*.jpg", "Annotations/*.xml", "SegmentationClass/*.png", "SegmentationObject/*.png"),
            *("ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt"),
        ),
        size=1_999_639_040,
        digest=Digest("md5", VOC["md5"]),
    ),
    "resnet50": _of_torchvision("ResNet-50", ResNet50_Weights.IMAGENET1K_V1),
    "resnet101": _of_torchvision("ResNet-101", ResNet101_Weights.IMAGENET1K_V1),
}
"""All that can be fetched, by name. No sizes or digests are published of what lies on Google Drive."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """An offer that is asked for, where it goes and where it comes from: an address, or a file of the user."""

    name: str
    offer: Offer
    place: Path
    source: str | Path

    @property
    def file(self) -> Path:
        """Where what is fetched lies: at its place, an archive beside it."""
        return self.place.parent / f"{self.name}.archive" if self.offer.kind == "archive" else self.place

    @property
    def unpacked(self) -> Path:
        """Where an archive is unpacked, before it comes into place."""
        return self.place.parent / f"{self.name}.unpacked"

    def is_done(self) -> bool:
        """Whether it is in place."""
        if self.offer.kind == "archive":
            return not missing_members(self.place, self.offer.members)
        return any(path.is_file() for path in _names_of(self))

    def size(self) -> int | None:
        """Bytes to fetch, as far as it is known."""
        return self.source.stat().st_size if isinstance(self.source, Path) else self.offer.size or self.offer.about

    def disk(self) -> int:
        """Bytes of disk that it will take yet, an archive beside what it unpacks to; 0 where its size is not known."""
        size, is_archive = self.size() or 0, self.offer.kind == "archive"
        if isinstance(self.source, Path):
            return size
        return max(0, size - size_fetched(self.file)) + size * is_archive


def _names_of(job: Job) -> tuple[Path, ...]:
    """Paths at which a single file counts as being there."""
    return checkpoint_names(job.place) if job.offer.kind == "checkpoint" else (job.place,)


def _jobs(args: Config) -> list[Job]:
    """What is asked for, each once, in the table's order. Raises `InputError` for what is not in the table."""
    known = [AUTHORS, *OFFERS]
    for name in args.download:
        if name not in known:
            raise InputError(f"--download {name} is not known; expected some of {', '.join(known)}.")
    asked = {*args.download, *(OFFERED_BY_AUTHORS if AUTHORS in args.download else ())}
    sources = dict(_source(text, asked) for text in args.download_from)
    places = {offer.place: Path(getattr(args, offer.place, offer.place)).resolve() for offer in OFFERS.values()}
    return [
        Job(name, offer, places[offer.place], sources.get(name, offer.address))
        for name, offer in OFFERS.items()
        if name in asked
    ]


def _source(text: str, asked: set[str]) -> tuple[str, str | Path]:
    """Name and source of `NAME=ADDRESS_OR_FILE`."""
    name, _, where = text.partition("=")
    if name not in asked or not where:
        names = ", ".join(name for name in OFFERS if name in asked)
        raise InputError(
            f"--download_from {text} must be NAME=ADDRESS or NAME=FILE, with a NAME that --download has: {names}."
        )
    if not is_address(where) and not Path(where).is_file():
        raise InputError(f"--download_from {text}: there is no file {where}, and it is no address (https://...).")
    return name, where if is_address(where) else Path(where)


def _require_free_place(job: Job) -> None:
    """Raise `InputError` if something else lies where an archive's folders would go."""
    if job.offer.kind == "archive" and (obstacle := obstacle_to(job.place, job.offer.members)):
        lacking = ", ".join(missing_members(job.place, job.offer.members))
        raise InputError(f"--download {job.name}: {obstacle} is there, but lacks {lacking}; move it away first.")


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (other steps check what is there by then)."""
    jobs = _jobs(args)
    for job in jobs:
        if job.is_done():
            _require_the_published(job)
    missing = [job for job in jobs if not job.is_done()]
    from_drive = any(isinstance(job.source, str) and is_on_drive(job.source) for job in missing)
    if from_drive and (problem := problem_of(Requirement(GDOWN))):
        raise InputError(f"--download: {problem}, which Google Drive needs; run pip install '{GDOWN}'.")
    for job in missing:
        _require_free_place(job)
        require_writable(job.place.parent, flag=job.offer.place if hasattr(args, job.offer.place) else "download")
    _require_room(missing)
    return {}


def _require_the_published(job: Job) -> None:
    """Raise `InputError` if a file is there that is not the published one."""
    for path in _names_of(job) if job.offer.kind != "archive" else ():
        if path.is_file() and (problem := mismatch(path, size=job.offer.size, digest=job.offer.digest)):
            raise InputError(
                f"--download {job.name}: {path} is there, but is not the published file: {problem}; move it away first."
            )


def _require_room(missing: list[Job]) -> None:
    """Raise `InputError` if a disk has no room for all that goes there."""
    for room in room_for((job.place.parent, job.disk()) for job in missing):
        if not room.suffices:
            disk = room.folder.stat().st_dev
            there = [job.name for job in missing if job.place.parent.stat().st_dev == disk]
            raise InputError(f"--download {' '.join(there)}: it needs {room}.")


def run(args: Config) -> None:
    """Fetch what `--download` names and is not there yet. Raises `InputError` at the end, for all that failed."""
    jobs = _jobs(args)
    for job in jobs:
        size = readable_size(n) if (n := job.size()) else "size not published"
        doing = "is there already" if job.is_done() else f"{size}, from {job.source}"
        log.info("%s: %s; %s; in %s", job.name, job.offer.what, doing, job.place)
    fetched, failures = [], []
    for job in jobs:
        with alone_in(job.place.parent):  # a second run waits here, and then finds it done
            if not job.is_done():
                try:
                    _bring(job, timeout=args.download_timeout)
                    fetched.append(job.offer.place)
                except InputError as error:
                    failures.append(error)
            if job.is_done():
                _tidy(job)
    if {"ood_root", "ood_list"} & {*fetched}:
        _compare_with_list(args.ood_root, args.ood_list)
    if "voc12_root" in fetched and not (Path(args.voc12_root) / IMAGES).is_dir():
        notice(f"{args.voc12_root} has no JPEGImages/; --download voc2012 brings them")
    if failures:
        raise InputError(" ".join(map(str, failures)))


def _bring(job: Job, *, timeout: float) -> None:
    """Fetch, check and place one offer. Raises `InputError`, with the way to do it by hand."""
    origin = "there" if job.source == job.offer.address else job.offer.address
    by_hand = f"get it from {origin} or elsewhere by hand, then pass --download_from {job.name}=FILE"
    _require_free_place(job)  # again, since an earlier one may have come into its way
    try:
        _bring_archive(job, timeout) if job.offer.kind == "archive" else _bring_file(job, timeout)
    except (NotFetched, BadArchive) as error:
        raise InputError(f"--download {job.name}: {job.source}: {error}; {by_hand}.") from error
    except OSError as error:
        raise InputError(
            f"--download {job.name}: can't write into {job.place.parent} ({error.strerror or error})."
        ) from error
    log.info("%s: in place in %s", job.name, job.place)


def _bring_file(job: Job, timeout: float) -> None:
    part = part_of(job.file)
    if isinstance(job.source, Path):
        shutil.copyfile(job.source, part)
    else:
        with _bar(job.name) as report:
            fetch(job.source, part, timeout=timeout, report=report, size=job.offer.size)
    try:
        _require_right(job, part)
    except NotFetched:
        discard(part)
        raise
    finish(part, job.file)


def _bring_archive(job: Job, timeout: float) -> None:
    own = isinstance(job.source, Path)
    archive = job.source if own else job.file
    if own:
        _require_right(job, archive)
    elif not archive.is_file():
        _bring_file(job, timeout)
    if job.unpacked.exists():  # of a run that was killed
        shutil.rmtree(job.unpacked)
    log.info("%s: unpacking %s", job.name, archive)
    try:
        unpack(archive, job.unpacked)
        root = root_in(job.unpacked, job.offer.members)
        if root is None:
            expected = ", ".join(job.offer.members)
            raise NotFetched(f"the archive has no folder with {expected}, or several; it is kept as {archive}")
        for path in place_folder(root, job.place, job.offer.members):
            log.info("%s: %s was there before and stays as it is", job.name, path)
    except BadArchive:
        if not own:
            archive.unlink()
        raise
    finally:
        shutil.rmtree(job.unpacked, ignore_errors=True)


def _tidy(job: Job) -> None:
    """Remove what is of no use once the offer is in place, also what a run has left that was killed at the very end."""
    discard(part_of(job.file))
    if job.offer.kind == "archive":
        job.file.unlink(missing_ok=True)
        shutil.rmtree(job.unpacked, ignore_errors=True)


@contextmanager
def _bar(name: str) -> Iterator[Report]:
    """A bar of bytes, and the function that moves it."""
    with progress(desc=name, unit="B", unit_scale=True) as bar:

        def report(done: int, total: int | None) -> None:
            if bar.total is None and total is not None:
                bar.total, bar.initial = total, done  # the speed is that of what comes now
            bar.update(done - bar.n)

        yield report


def _require_right(job: Job, path: Path) -> None:
    """Raise `NotFetched` if a file is not what it should be, as far as that can be told before it is unpacked."""
    if is_web_page(path):
        raise NotFetched(WEB_PAGE)
    if problem := mismatch(path, size=job.offer.size, digest=job.offer.digest):
        raise NotFetched(f"this is not the published file: {problem}")
    if job.offer.kind == "list":
        names = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if not any(PurePath(name.strip()).suffix.lower() in IMAGE_SUFFIXES for name in names):
            raise NotFetched("this is no list of images")
    if job.offer.kind == "checkpoint":
        if is_damaged_zip(path):  # torch.load does not compare the checksums
            raise NotFetched("this checkpoint is damaged: its checksums do not fit")
        try:
            read_checkpoint(path)
        except InputError as error:
            raise NotFetched("this is no checkpoint that can be read") from error


def _compare_with_list(ood_root: str, ood_list: str) -> None:
    """Say whether the out-of-distribution images and their list fit together, where both are there."""
    if Path(ood_root).is_dir() and Path(ood_list).is_file():
        try:
            log.info("%d images of %s are in %s", len(read_ood_paths(ood_root, ood_list)), ood_list, ood_root)
        except InputError as error:
            notice(str(error))
