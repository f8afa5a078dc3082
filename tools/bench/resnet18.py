#!/usr/bin/env python3
"""Writes a ResNet-18 for 32×32 images (3×3 stem, no pooling at the start) with random weights as TorchScript.

    tools/bench/resnet18.py resnet18.pt            # needs torch
    gauntlet bench attacks --json --efficiency resnet18.pt

For `gauntlet bench attacks`, which measures how much of its time the engine spends in the model.
"""
import sys

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.one, self.two = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm_one, self.norm_two = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.skip = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        inside = torch.relu(self.norm_one(self.one(x)))
        return torch.relu(self.norm_two(self.two(inside)) + self.skip(x))


def resnet18(classes=10):
    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    before = 64
    for after, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
        layers += [Block(before, after, stride), Block(after, after, 1)]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.jit.script(resnet18().eval()).save(sys.argv[1])
