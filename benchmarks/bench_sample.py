"""The built-in sample over several seeds: `python benchmarks/bench_sample.py [--seeds 0 1 2]` prints its table.

It compares two arms, the control and W-OoD, with the settings of `python run_sample.py --sample True --seed S`
(benchmarks/compare_arms.py); the chain goes on with W-OoD alone. The data set is the same for all seeds.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.arms import CONTROL, WOOD, parse_arms
from benchmarks.compare_arms import Comparison, answered, compare, write

ARM_COLUMNS = {"W-OoD CAM + CRF": "CAM + CRF", "masks after IRN": "Masks after IRN"}
VAL_COLUMNS = {"DeepLab": "DeepLab", "DeepLab + CRF": "DeepLab + CRF"}
"""{title here: title of the comparison}; these on the validation images, all others on the training images."""


def table(done: Comparison) -> str:
    """A row a seed of which both arms have ended well, then the mean."""
    titles = ("seed", "control CAM", "W-OoD CAM", "gain", *ARM_COLUMNS, *VAL_COLUMNS, "minutes", "GiB")
    rows = {}
    for seed in sorted(done.results[CONTROL].keys() & done.results[WOOD].keys()):
        control, wood = done.results[CONTROL][seed], done.results[WOOD][seed]
        cams = control.scores["CAM"], wood.scores["CAM"]
        later = [wood.scores[title] for title in (*ARM_COLUMNS.values(), *VAL_COLUMNS.values())]
        minutes = (done.seconds.get(seed, 0) + control.seconds + wood.seconds) / 60
        rows[str(seed)] = [*cams, cams[1] - cams[0], *later, minutes, wood.gib["process"]]
    if rows:
        rows["mean"] = [sum(values) / len(values) for values in zip(*rows.values(), strict=True)]
    forms = ["+.1f" if title == "gain" else ".1f" for title in titles[1:]]
    lines = [titles, ["---"] * len(titles)]
    lines += [[name, *map(format, values, forms)] for name, values in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Run the seeds and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("result/bench_sample"))
    options, extra = parser.parse_known_args()

    def work() -> Comparison:
        arms, flags = parse_arms([CONTROL, WOOD]), ["--sample", "True", *extra]
        done = compare(arms, flags, seeds=options.seeds, folder=options.folder, chain_of=[WOOD])
        write(done, options.folder, command="python benchmarks/bench_sample.py")
        print(f"\n{os.cpu_count()} CPU cores\n\n{table(done)}")
        return done

    return answered(work)


if __name__ == "__main__":
    sys.exit(main())
