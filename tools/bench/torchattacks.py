#!/usr/bin/env python3
"""torchattacks as the rival of `gauntlet bench attacks`.

    pip install torch==2.11.0 torchattacks==3.5.1
    gauntlet bench attacks --json --data DIR --python PYTHON

`gauntlet bench attacks` starts this script and asks line by line, so that both sides take turns on the same machine. A request
is {"model": TorchScript file, "images": file of uint8 pixels, "shape": [n, c, h, w], "labels": [...], "threads": t, "device": "cpu" |
"cuda", "tf32": bool, "attack": "pgd" | "autoattack", "norm": "linf" | "l2", "epsilon": e, "steps": s, "queries": q}; the answer
{"seconds", "cpu_seconds", "standing"}.

Parameters are frozen, which torchattacks does not ask for and which can only help it; all images go in one batch.
"""
import json
import sys
import time

import torch
import torchattacks


def attack(model, request, classes):
    norm, epsilon, steps, queries = (request[key] for key in ("norm", "epsilon", "steps", "queries"))
    if request["attack"] == "pgd":
        kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
        return kind(model, eps=epsilon, alpha=epsilon / 4, steps=steps, random_start=False)
    name = {"linf": "Linf", "l2": "L2"}[norm]
    return torchattacks.MultiAttack([
        torchattacks.APGD(model, norm=name, eps=epsilon, steps=steps, loss="ce"),
        torchattacks.APGDT(model, norm=name, eps=epsilon, steps=steps, n_classes=classes),
        torchattacks.FAB(model, norm=name, eps=epsilon, steps=steps, multi_targeted=True, n_classes=classes),
        torchattacks.Square(model, norm=name, eps=epsilon, n_queries=queries, resc_schedule=False),
    ])


def answer(request):
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = request["tf32"]
    pixels = bytearray(open(request["images"], "rb").read())
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(request["shape"]).to(request["device"]).float() / 255
    labels = torch.tensor(request["labels"], device=request["device"])
    model = torch.jit.load(request["model"], map_location=request["device"]).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for _ in range(3):  # TorchScript compiles in its first calls.
        warm = images[:8].clone().requires_grad_(True)
        torch.autograd.grad(model(warm).sum(), [warm])
    classes = model(images[:1]).shape[1]
    adversary = attack(model, request, classes)
    finish = torch.cuda.synchronize if request["device"] == "cuda" else lambda: None
    finish()
    wall, processor = time.perf_counter(), time.process_time()
    found = adversary(images, labels)
    finish()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - processor
    with torch.no_grad():
        standing = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(found.split(256), labels.split(256)))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "standing": standing}


def main():
    print(json.dumps({"torch": torch.__version__, "torchattacks": torchattacks.__version__}), flush=True)
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
