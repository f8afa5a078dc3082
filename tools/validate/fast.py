#!/usr/bin/env python3
"""Protocol `fast` against `autoattack-standard`, image by image: the table of docs/VALIDATION.md.

    tools/validate/fast.py MODEL DATASET --norm linf --epsilon 0.3 [--images 300] [--offset 0] [--gauntlet target/release/gauntlet]
        [--standard VERDICTS.csv]

Prints how many images each breaks, which ones only the standard breaks (an image more than 0.1 % of them fails), and the forward
equivalents of both (a backward pass counts as two forwards; at least five times fewer are asked for). --standard reads the
verdicts of an earlier run instead of making them.
"""

import argparse
import csv
import pathlib
import subprocess
import sys
import tempfile


def run(arguments, protocol, out):
    command = [arguments.gauntlet, "run", arguments.model, "--dataset", arguments.dataset, "--protocol", protocol]
    command += ["--set", f"norm={arguments.norm}", "--set", f"epsilon={arguments.epsilon}", "--verdicts", str(out)]
    command += ["--images", str(arguments.images), "--offset", str(arguments.offset), "--threads", str(arguments.threads)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def read(path):
    """Images broken, and forward equivalents, of the attack's rows."""
    rows = [row for row in csv.DictReader(open(path)) if row["condition"] != "clean"]
    broken = {int(row["image"]) for row in rows if row["robust"] == "false"}
    return len(rows), broken, sum(int(row["forwards"]) + 2 * int(row["backwards"]) for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--norm", required=True)
    parser.add_argument("--epsilon", required=True)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gauntlet", default="target/release/gauntlet")
    parser.add_argument("--protocol", default="fast")
    parser.add_argument("--standard", type=pathlib.Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fast, standard = pathlib.Path(folder) / "fast.csv", pathlib.Path(folder) / "standard.csv"
        run(arguments, arguments.protocol, fast)
        if arguments.standard:
            standard = arguments.standard
        else:
            run(arguments, "autoattack-standard", standard)
        (images, by_fast, spent), (others, by_standard, full) = read(fast), read(standard)
    assert images == others, "the runs are of different images"
    missed = sorted(by_standard - by_fast)
    print(f"| {arguments.norm} {arguments.epsilon} | {images} | {len(by_standard)} | {len(by_fast)} | {len(missed)} {missed} "
          f"| {full / images:.0f} | {spent / images:.0f} | {full / spent:.1f}× |")
    return 1 if len(missed) > 0.001 * images or full < 5 * spent else 0


if __name__ == "__main__":
    sys.exit(main())
