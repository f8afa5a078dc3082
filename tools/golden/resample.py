"""Writes tests/data/resample.json: SHA-256 of Pillow's resampling of generated images.

    pip install pillow==12.3.0 numpy==2.4.6
    python tools/golden/resample.py

The input is a formula, so that the test can make it again: with i the byte's index in the interleaved image,
byte = ((i * 2654435761 + seed * 97) mod 2^32) >> 24, a sequence whose neighbours lie far apart: every tap matters.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

CASES = [  # height, width, height', width', channels
    (512, 512, 256, 256, 3),
    (300, 451, 256, 384, 3),
    (451, 300, 384, 256, 3),
    (8, 8, 32, 32, 1),
    (375, 500, 256, 341, 3),
    (97, 31, 13, 101, 3),
    (7, 5, 3, 11, 1),
    (224, 224, 134, 134, 3),
    (134, 134, 224, 224, 3),
    (224, 224, 56, 56, 3),
    (33, 33, 32, 32, 1),
    (1, 9, 5, 1, 3),
]
FILTERS = {"box": Image.Resampling.BOX, "bilinear": Image.Resampling.BILINEAR}


def noise(height, width, channels, seed):
    i = np.arange(height * width * channels, dtype=np.uint64)
    bytes_ = (((i * 2654435761 + seed * 97) & 0xFFFFFFFF) >> 24).astype(np.uint8)
    return bytes_.reshape((height, width, channels) if channels > 1 else (height, width))


cases = []
for seed, (h, w, oh, ow, channels) in enumerate(CASES):
    image = Image.fromarray(noise(h, w, channels, seed))
    for name, code in FILTERS.items():
        out = np.asarray(image.resize((ow, oh), code))
        cases.append(
            {"seed": seed, "from": [h, w], "to": [oh, ow], "channels": channels, "filter": name,
             "sha256": hashlib.sha256(out.tobytes()).hexdigest()}
        )

made_with = {"pillow": PIL.__version__, "numpy": np.__version__}
lines = ",\n  ".join(json.dumps(case) for case in cases)
text = f'{{"made_with": {json.dumps(made_with)}, "cases": [\n  {lines}\n]}}\n'
Path(__file__).parents[2].joinpath("tests/data/resample.json").write_text(text)
