#!/usr/bin/env python3
"""Writes a residual network with random weights as TorchScript: for measuring speed, where weights do not matter.

    tools/bench/resnet.py 18 resnet18.pt           # for 32×32 images (3×3 stem, no pooling at the start), 10 classes; needs torch
    tools/bench/resnet.py 50 resnet50.pt           # for 224×224 images, 1000 classes
    gauntlet bench attacks --json --untrained resnet18.pt
"""
import sys

import torch
from torch import nn


def convolution(before, after, kernel, stride=1):
    return [nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)]


class Residual(nn.Module):
    def __init__(self, before, after, stride, way):
        super().__init__()
        self.way = nn.Sequential(*way)
        changes = stride > 1 or before != after
        self.past = nn.Sequential(*convolution(before, after, 1, stride)) if changes else nn.Identity()

    def forward(self, x):
        return torch.relu(self.way(x) + self.past(x))


def basic(before, width, stride):
    way = [*convolution(before, width, 3, stride), nn.ReLU(), *convolution(width, width, 3)]
    return width, Residual(before, width, stride, way)


def bottleneck(before, width, stride):
    after = 4 * width
    way = [*convolution(before, width, 1), nn.ReLU(), *convolution(width, width, 3, stride), nn.ReLU(), *convolution(width, after, 1)]
    return after, Residual(before, after, stride, way)


def resnet(depth):
    block, counts, classes, side = {18: (basic, [2, 2, 2, 2], 10, 32), 50: (bottleneck, [3, 4, 6, 3], 1000, 224)}[depth]
    if depth == 18:
        layers = [*convolution(3, 64, 3), nn.ReLU()]
    else:
        layers = [*convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for count, width in zip(counts, [64, 128, 256, 512]):
        for at in range(count):
            before, layer = block(before, width, 2 if at == 0 and width > 64 else 1)
            layers.append(layer)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)).eval(), side


if __name__ == "__main__":
    torch.manual_seed(0)
    model, side = resnet(int(sys.argv[1]))
    torch.jit.trace(model, torch.rand(2, 3, side, side)).save(sys.argv[2])
