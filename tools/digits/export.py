"""Writes data/digits/digits.npz: the UCI handwritten digits from scikit-learn's package copy.

    pip install scikit-learn==1.9.1 numpy==2.4.6
    python tools/digits/export.py
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
x = np.round(digits.images * 255 / 16).astype(np.uint8)  # the values are counts, 0 to 16
y = digits.target.astype(np.uint8)
assert x.shape == (1797, 8, 8) and digits.images.max() == 16
np.savez_compressed(Path(__file__).parents[2] / "data/digits/digits.npz", x=x, y=y)
