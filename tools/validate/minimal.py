#!/usr/bin/env python3
"""Minimal perturbations on LeNet5 / MNIST: the table of docs/VALIDATION.md.

    tools/validate/minimal.py DATA [--gauntlet target/release/gauntlet] [--threads 1] [--images 100]

DATA holds t10k-{images,labels}-idx*-ubyte.gz, lenet5_{adv,cln}.torchscript.pt and reference_autoattack.json. Runs every attack that
looks for the nearest adversarial example by itself, then the protocol min-norm, and says how far images have to be moved and how
many stand at the reference's budgets: an image whose nearest example is farther than ε counts as robust at ε.

Exits with 1 when min-norm leaves more than one image in 300 more standing than the reference.
"""

import argparse
import csv
import json
import math
import pathlib
import statistics
import subprocess
import tempfile

BUDGETS = {"linf": [0.1, 0.3], "l2": [1.0, 2.0], "l1": [10.0, 20.0]}
ATTACKS = {
    "linf": ["fmn", "fab-t", "hop-skip-jump"],
    "l2": ["fmn", "ddn", "fab-t", "hop-skip-jump"],
    "l1": ["fmn", "fab-t"],
}


def distances(arguments, model, norm, protocol):
    """The distance of every image, and the passes of one in the mean."""
    with tempfile.TemporaryDirectory() as scratch:
        verdicts = pathlib.Path(scratch, "verdicts.csv")
        file = pathlib.Path(scratch, "protocol.toml")
        file.write_text(protocol)
        command = [arguments.gauntlet, "run", str(arguments.data / f"lenet5_{model}.torchscript.pt")]
        command += ["--dataset", str(arguments.data), "--protocol", str(file), "--images", str(arguments.images)]
        command += ["--threads", str(arguments.threads), "--batch", str(min(arguments.images, 100))]
        command += ["--format", "json", "--verdicts", str(verdicts)]
        (row,) = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["conditions"]
        lines = list(csv.DictReader(verdicts.open()))
    found = [math.inf if line["robust"] == "true" else float(line[norm]) for line in lines]
    return found, (row["forwards_per_image"], row["backwards_per_image"])


def block(norm, what):
    return f'name = "minimal"\n[[attack]]\nnorm = "{norm}"\nepsilon = "minimal"\n{what}\n'


def standing(found, epsilon):
    """As budgets are held: L∞ may exceed ε by half a float32 step, the others by one part in a million."""
    return sum(distance > epsilon * (1 + 1e-6) + 2**-24 for distance in found)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--gauntlet", default="target/release/gauntlet")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--model", action="append", choices=["adv", "cln"])
    parser.add_argument("--norm", action="append", choices=list(BUDGETS))
    parser.add_argument("--attack", action="append", help="only these, min-norm among them")
    arguments = parser.parse_args()
    runs = json.loads((arguments.data / "reference_autoattack.json").read_text())["runs"]
    reference = {(run["norm"], run["epsilon"]): round(300 * run["stages"][-1]["robust"]) for run in runs}
    print("| model | norm | attack | quartile | median | quartile | standing at ε | forwards + backwards |")
    print("|---|---|---|--:|--:|--:|---|--:|")
    worse = False
    for model in arguments.model or ["adv", "cln"]:
        for norm in arguments.norm or list(BUDGETS):
            cascade = '"fmn", "ddn", "fab-t"' if norm == "l2" else '"fmn", "fab-t"'
            searches = [(name, f'attack = "{name}"') for name in ATTACKS[norm]] + [("min-norm", f"cascade = [{cascade}]")]
            for name, what in searches:
                if arguments.attack and name not in arguments.attack:
                    continue
                found, passes = distances(arguments, model, norm, block(norm, what))
                quartiles = statistics.quantiles(found, n=4, method="inclusive")
                stand = {epsilon: standing(found, epsilon) for epsilon in BUDGETS[norm]}
                text = ", ".join(f"{epsilon}: {count}" for epsilon, count in stand.items())
                sizes = " | ".join(f"{size:.4f}" for size in quartiles)
                print(f"| {model} | {norm} | {name} | {sizes} | {text} | {passes[0]:.0f} + {passes[1]:.0f} |", flush=True)
                for epsilon, count in stand.items():
                    known = reference.get((norm, epsilon))
                    if (model, name, arguments.images) == ("adv", "min-norm", 300) and known is not None:
                        worse |= count > known + 1
    raise SystemExit(int(worse))


if __name__ == "__main__":
    main()
