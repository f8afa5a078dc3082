#!/usr/bin/env python3
"""Golden references of the nineteen ImageNet-C corruptions, made by the original Python package.

Pins (Python 3.11; the libMagickWand of ImageMagick 6.9.11-60 Q16 from Debian 12):
    pip install numpy==1.26.4 scipy==1.11.4 scikit-image==0.20.0 opencv-python-headless==4.9.0.80 \
        Pillow==10.4.0 wand==0.6.13 pooch "setuptools<70"
    pip install --no-deps --no-build-isolation imagenet-c==0.0.3

Usage: corruptions.py OUT_DIR RAW_DIR
    OUT_DIR (tests/data/corruption) receives `reference.txt` (one line per cell: table, image, corruption, severity,
    NumPy seed, first 16 hex digits of the SHA-256 of the output bytes) and the natural pictures as PNG.
    RAW_DIR receives the output bytes themselves, for `cargo test --test corruption_golden -- --ignored`, which records the
    bytes in which the Rust kernels differ.

What runs is the package's own code. Its functions know one parameter table (224 pixels); for the other tables the row and
the image side are exchanged in the syntax tree, and everything else stays as published. The generator scripts of the 299,
64 and 32 pixel data sets were not run. Three things are exchanged in every run:
  * `gaussian(multichannel=True)` is spelled `channel_axis=-1`, as scikit-image 0.19 and later ask for;
  * salt-and-pepper noise draws from NumPy's legacy generator, as scikit-image 0.13 (the pin of 2018) did;
  * frost pictures are made by the formula `frost_picture`, because the published ones are not ours to pass on.
"""
import ast
import hashlib
import inspect
import io
import os
import platform
import sys
import textwrap
import warnings
from pathlib import Path

# NumPy's exponential in AVX-512 rounds otherwise than the C library's; flat and ramp images tell the two apart.
os.environ["NPY_DISABLE_CPU_FEATURES"] = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
warnings.simplefilter("ignore")
import cv2
import numpy as np
import scipy
import skimage
import skimage.data
from imagenet_c import corruptions as package
from PIL import Image

cv2.setNumThreads(1)
a = np.arange

