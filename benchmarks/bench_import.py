"""Import beside reading and copying: `python benchmarks/bench_import.py [--images 10000] [--folder FOLDER]`.

Makes JPEGs of 500 x 375 in twenty folders by class, no two alike, in a new folder below FOLDER, which it removes again.
Each row is the same files: all read by one program, all copied, imported with hard links, and imported again when
nothing is new. Seconds by the clock and of CPU, for the whole process, without what an import of nothing takes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

N_CLASSES, SIZE = 20, (375, 500)


def make_photographs(folder: Path, n_images: int) -> int:
    """Write `n_images` JPEGs into folders by class; returns their bytes in all."""
    import io

    import numpy as np
    from PIL import Image

    from benchmarks.inputs import JPEG_QUALITY, photograph

    image, _ = photograph(SIZE, np.arange(2), np.random.default_rng(0))
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY)
    for label in range(N_CLASSES):
        (folder / f"class_{label}").mkdir(parents=True)
    for number in range(n_images):  # what follows the end of a JPEG is no part of the picture, and makes it another
        path = folder / f"class_{number % N_CLASSES}" / f"{number:06d}.jpg"
        path.write_bytes(stream.getvalue() + f"{number:08d}".encode())
    return n_images * (len(stream.getvalue()) + 8)


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Seconds by the clock and of CPU that a command takes. Raises `CalledProcessError` if it fails."""
    start, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, cpu


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--num_workers", type=int, default=2)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        n_bytes = make_photographs(folder / "photos", args.images)
        make_photographs(folder / "few", N_CLASSES)

        def importing(source: str, root: str) -> list[str]:
            places = [
                "--work_dir",
                str(folder),
                "--voc12_root",
                str(folder / root),
                "--import_from",
                str(folder / source),
            ]
            command = [sys.executable, str(ROOT / "run_sample.py"), "--import_data_pass", "True", *places]
            return [*command, "--num_workers", str(args.num_workers)]

        reading = "import sys, pathlib\nfor p in pathlib.Path(sys.argv[1]).rglob('*.jpg'): p.read_bytes()"
        nothing = timed(importing("few", "few_imported"))
        rows = {
            "read": timed([sys.executable, "-c", reading, str(folder / "photos")]),
            "copied": timed(["cp", "-r", str(folder / "photos"), str(folder / "copied")]),
        }
        shutil.rmtree(folder / "copied")
        for row in ("imported", "imported again"):
            rows[row] = tuple(a - b for a, b in zip(timed(importing("photos", "mine")), nothing, strict=True))
    print(f"{args.images} images, {n_bytes / 1e6:.0f} MB; an import of {N_CLASSES} images: {nothing[0]:.1f} s")
    for row, (clock, cpu) in rows.items():
        print(f"{row:15} {clock:6.1f} s  {cpu:6.1f} s of CPU  {n_bytes / 1e6 / clock:6.0f} MB/s")


if __name__ == "__main__":
    main()
