"""Memory that dense CRF takes for large images on the CPU: `python benchmarks/measure_crf_memory.py`.

A drawn photograph, enlarged and with the noise of a camera, and one map of all labels in squares of 200 pixels; a
process and one thread for each row. Iterations change the time and not the memory, so that few will do.
"""

import argparse
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import inputs  # noqa: E402
from misc.crf import crf_inference_labels  # noqa: E402
from misc.imutils import resize_image, resize_label  # noqa: E402

DRAWN = (375, 500)
SIZES = ((1000, 1500), (2000, 3000), (4000, 6000))
LABELS = (21, 81)
SQUARE, NOISE = 200, 4
SAMPLING_SECONDS = 0.05
STATUS = Path("/proc/self/status")


class OwnMemory:
    """The most memory, MiB, that this process has held in a block and that no file stands for (Linux)."""

    def __enter__(self) -> "OwnMemory":
        self.peak, self._ended = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLING_SECONDS):
            (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
            self.peak = max(self.peak, int(line.split()[1]) / 1024)


def row(size: tuple[int, int], n_labels: int, n_iter: int) -> str:
    """A row of the table: megapixels, labels, seconds of the CPU an iteration, MiB before and at the peak."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    picture, _ = inputs.photograph(DRAWN, (1,), rng)
    image = resize_image(picture, size).astype(np.int16) + rng.integers(-NOISE, NOISE + 1, (*size, 3), dtype=np.int8)
    image = image.clip(0, 255).astype(np.uint8)
    squares = rng.integers(0, n_labels, (size[0] // SQUARE, size[1] // SQUARE)).astype(np.uint8)
    labels = resize_label(squares, size)
    with OwnMemory() as before:
        time.sleep(4 * SAMPLING_SECONDS)
    started = time.process_time()
    with OwnMemory() as memory:
        crf_inference_labels(image, [labels], n_labels, n_iter)
    seconds = (time.process_time() - started) / n_iter
    megapixels = size[0] * size[1] / 1e6
    return f"| {megapixels:.1f} | {n_labels} | {seconds:,.0f} | {before.peak:,.0f} | {memory.peak:,.0f} |"


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS)
    parser.add_argument("--iterations", type=int, default=2)
    args = parser.parse_args()
    print("| megapixels | labels | CPU, s an iteration | MiB before | MiB at the peak |\n" + "| --- " * 5 + "|")
    for size in SIZES:
        for n_labels in args.labels:
            with get_context("spawn").Pool(1) as pool:
                print(pool.apply(row, (size, n_labels, args.iterations)), flush=True)


if __name__ == "__main__":
    main()
