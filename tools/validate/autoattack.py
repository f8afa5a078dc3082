#!/usr/bin/env python3
"""AutoAttack on LeNet5 / MNIST against the reference implementation: the table of docs/VALIDATION.md.

    tools/validate/autoattack.py DATA [--gauntlet target/release/gauntlet] [--threads 1] [--norm linf] [--checkout DIR]

DATA holds t10k-{images,labels}-idx*-ubyte.gz, lenet5_adv.torchscript.pt and reference_autoattack.json, which says how many of
the first images stand after each stage of the implementation of Croce and Hein. With --checkout, that implementation (a
checkout of fra31/auto-attack; needs torch) is run on the same images instead of reading its results; this takes long.

Exits with 1 when Gauntlet leaves more than three images more standing after the first stage, or more than one more at the end.
"""

import argparse
import gzip
import json
import pathlib
import subprocess
import sys
import time

IMAGES = 300
STAGES = ["apgd-ce", "apgd-t", "fab-t", "square"]


def ours(arguments, norm, epsilon):
    """Images standing at first and after each stage, and the passes of one image in the mean."""
    command = [arguments.gauntlet, "run", str(arguments.data / "lenet5_adv.torchscript.pt")]
    command += ["--dataset", str(arguments.data), "--protocol", "autoattack-standard", "--images", str(IMAGES)]
    command += ["--threads", str(arguments.threads), "--seed", str(arguments.seed), "--format", "json"]
    command += ["--set", f"norm={norm}", "--set", f"epsilon={epsilon}"]
    rows = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["conditions"]
    (row,) = [row for row in rows if row["kind"] == "attack"]
    broken = {stage["attack"]: stage["broken"] for stage in row["stages"]}
    standing = [row["n"] - broken.get("clean", 0)]
    for stage in STAGES:
        standing.append(standing[-1] - broken.get(stage, 0))
    assert standing[-1] == row["correct"], row
    return standing, (row["forwards_per_image"], row["backwards_per_image"])


def recorded(arguments, norm, epsilon):
    """The same from the file of reference results."""
    runs = json.loads((arguments.data / "reference_autoattack.json").read_text())["runs"]
    (run,) = [run for run in runs if (run["norm"], run["epsilon"]) == (norm, epsilon)]
    return [round(IMAGES * share) for share in [run["clean"], *(stage["robust"] for stage in run["stages"])]]


def from_checkout(arguments, norm, epsilon):
    """The same from running the reference implementation, stage by stage on the images still standing."""
    sys.path.insert(0, str(arguments.checkout))
    import torch
    from autoattack import AutoAttack

    torch.set_num_threads(arguments.threads)
    pixels = gzip.open(arguments.data / "t10k-images-idx3-ubyte.gz").read()[16 : 16 + IMAGES * 784]
    labels = gzip.open(arguments.data / "t10k-labels-idx1-ubyte.gz").read()[8 : 8 + IMAGES]
    images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(IMAGES, 1, 28, 28).float() / 255
    labels = torch.tensor(list(labels))
    model = torch.jit.load(str(arguments.data / "lenet5_adv.torchscript.pt"), map_location="cpu").eval()
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    adversary = AutoAttack(model, norm=name, eps=epsilon, version="standard", seed=arguments.seed, device="cpu")

    def right(batch, classes):
        with torch.no_grad():
            return model(batch).argmax(1) == classes

    standing = right(images, labels)
    counts = [int(standing.sum())]
    for stage in STAGES:
        adversary.attacks_to_run = [stage]
        index = standing.nonzero().squeeze(1)
        found = adversary.run_standard_evaluation(images[index], labels[index], bs=100)
        standing[index] = right(found, labels[index])
        counts.append(int(standing.sum()))
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--gauntlet", default="target/release/gauntlet")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--norm", choices=["linf", "l2"], help="only this threat model")
    parser.add_argument("--checkout", type=pathlib.Path)
    arguments = parser.parse_args()

    print("| norm | ε | | clean | " + " | ".join(STAGES) + " | forwards | backwards | time |")
    print("|---|---|---|---|" + "---|" * (len(STAGES) + 3), flush=True)
    failures = []
    for norm, epsilon in [("linf", 0.3), ("l2", 2.0)]:
        if arguments.norm not in (None, norm):
            continue
        theirs = from_checkout(arguments, norm, epsilon) if arguments.checkout else recorded(arguments, norm, epsilon)
        start = time.monotonic()
        standing, (forwards, backwards) = ours(arguments, norm, epsilon)
        seconds = time.monotonic() - start
        print(f"| {norm} | {epsilon} | reference | " + " | ".join(map(str, theirs)) + " | | | |")
        print(f"| {norm} | {epsilon} | Gauntlet | " + " | ".join(map(str, standing))
              + f" | {forwards:.0f} | {backwards:.0f} | {seconds:.0f} s |", flush=True)
        if standing[1] > theirs[1] + 3:
            failures.append(f"{norm}: {standing[1]} images stand after {STAGES[0]}, reference {theirs[1]}")
        if standing[-1] > theirs[-1] + 1:
            failures.append(f"{norm}: {standing[-1]} images stand at the end, reference {theirs[-1]}")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