TABLES = {
    224: None,  # the package's own
    299: dict(
        gaussian_noise=[.09, .13, .19, .27, .40], shot_noise=[50, 20, 10, 5, 3], impulse_noise=[.04, .07, .10, .18, .28],
        speckle_noise=[.16, .21, .36, .46, .61], gaussian_blur=[1.5, 2.5, 3.5, 4.5, 6.5],
        defocus_blur=[(4, .1), (5, .5), (7, .5), (10, .5), (12, .5)],
        glass_blur=[(.8, 1, 3), (1, 3, 1), (1.1, 2, 4), (1.2, 4, 2), (1.6, 5, 2)],
        motion_blur=[(12, 4), (17, 6), (17, 9), (17, 13), (22, 16)],
        zoom_blur=[a(1, 1.11, .01), a(1, 1.16, .01), a(1, 1.21, .02), a(1, 1.26, .02), a(1, 1.31, .03)],
        fog=[(1.5, 2), (2, 2), (2.5, 1.8), (2.5, 1.6), (3, 1.5)],
        frost=[(1, .4), (.8, .6), (.7, .7), (.65, .7), (.6, .75)],
        snow=[(.1, .3, 3, .5, 10, 4, .8), (.2, .3, 2, .5, 12, 4, .7), (.55, .3, 4, .9, 12, 8, .7),
              (.55, .3, 4.5, .85, 12, 8, .65), (.55, .3, 2.5, .85, 12, 12, .55)],
        spatter=[(.65, .3, 4, .69, .9, 0), (.65, .3, 3.5, .68, .9, 0), (.65, .3, 3, .68, .8, 0),
                 (.65, .3, 1.2, .65, 1.8, 1), (.67, .4, 1.2, .65, 1.8, 1)],
        contrast=[.4, .3, .2, .1, .05], brightness=[.1, .2, .3, .4, .5],
        saturate=[(.3, 0), (.1, 0), (2, 0), (5, .1), (20, .2)], jpeg_compression=[23, 16, 13, 8, 5],
        pixelate=[.5, .4, .3, .25, .2],
        elastic_transform=[tuple(360 * f for f in row) for row in
                           [(2, .7, .1), (2, .08, .2), (.05, .01, .02), (.07, .01, .02), (.12, .01, .02)]]),
    64: dict(
        gaussian_noise=[.04, .08, .12, .15, .18], shot_noise=[250, 100, 50, 30, 15], impulse_noise=[.01, .02, .05, .08, .14],
        speckle_noise=[.15, .2, .25, .3, .35], gaussian_blur=[.5, .75, 1, 1.25, 1.5],
        defocus_blur=[(.5, .6), (1, .1), (1.5, .1), (2.5, .01), (3, .1)],
        glass_blur=[(.1, 1, 1), (.5, 1, 1), (.6, 1, 2), (.7, 2, 1), (.9, 2, 2)],
        motion_blur=[(10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)],
        zoom_blur=[a(1, 1.06, .01), a(1, 1.11, .01), a(1, 1.16, .01), a(1, 1.21, .01), a(1, 1.26, .01)],
        fog=[(.4, 3), (.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)],
        frost=[(1, .3), (.9, .4), (.8, .45), (.75, .5), (.7, .55)],
        snow=[(.1, .2, 1, .6, 8, 3, .8), (.1, .2, 1, .5, 10, 4, .8), (.15, .3, 1.75, .55, 10, 4, .7),
              (.25, .3, 2.25, .6, 12, 6, .65), (.3, .3, 1.25, .65, 14, 12, .6)],
        spatter=[(.62, .1, .7, .7, .6, 0), (.65, .1, .8, .7, .6, 0), (.65, .3, 1, .69, .6, 0),
                 (.65, .1, .7, .68, .6, 1), (.65, .1, .5, .67, .6, 1)],
        contrast=[.4, .3, .2, .1, .05], brightness=[.1, .2, .3, .4, .5],
        saturate=[(.3, 0), (.1, 0), (2, 0), (5, .1), (30, .2)], jpeg_compression=[65, 58, 50, 40, 25],
        pixelate=[.9, .8, .7, .6, .5],
        elastic_transform=[tuple(64 * f for f in row) for row in
                           [(0, 0, .08), (.05, .3, .06), (.1, .08, .06), (.1, .03, .03), (.16, .03, .02)]]),
    32: dict(
        gaussian_noise=[.04, .06, .08, .09, .10], shot_noise=[500, 250, 100, 75, 50], impulse_noise=[.01, .02, .03, .05, .07],
        speckle_noise=[.06, .1, .12, .16, .2], gaussian_blur=[.4, .6, .7, .8, 1],
        defocus_blur=[(.3, .4), (.4, .5), (.5, .6), (1, .2), (1.5, .1)],
        glass_blur=[(.05, 1, 1), (.25, 1, 1), (.4, 1, 1), (.25, 1, 2), (.4, 1, 2)],
        motion_blur=[(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        zoom_blur=[a(1, 1.06, .01), a(1, 1.11, .01), a(1, 1.16, .01), a(1, 1.21, .01), a(1, 1.26, .01)],
        fog=[(.2, 3), (.5, 3), (.75, 2.5), (1, 2), (1.5, 1.75)],
        frost=[(1, .2), (1, .3), (.9, .4), (.85, .4), (.75, .45)],
        snow=[(.1, .2, 1, .6, 8, 3, .95), (.1, .2, 1, .5, 10, 4, .9), (.15, .3, 1.75, .55, 10, 4, .9),
              (.25, .3, 2.25, .6, 12, 6, .85), (.3, .3, 1.25, .65, 14, 12, .8)],
        spatter=[(.62, .1, .7, .7, .5, 0), (.65, .1, .8, .7, .5, 0), (.65, .3, 1, .69, .5, 0),
                 (.65, .1, .7, .69, .6, 1), (.65, .1, .5, .68, .6, 1)],
        contrast=[.75, .5, .4, .3, .15], brightness=[.05, .1, .15, .2, .3],
        saturate=[(.3, 0), (.1, 0), (1.5, 0), (2, .1), (2.5, .2)], jpeg_compression=[80, 65, 58, 50, 40],
        pixelate=[.95, .9, .85, .75, .65],
        elastic_transform=[tuple(32 * f for f in row) for row in
                           [(0, 0, .08), (.05, .2, .07), (.08, .06, .06), (.1, .04, .05), (.1, .03, .03)]]),
}
PLASMA = {224: 256, 299: 512, 64: 64, 32: 32}
FROST_SCALE = {224: None, 299: None, 64: .3, 32: .2}
NAMES = ["gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
         "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression", "speckle_noise",
         "gaussian_blur", "spatter", "saturate"]


def frost_picture(index):
    """Stand-in number `index`, RGB, as large as the published one."""
    height, width = [(600, 900), (315, 560), (315, 560), (350, 527), (495, 660)][index]
    y, x, c = np.meshgrid(a(height), a(width), a(3), indexing="ij")
    return ((x * (3 + index) + y * 5 + c * 40 + (x * y) // 7) % 256).astype(np.uint8)


def legacy_salt_and_pepper(image, mode, amount):
    assert mode == "s&p"
    flipped = np.random.random_sample(image.shape) < amount
    salted = np.random.random_sample(image.shape) < .5
    return np.where(flipped & salted, 1., np.where(flipped, 0., image))


class Retarget(ast.NodeTransformer):
    """Exchanges the image side, and the table row when `row` is given."""

    def __init__(self, side, row):
        self.side, self.row = side, row

    def visit_FunctionDef(self, node):
        if self.row is not None:
            at = next(i for i, s in enumerate(node.body) if isinstance(s, ast.Assign) and s.targets[0].id == "c")
            node.body[at] = ast.parse("c = __row__[severity - 1]").body[0]
        return self.generic_visit(node)

    def visit_Constant(self, node):
        return ast.copy_location(ast.Constant(self.side), node) if node.value == 224 else node


def functions(table):
    """The package's nineteen functions for one table."""
    space = dict(vars(package))
    gaussian, plasma = package.gaussian, package.plasma_fractal

    def spelled(*args, multichannel=None, **kw):
        return gaussian(*args, **({"channel_axis": -1} if multichannel else {}), **kw)

    def imread(name):
        picture = frost_picture(int(name.split("frost")[-1][0]) - 1)[..., ::-1]
        scale = FROST_SCALE[table]
        return picture if scale is None else cv2.resize(picture, (0, 0), fx=scale, fy=scale)

    class Cv2:
        def __getattr__(self, name):
            return imread if name == "imread" else getattr(cv2, name)

    class Util:
        random_noise = staticmethod(legacy_salt_and_pepper)

    class Sk:
        util, color = Util, skimage.color

    space.update(gaussian=spelled, cv2=Cv2(), sk=Sk, resource_filename=lambda _, path: path,
                 plasma_fractal=lambda wibbledecay: plasma(PLASMA[table], wibbledecay))
    made = {}
    for name in NAMES:
        row = TABLES[table][name] if TABLES[table] else None
        tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(package, name))))
        tree = ast.fix_missing_locations(Retarget(table, row).visit(tree))
        local = dict(space, __row__=row)
        exec(compile(tree, name, "exec"), local)
        made[name] = local[name]
    return made


def natural(name, side):
    """Short side to `side` (PIL bilinear), centre crop."""
    picture = Image.fromarray(getattr(skimage.data, name)())
    width, height = picture.size
    scale = side / min(width, height)
    picture = picture.resize((max(side, int(width * scale)), max(side, int(height * scale))), Image.BILINEAR)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return np.asarray(picture.crop((left, top, left + side, top + side)))


def pictures(side):
    y, x, c = np.meshgrid(a(side), a(side), a(3), indexing="ij")
    noise = np.empty(side * side * 3, np.uint8)
    value = 1
    for i in range(noise.size):
        value = (value * 6364136223846793005 + 1442695040888963407) % 2**64
        noise[i] = value >> 56
    return {
        "astronaut": natural("astronaut", side), "chelsea": natural("chelsea", side),
        "flat": np.full((side, side, 3), 200, np.uint8),
        "ramp": ((x * 255) // (side - 1) * (c == 0) + (y * 255) // (side - 1) * (c == 1)
                 + ((x + y) * 255) // (2 * side - 2) * (c == 2)).astype(np.uint8),
        "checker": np.where((x // 8 + y // 8) % 2 == 0, np.array([255, 0, 30])[c], np.array([10, 250, 90])[c]).astype(np.uint8),
        "noise": noise.reshape(side, side, 3),
    }


def jpeg(array, quality):
    """Save and load, as the published data set was written."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=quality, optimize=True)
    return np.asarray(Image.open(stream))


def main():
    out, raw = Path(sys.argv[1]), Path(sys.argv[2])
    raw.mkdir(parents=True, exist_ok=True)
    lines = [f"# python {platform.python_version()} imagenet-c 0.0.3 numpy {np.__version__} scipy {scipy.__version__} "
             f"scikit-image {skimage.__version__} opencv {cv2.__version__} pillow {Image.__version__} "
             f"{package.wandlibrary and __import__('wand.version').version.MAGICK_VERSION.split(' http')[0]}",
             "# table image corruption severity seed sha256[:16]"]

    def record(table, image, name, severity, seed, array):
        array = np.ascontiguousarray(array)
        assert array.dtype == np.uint8
        lines.append(f"{table} {image} {name} {severity} {seed} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}")
        (raw / f"{table}-{image}-{name}-{severity}.bin").write_bytes(array.tobytes())

    for table in TABLES:
        made = functions(table)
        for at, (image, array) in enumerate(pictures(table).items()):
            if table == 299 and image == "astronaut":
                continue  # one natural picture of this size is enough weight for a repository
            if at < 2:
                Image.fromarray(array).save(out / f"{image}-{table}.png", optimize=True)
            for number, name in enumerate(NAMES):
                for severity in range(1, 6):
                    seed = 1000 * number + 10 * severity + at
                    np.random.seed(seed)
                    result = made[name](Image.fromarray(array), severity)
                    record(table, image, name, severity, seed, np.uint8(result))
            record(table, image, "saved", 0, 0, jpeg(array, 85))
            crop = np.ascontiguousarray(array[3:20, 5:28])
            record(table, image, "saved_17x23", 0, 0, jpeg(crop, 85))
            record(table, image, "saved_grey", 0, 0, jpeg(np.ascontiguousarray(array[:, :, 0]), 85))
        print("table", table, "done", flush=True)
    (out / "reference.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
