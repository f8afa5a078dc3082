#!/usr/bin/env python3
"""Times the fastest maintained Python package beside the Rust kernels: same picture, same machine, one thread each.

    pip install imagecorruptions-imaug==1.1.5 numpy==2.4.6 scipy==1.17.1 scikit-image==0.26.0 \
        opencv-python==5.0.0.93 Pillow==13.0.0 numba==0.68.1 "setuptools<70"
    python tools/bench/corruptions.py [--min-time 0.3] [--rust "cargo bench --bench corruptions --"] > report.json

Rust runs before and after Python, and the slower of its two figures counts. A cell is the fastest of repeated calls
after one to warm up, on both sides: other work on the machine can only add. Prints the cells with value (Rust, ms), rival
(Python, ms) and ratio, and a summary.
"""
import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"
import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import cv2
import imagecorruptions
import numba
import numpy as np
import PIL
import scipy
import skimage
from PIL import Image

PICTURE = Path(__file__).resolve().parents[2] / "tests/data/corruption/astronaut-224.png"


def rust(command):
    out = subprocess.run([*shlex.split(command), str(PICTURE)], check=True, stdout=subprocess.PIPE).stdout
    return {cell["id"]: cell["value"] for cell in json.loads(out)["cells"]}


def fastest(call, min_time):
    call()
    times, end = [], time.perf_counter() + min_time
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--min-time", type=float, default=.3, help="seconds per cell")
    parser.add_argument("--rust", default="cargo bench --quiet --bench corruptions --")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    picture = np.asarray(Image.open(PICTURE).convert("RGB")).copy()
    before = rust(options.rust)
    rival = {}
    for cell in before:
        name, severity = cell.rsplit("-", 1)
        np.random.seed(int(severity))
        rival[cell] = fastest(lambda: imagecorruptions.corrupt(picture, severity=int(severity), corruption_name=name),
                              options.min_time)
        print(f"{cell}: {rival[cell]:.3f} ms", file=sys.stderr)
    after = rust(options.rust)
    value = {cell: max(before[cell], after[cell]) for cell in before}
    cells = [{"id": c, "value": value[c], "unit": "ms", "rival": rival[c], "ratio": rival[c] / value[c]} for c in before]
    ratios = sorted(c["ratio"] for c in cells)
    summary = {
        "total_ms": sum(value.values()), "rival_total_ms": sum(rival.values()),
        "total_ratio": sum(rival.values()) / sum(value.values()), "median_ratio": statistics.median(ratios),
        "smallest_ratio": ratios[0],
        "rival": {"package": "imagecorruptions-imaug", "python": platform.python_version(), "numpy": np.__version__,
                  "scipy": scipy.__version__, "scikit-image": skimage.__version__, "opencv": cv2.__version__,
                  "pillow": PIL.__version__, "numba": numba.__version__},
    }
    print(json.dumps({"bench": "corruptions", "cells": cells, "summary": summary}, indent=1))


if __name__ == "__main__":
    main()
