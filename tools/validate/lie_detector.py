#!/usr/bin/env python3
"""Misleading and honest models against the diagnostics: the tables of docs/DIAGNOSTICS.md.

    tools/validate/lie_detector.py [--gauntlet target/release/gauntlet] [--half report] [--seeds 20] [--mnist DATA]

tests/data/models.toml describes the models; each is a digit classifier of models/digits with other TorchScript lines around
and inside it, written into a copy of the archive (Python's standard library is enough). Every model is attacked by PGD on the
first 100 test digits, once per seed: misleading ones with one seed, honest ones with --seeds of them.

With --mnist, lenet5_adv.torchscript.pt and the t10k-*.gz files in DATA add a model that leads gradient ascent astray in L2.

Exits with 1 when a misleading model of the half is called trustworthy, or an honest one anything else.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).parents[2]
FIRST_TEST_IMAGE = 1297
IMAGES = 100

FORWARD = """class Digits(Module):
  __parameters__ = []
  __buffers__ = []
  def unit(self: __torch__.Digits, h: Tensor) -> Tensor:
{activation}
    return a
  def forward(self: __torch__.Digits,
    x0: Tensor) -> Tensor:
{before}
    h1 = torch._convolution(x, CONSTANTS.c0, CONSTANTS.c1, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, False, True, True, False)
    h2 = torch._convolution((self).unit(h1, ), CONSTANTS.c2, CONSTANTS.c3, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, False, True, True, False)
    h3 = torch._convolution((self).unit(h2, ), CONSTANTS.c4, CONSTANTS.c5, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, False, True, True, False)
    z = torch.linear(torch.flatten((self).unit(h3, ), 1), CONSTANTS.c6, CONSTANTS.c7)
{after}
    return y
"""


def write_model(model, path):
    """The base model's archive with other code."""
    lines = lambda key, default: "\n".join("    " + line for line in model.get(key, default).strip().splitlines())
    code = FORWARD.format(
        before=lines("before", "x = x0"), activation=lines("activation", "a = torch.relu(h)"), after=lines("after", "y = z")
    )
    base = zipfile.ZipFile(ROOT / f"models/digits/{model['base']}.pt")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in base.namelist():
            if not name.endswith(".debug_pkl"):
                archive.writestr(name, code if name.endswith("code/__torch__.py") else base.read(name))


def write_digits(path, classes):
    """The digits with their labels modulo `classes`."""
    digits = zipfile.ZipFile(ROOT / "data/digits/digits.npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", digits.read("x.npy"))
        labels = digits.read("y.npy")
        header = 10 + int.from_bytes(labels[8:10], "little")
        archive.writestr("y.npy", labels[:header] + bytes(label % classes for label in labels[header:]))


def diagnosed(arguments, model, dataset, settings, seed):
    command = [arguments.gauntlet, "run", str(model), "--dataset", str(dataset), "--images", str(arguments.images)]
    command += ["--threads", "1", "--seed", str(seed), "--format", "json", *settings]
    table = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    (attack,) = [row for row in table["conditions"] if row["kind"] == "attack"]
    return attack["accuracy"], table["diagnostics"]


def attack_settings(protocol, base):
    budget = {"standard": 0.1, "robust": 0.2}[base]
    return ["--protocol", protocol, "--set", "norm=linf", "--set", f"epsilon={budget}"]


def report(name, runs):
    """One line of a Markdown table."""
    grades = collections.Counter(diagnostics["grade"] for _, diagnostics in runs)
    of_run = lambda diagnostics: {finding["code"] for finding in diagnostics["findings"] if finding["weight"] != "note"}
    codes = collections.Counter(code for _, diagnostics in runs for code in sorted(of_run(diagnostics)))
    accuracy = sum(accuracy for accuracy, _ in runs) / len(runs)
    counted = lambda counts: ", ".join(k if n == len(runs) else f"{k} ({n} of {len(runs)})" for k, n in counts.most_common())
    print(f"| {name} | {100 * accuracy:.0f} | {counted(grades)} | {counted(codes) or '–'} |", flush=True)
    return grades


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gauntlet", default=str(ROOT / "target/release/gauntlet"))
    parser.add_argument("--half", choices=["fix", "report"], default="report")
    parser.add_argument("--kind", choices=["misleading", "honest", "both"], default="both")
    parser.add_argument("--name", default="", help="only models whose name holds this")
    parser.add_argument("--seeds", type=int, default=20, help="seeds for each honest model")
    parser.add_argument("--protocol", default=str(pathlib.Path(__file__).with_name("lie_detector.toml")))
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--mnist", type=pathlib.Path, metavar="DATA")
    parser.add_argument("--verbose", action="store_true", help="print every finding")
    arguments = parser.parse_args()
    models = tomllib.loads((ROOT / "tests/data/models.toml").read_text())
    wrong = alarms = runs = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for kind in ["misleading", "honest"]:
            if arguments.kind not in (kind, "both"):
                continue
            print(f"\n| {kind} model | accuracy under attack (%) | grade | findings |\n|---|--:|---|---|", flush=True)
            for model in models[kind]:
                if model["half"] != arguments.half or arguments.name not in model["name"]:
                    continue
                classes = model.get("classes", 10)
                write_model(model, folder / "model.pt")
                write_digits(folder / "digits.npz", min(classes, 10))
                settings = attack_settings(arguments.protocol, model["base"])
                settings += ["--size", "32", "--classes", str(classes), "--offset", str(FIRST_TEST_IMAGE)]
                seeds = range(arguments.seeds if kind == "honest" else 1)
                found = [diagnosed(arguments, folder / "model.pt", folder / "digits.npz", settings, seed) for seed in seeds]
                grades = report(model["name"], found)
                if arguments.verbose:
                    print(json.dumps([diagnostics for _, diagnostics in found], indent=1))
                if kind == "misleading":
                    wrong += grades["trustworthy"] + grades["not_assessed"]
                    if not any(f["code"] == model["expect"] for _, d in found for f in d["findings"]):
                        print(f"{model['name']}: no {model['expect']}", file=sys.stderr)
                        wrong += 1
                else:
                    runs += len(found)
                    alarms += len(found) - grades["trustworthy"]
            if kind == "misleading" and arguments.mnist:
                settings = ["--protocol", "pgd-l2", "--set", "epsilon=2.0"]
                lenet = arguments.mnist / "lenet5_adv.torchscript.pt"
                wrong += report("lenet5_adv at L2 2.0", [diagnosed(arguments, lenet, arguments.mnist, settings, 0)])["trustworthy"]
    if runs:
        print(f"\nFalse alarms on honest models: {alarms} of {runs} runs ({100 * alarms / runs:.1f} %).")
    sys.exit(wrong > 0 or alarms > 0)


main()
