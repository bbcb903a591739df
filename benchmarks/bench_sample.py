"""The built-in sample over several seeds: `python benchmarks/bench_sample.py [--seeds 0 1 2]` prints the table.

Each seed is a run of `python run_sample.py --sample True --seed S` in a folder of its own (`--folder`); the data set is
the same. The mIoU are read from the evaluations that the runs wrote.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCORES = {
    "control CAM": ("result/control/scores/eval_cam.json", "best"),
    "W-OoD CAM": ("result/scores/eval_cam.json", "best"),
    "W-OoD CAM + CRF": ("result/scores/eval_ir_label.json", None),
    "masks": ("result/scores/eval_sem_seg.json", None),
    "DeepLab": ("result/scores/eval_deeplab.json", None),
    "DeepLab + CRF": ("result/scores/eval_deeplab_crf.json", None),
}
VAL_COLUMNS = ("DeepLab", "DeepLab + CRF")
"""On the validation images, all others on the training images."""


def run_seed(seed: int, folder: Path, extra: list[str]) -> dict[str, float]:
    """mIoU (per cent) of each column, minutes, and the peak memory in GiB of the largest step (main process)."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "run_sample.py"), "--sample", "True", "--seed", str(seed), *extra]
    started = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        subprocess.run(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, check=True)
    row = {"minutes": (time.perf_counter() - started) / 60}
    records = [json.loads(path.read_text()) for path in folder.glob("result/**/runs/*.json")]
    row["GiB"] = max(step["peak_memory_mib"]["process"] for record in records for step in record["done"]) / 1024
    for name, (file, part) in SCORES.items():
        content = json.loads((folder / file).read_text())
        row[name] = 100 * (content[part] if part else content)["miou"]
    return row


def main() -> None:
    """Run the seeds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("result/bench_sample"))
    arguments, extra = parser.parse_known_args()
    print(f"{os.cpu_count()} CPU cores\n")
    titles = ("seed", "control CAM", "W-OoD CAM", "gain", "W-OoD CAM + CRF", "masks after IRN", *VAL_COLUMNS)
    print(f"| {' | '.join((*titles, 'minutes', 'GiB'))} |")
    print("| --- " * (len(titles) + 2) + "|", flush=True)
    rows = []
    for seed in arguments.seeds:
        row = run_seed(seed, arguments.folder.resolve() / f"seed{seed}", extra)
        row["gain"] = row["W-OoD CAM"] - row["control CAM"]
        rows.append(row)
        print(_line(str(seed), row), flush=True)
    print(_line("mean", {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}))


def _line(title: str, row: dict[str, float]) -> str:
    cells = [f"{row[name]:.1f}" for name in ("control CAM", "W-OoD CAM")]
    cells += [f"{row['gain']:+.1f}", *(f"{row[name]:.1f}" for name in ("W-OoD CAM + CRF", "masks", *VAL_COLUMNS))]
    return f"| {title} | " + " | ".join([*cells, f"{row['minutes']:.1f}", f"{row['GiB']:.1f}"]) + " |"


if __name__ == "__main__":
    main()
