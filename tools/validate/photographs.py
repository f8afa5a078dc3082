#!/usr/bin/env python3
"""A 224-pixel model of 1,000 classes that knows a folder of photographs, for trials of the corruption protocols.

    tools/validate/photographs.py FOLDER MODEL.pt

FOLDER holds JPEG files whose names begin with WordNet ids. The model describes an image by what it has in each cell of a 4×4 grid: mean
colour, and the logarithm of the energy of its fine structure. Logits are minus the squared distance from each photograph's description;
classes without a photograph get −10⁴. It classifies the photographs themselves without error, so that what a table loses is lost to the
corruptions. Needs PyTorch and Pillow.
"""

import pathlib
import sys

import numpy
import torch
from PIL import Image


class Templates(torch.nn.Module):
    def __init__(self, templates, classes):
        super().__init__()
        self.register_buffer("templates", templates)
        self.register_buffer("classes", classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        fine = torch.nn.functional.avg_pool2d(x, 2)
        coarse = torch.nn.functional.avg_pool2d(fine, 5, stride=1, padding=2, count_include_pad=False)
        energy = torch.log(torch.nn.functional.avg_pool2d((fine - coarse) ** 2, 28) + 1e-5)
        return torch.cat([10 * torch.nn.functional.avg_pool2d(x, 56).flatten(1), energy.flatten(1)], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        distances = torch.cdist(self.features(x), self.templates)
        logits = torch.full([x.shape[0], 1000], -1e4, device=x.device)
        return logits.index_copy(1, self.classes, -distances * distances)



def photograph(path):
    image = Image.open(path).convert("RGB")
    short = min(image.size)
    image = image.resize([int(256 * side / short) for side in image.size], Image.BILINEAR)
    left, top = [round((side - 224) / 2) for side in image.size]
    pixels = numpy.asarray(image.crop((left, top, left + 224, top + 224)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def main():
    folder, out = map(pathlib.Path, sys.argv[1:])
    synsets = (pathlib.Path(__file__).parents[2] / "data/imagenet/synsets.txt").read_text().split("\n")
    classes = {line.split(" ")[0]: number for number, line in enumerate(synsets)}
    files = sorted(folder.glob("*.JPEG"))
    labels = [classes[file.name.split("_")[0]] for file in files]
    blank = Templates(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    templates = blank.features(torch.stack([photograph(file) for file in files]))
    torch.jit.script(Templates(templates, torch.tensor(labels))).save(str(out))


if __name__ == "__main__":
    main()
