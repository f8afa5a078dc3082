#!/usr/bin/env python3
"""Times the fastest maintained Python package of the ImageNet-C corruptions on one picture, one thread.

    pip install imagecorruptions-imaug==1.1.5 numpy==2.4.6 scipy==1.17.1 scikit-image==0.26.0 \
        opencv-python-headless==5.0.0.93 Pillow==13.0.0 numba==0.68.1 "setuptools<70"
    gauntlet bench corruptions --json --python PYTHON

`gauntlet bench corruptions` runs this script between two turns of its own on the same picture. Prints the milliseconds of
every cell (type-severity), the fastest of repeated calls after one to warm up, and the versions in use.
"""
import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"
import argparse
import json
import platform
import time
import warnings

warnings.simplefilter("ignore")
import cv2
import imagecorruptions
import numba
import numpy as np
import PIL
import scipy
import skimage
from PIL import Image


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
    parser.add_argument("picture")
    parser.add_argument("--min-time", type=float, default=.3, help="seconds per cell")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    picture = np.asarray(Image.open(options.picture).convert("RGB")).copy()
    cells = {}
    for name in imagecorruptions.get_corruption_names("all"):
        for severity in range(1, 6):
            np.random.seed(severity)
            cells[f"{name}-{severity}"] = fastest(
                lambda: imagecorruptions.corrupt(picture, severity=severity, corruption_name=name), options.min_time)
    versions = {"package": "imagecorruptions-imaug", "python": platform.python_version(), "numpy": np.__version__,
                "scipy": scipy.__version__, "scikit-image": skimage.__version__, "opencv": cv2.__version__,
                "pillow": PIL.__version__, "numba": numba.__version__}
    print(json.dumps({"cells": cells, "versions": versions}))


if __name__ == "__main__":
    main()
