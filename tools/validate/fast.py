#!/usr/bin/env python3
"""`fast` against `autoattack-standard`, image by image: the table of docs/VALIDATION.md.

    tools/validate/fast.py MODEL... --dataset DATA --budget linf=0.3 [--budget l2=2.0 ...] [--offset K] [--images N]
                           [--seed S] [--again] [--keep DIR] [--gauntlet target/release/gauntlet] [--threads 1]

Runs both protocols on the same images of every model at every budget and prints a row for each, and one for all together. A forward
pass counts as one forward-equivalent, a backward pass as two. With --again, `autoattack-standard` under the next seed is a third
column: what of chance there is in being found. With --keep, verdicts are kept in that folder, and those that lie there are not
computed again.

Exits with 1 when `fast` misses more than 0.1 % of the images that `autoattack-standard` breaks, or takes more than a fifth of its
forward-equivalents, all rows together.
"""

import argparse
import csv
import pathlib
import subprocess
import sys
import tempfile


def verdicts(arguments, folder, model, norm, epsilon, protocol, seed):
    """The attacked verdicts by image."""
    path = folder / f"{model.stem}-{norm}-{epsilon.replace('/', '_')}-{arguments.offset}-{arguments.images}-{protocol}-{seed}.csv"
    if not path.exists():
        command = [arguments.gauntlet, "run", str(model), "--dataset", str(arguments.dataset), "--protocol", protocol]
        command += ["--set", f"norm={norm}", "--set", f"epsilon={epsilon}", "--set", "clean=false", "--set", "second_opinion=0"]
        command += ["--offset", str(arguments.offset), "--seed", str(seed), "--format", "json"]
        command += ["--images", str(arguments.images)] if arguments.images else []
        command += ["--threads", str(arguments.threads)] if arguments.threads else []
        partial = path.with_suffix(".partial.csv")
        subprocess.run([*command, "--verdicts", str(partial)], check=True, stdout=subprocess.DEVNULL)
        partial.rename(path)
    with path.open() as file:
        return {row["image"]: row for row in csv.DictReader(file)}


class Count:
    """What two or three runs over the same images came to."""

    def __init__(self, standard, fast, again):
        runs = [run for run in (standard, fast, again) if run is not None]
        broken = [{image for image, row in run.items() if row["robust"] != "true"} for run in runs]
        passes = [[sum(int(row[kind]) for row in run.values()) for kind in ("forwards", "backwards")] for run in runs]
        self.numbers = {"images": len(standard), "standard": len(broken[0]), "fast": len(broken[1])}
        self.numbers |= {"missed": len(broken[0] - broken[1]), "only_fast": len(broken[1] - broken[0])}
        for name, (forwards, backwards) in zip(("standard", "fast"), passes):
            self.numbers |= {f"{name}_f": forwards, f"{name}_b": backwards}
        if again is not None:
            self.numbers |= {"again_missed": len(broken[0] - broken[2]), "again_only": len(broken[2] - broken[0])}

    def __add__(self, other):
        total = object.__new__(Count)
        total.numbers = {name: number + other.numbers[name] for name, number in self.numbers.items()}
        return total

    def equivalents(self, name):
        return self.numbers[f"{name}_f"] + 2 * self.numbers[f"{name}_b"]

    def ratio(self):
        return self.equivalents("standard") / self.equivalents("fast")

    def missed_share(self):
        return self.numbers["missed"] / max(1, self.numbers["standard"])

    def row(self, *names):
        n = self.numbers
        each = lambda name: f"{n[f'{name}_f'] / n['images']:.0f} + {n[f'{name}_b'] / n['images']:.0f}"
        cells = [*names, n["images"], n["images"] - n["standard"], n["images"] - n["fast"], n["missed"], n["only_fast"]]
        cells += [f"{n['again_missed']}, {n['again_only']}"] if "again_missed" in n else []
        cells += [each("standard"), each("fast"), f"{self.ratio():.2f}"]
        return "| " + " | ".join(map(str, cells)) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=pathlib.Path, nargs="+")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--budget", action="append", required=True, metavar="NORM=EPSILON")
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--images", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--gauntlet", default="target/release/gauntlet")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    again = ["again: missed, only"] if arguments.again else []
    head = ["model", "norm", "ε", "images", "standard", "fast", "missed", "only fast", *again]
    head += ["standard f + b", "fast f + b", "ratio"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    total = None
    with tempfile.TemporaryDirectory() as folder:
        folder = arguments.keep or pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for model in arguments.models:
            for budget in arguments.budget:
                norm, epsilon = budget.split("=")
                run = lambda protocol, seed: verdicts(arguments, folder, model, norm, epsilon, protocol, seed)
                standard, fast = (run(protocol, arguments.seed) for protocol in ("autoattack-standard", "fast"))
                count = Count(standard, fast, run("autoattack-standard", arguments.seed + 1) if arguments.again else None)
                print(count.row(model.stem, norm, epsilon), flush=True)
                total = count if total is None else total + count
    print(total.row("together", "", ""))
    print(f"\nmissed {100 * total.missed_share():.2f} % of what standard breaks, at 1/{total.ratio():.2f} of its forward-equivalents")
    sys.exit(total.missed_share() > 0.001 or total.ratio() < 5)


if __name__ == "__main__":
    main()
