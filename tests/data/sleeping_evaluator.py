#!/usr/bin/env python3
"""An evaluator that sleeps instead of computing, for measuring the queue: `gauntlet worker` speaks to it as to any other.

Every image is read correctly. A shard takes SECONDS, written beside this file's copy in `seconds`; a shard whose first image's
number is odd takes half as much again if `uneven` lies there too. While `lost` lies there, the device is gone: no evaluator starts, and
a shard that runs fails. While `faulty` lies there, only shards fail.
"""

import json
import pathlib
import socket
import struct
import time

HERE = pathlib.Path(__file__).resolve().parent
SECONDS = float((HERE / "seconds").read_text())
UNEVEN = (HERE / "uneven").exists()
PLATFORM = {"device": "cpu", "hardware": "sleeper", "libtorch": "none"}
LOST, FAULTY = HERE / "lost", HERE / "faulty"
line = socket.socket(fileno=3)


def take(length):
    data = bytearray()
    while len(data) < length:
        part = line.recv(min(length - len(data), 1 << 20))
        if not part:
            raise SystemExit
        data += part
    return bytes(data)


def say(nonce, reply):
    header = json.dumps({"nonce": nonce, **reply}).encode()
    line.sendall(struct.pack("<IQ", len(header), 0) + header)


def shard(call):
    first, labels = call["first_image"], call["labels"]
    seconds = SECONDS * (1.5 if UNEVEN and first % 2 else 1.0)
    cells = len(labels) * len(call["conditions"])
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.5))
        if LOST.exists():
            break
        say(call["nonce"], {"reply": "progress", "verdicts": int(cells * (1 - max(0, end - time.monotonic()) / seconds))})
    verdict = lambda place, label: {
        "image": first + place, "label": label, "predicted": label, "robust": True, "stage": None,
        "l1": 0.0, "l2": 0.0, "linf": 0.0, "forwards": 1, "backwards": 0,
    }
    verdicts = [verdict(place, label) for place, label in enumerate(labels)]
    return {
        "reply": "done", "verdicts": [verdicts for _ in call["conditions"]], "witnesses": [],
        "signs": [{} for _ in call["conditions"]], "time": {"total": 0.0, "corruption": 0.0},
    }


profile = {**PLATFORM, "batch": 32, "threads": 1, "memory_format": "channels_first"}
while True:
    header_length, payload_length = struct.unpack("<IQ", take(12))
    call = json.loads(take(header_length))
    take(payload_length)
    match call["request"]:
        case "start" if LOST.exists():
            reply = {"reply": "failed", "code": "no_device", "detail": "CUDA is not available"}
        case "start":
            reply = {"reply": "started", "platform": PLATFORM, "sandbox": "off"}
        case "load":
            profile = call["profile"] or profile
            reply = {"reply": "loaded", "profile": profile}
        case "probe":
            # So slow that shards are as small as they come.
            reply = {"reply": "probed", "findings": [], "seconds_per_forward": 1000.0}
        case "shard":
            reply = None if FAULTY.exists() else shard(call)
            if reply is None or LOST.exists():
                reply = {"reply": "failed", "code": "device_failed", "detail": "CUDA error: device-side assert triggered"}
        case other:
            reply = {"reply": "failed", "code": "bad_request", "detail": other}
    say(call["nonce"], reply)
