#!/usr/bin/env python3
"""PGD on LeNet5 / MNIST against reference accuracies: the two tables of docs/VALIDATION.md.

    tools/validate/mnist_pgd.py DATA [--gauntlet target/release/gauntlet] [--images 1000] [--threads 1]

DATA holds t10k-{images,labels}-idx*-ubyte.gz, lenet5_{cln,adv}.torchscript.pt and reference_pgd.csv (columns model, norm,
epsilon, step_size, steps, n, accuracy: ART 1.5 rules, computed with torch). Needs nothing but python3. Exits with 1 when a
cell leaves its bounds: under ART's rules within 0.003 of the reference, under the default rules at most 0.001 above it.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import sys
import time

ART = ["independent=true", "keep=last", "projection=radial", "order=clip-then-project"]
COMMON = ["steps=64", "step_size={of_epsilon=0.25}", "random_start=false"]


def accuracies(arguments, model, norm, budgets, settings):
    """Accuracy by ε of one `gauntlet run`."""
    command = [arguments.gauntlet, "run", str(arguments.data / f"lenet5_{model}.torchscript.pt")]
    command += ["--dataset", str(arguments.data), "--protocol", f"pgd-{norm}", "--images", str(arguments.images)]
    command += ["--threads", str(arguments.threads), "--format", "json"]
    for setting in [*COMMON, *settings, f"epsilon=[{', '.join(map(str, budgets))}]"]:
        command += ["--set", setting]
    rows = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["conditions"]
    return {row["epsilon"]: row["correct"] / row["n"] for row in rows if row["kind"] == "attack"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--gauntlet", default="target/release/gauntlet")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with open(arguments.data / "reference_pgd.csv", newline="") as file:
        reference = list(csv.DictReader(file))
    ladders = {}
    for row in reference:
        ladders.setdefault((row["model"], row["norm"]), []).append(float(row["epsilon"]))

    print("| model | norm | ε | reference | ART rules | difference | default rules | difference |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    failures, start = [], time.monotonic()
    for (model, norm), budgets in ladders.items():
        art = accuracies(arguments, model, norm, budgets, ART)
        ours = accuracies(arguments, model, norm, budgets, [])
        for row in reference:
            if (row["model"], row["norm"]) != (model, norm):
                continue
            epsilon, want = float(row["epsilon"]), float(row["accuracy"])
            parity, default = art[epsilon] - want, ours[epsilon] - want
            print(f"| {model} | {norm} | {row['epsilon']} | {want:.3f} | {art[epsilon]:.3f} | {parity:+.3f} "
                  f"| {ours[epsilon]:.3f} | {default:+.3f} |", flush=True)
            # Accuracies are multiples of 1/n: half of that is no difference.
            slack = 0.5 / arguments.images
            if abs(parity) > 0.003 + slack:
                failures.append(f"{model} {norm} {epsilon}: ART rules differ by {parity:+.3f}")
            if default > 0.001 + slack:
                failures.append(f"{model} {norm} {epsilon}: default rules stand {default:+.3f} above the reference")
    print(f"\n{len(reference)} cells, {arguments.images} images, {time.monotonic() - start:.0f} s", file=sys.stderr)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
