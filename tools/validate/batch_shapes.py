#!/usr/bin/env python3
"""How much verdicts differ between kernel batch shapes, and between thread counts, on one model.

    tools/validate/batch_shapes.py MODEL DATASET [--gauntlet target/release/gauntlet] [--images 1000]

Within one numeric profile verdicts repeat bit for bit; across batch shapes floating point may differ in its last bits. Prints,
for every pair of profiles, how many verdicts differ in their outcome and how many in anything at all (class, sizes, passes).
"""

import argparse
import csv
import itertools
import pathlib
import subprocess
import tempfile

PROFILES = [(32, 1), (100, 1), (256, 1), (100, 2)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--gauntlet", default="target/release/gauntlet")
    parser.add_argument("--images", default="1000")
    parser.add_argument("--protocol", default="pgd-linf")
    arguments = parser.parse_args()
    verdicts = {}
    with tempfile.TemporaryDirectory() as folder:
        for batch, threads in PROFILES:
            file = pathlib.Path(folder) / f"{batch}-{threads}.csv"
            subprocess.run(
                [arguments.gauntlet, "run", arguments.model, "--dataset", arguments.dataset, "--protocol", arguments.protocol,
                 "--images", arguments.images, "--batch", str(batch), "--threads", str(threads), "--verdicts", str(file)],
                check=True, stdout=subprocess.DEVNULL)
            with open(file, newline="") as lines:
                verdicts[batch, threads] = list(csv.DictReader(lines))
    print("| batch, threads | batch, threads | verdicts | outcome differs | anything differs |")
    print("|---|---|---|---|---|")
    for a, b in itertools.combinations(PROFILES, 2):
        pairs = list(zip(verdicts[a], verdicts[b], strict=True))
        outcome = sum(x["robust"] != y["robust"] for x, y in pairs)
        anything = sum(x != y for x, y in pairs)
        print(f"| {a[0]}, {a[1]} | {b[0]}, {b[1]} | {len(pairs)} | {outcome} | {anything} |")


if __name__ == "__main__":
    main()
