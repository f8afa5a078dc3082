"""Writes tests/data/pipeline/: small images, and the pixels that Pillow and torchvision's geometry make of them.

    pip install pillow==12.3.0 numpy==2.4.6
    python tools/golden/pipeline.py

`<name>.rgb` holds [28, 28, 3] bytes: open, convert("RGB"), short side to 32 (antialiased bilinear), centre crop 28.
"""

from pathlib import Path

import numpy as np
from PIL import Image

folder = Path(__file__).parents[2] / "tests/data/pipeline"
folder.mkdir(parents=True, exist_ok=True)

y, x = np.mgrid[0:45, 0:61]
rgb = np.stack([128 + 100 * np.sin(x / 5), 128 + 100 * np.cos(y / 4), 2 * x + 2 * y], -1).clip(0, 255).astype(np.uint8)
photo = Image.fromarray(rgb)
alpha = Image.fromarray(np.dstack([rgb, (x * 4).astype(np.uint8)]))
tall = photo.transpose(Image.Transpose.TRANSPOSE)

photo.save(folder / "rgb.png")
tall.save(folder / "tall.png")
alpha.save(folder / "alpha.png")
photo.convert("L").save(folder / "grey.png")
photo.quantize(16).save(folder / "palette.png")
photo.save(folder / "subsampled.jpg", quality=90, subsampling="4:2:0")
photo.save(folder / "full.jpg", quality=90, subsampling="4:4:4")

for path in [*folder.glob("*.png"), *folder.glob("*.jpg")]:
    image = Image.open(path).convert("RGB")
    width, height = image.size
    short = min(width, height)
    image = image.resize((int(32 * width / short), int(32 * height / short)), Image.Resampling.BILINEAR)
    width, height = image.size
    left, top = round((width - 28) / 2), round((height - 28) / 2)
    path.with_suffix(".rgb").write_bytes(image.crop((left, top, left + 28, top + 28)).tobytes())
