#!/usr/bin/env bash
# On a GPU machine whose python3 has PyTorch 2.11: does corrupting on the processor keep up with a ResNet-50 on the GPU?
#   scripts/gpu/corruptions.sh [gauntlet binary] [images, at least 16]      results also go to $OUT, if set; GAUNTLET_DEVICE=cpu tries it without a GPU
# Compares verdicts per second of `imagenet-c` (75 corrupted cells) with those of `clean` on the same images, each less the time that a run
# of 16 images takes. At a ratio near 1 the model never waits. The binary is built elsewhere (`cargo build --release`, stripped) and finds
# libtorch, CUDA half included, in PyTorch's own folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
gauntlet=${1:-target/release/gauntlet}
images=${2:-512}
library=$(python3 -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")' 2>/dev/null || echo .libtorch/lib)
export LD_LIBRARY_PATH=$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} GAUNTLET_DEVICE=${GAUNTLET_DEVICE:-cuda}
out=${OUT:-$(mktemp -d)}
"$gauntlet" bench corruption-rate --json >"$out/rate.json"

python3 tools/bench/resnet.py 50 "$out/resnet50.pt"
python3 - "$out" "$images" <<'PY'
import sys, numpy, torch
out, images = sys.argv[1], int(sys.argv[2])

smooth = torch.nn.functional.interpolate(torch.rand(images, 3, 28, 28), size=224, mode="bilinear")
pixels = (smooth * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
numpy.savez(f"{out}/images.npz", x=pixels, y=numpy.arange(images, dtype=numpy.int64) % 1000)
PY

run() { # protocol images seeds… ; prints seconds
  local start seeds=()
  for seed in "${@:3}"; do seeds+=(--seed "$seed"); done
  start=$(date +%s.%N)
  "$gauntlet" run "$out/resnet50.pt" --dataset "$out/images.npz" --classes 1000 --preset imagenet --protocol "$1" --images "$2" \
    "${seeds[@]}" --format json >"$out/$1.json" 2>"$out/$1.log" || { cat "$out/$1.log" >&2; return 1; }
  python3 -c "import time; print(time.time() - $start)"
}
start=$(run clean 16 0)
# Many seeds of a deterministic model: as many clean verdicts as there are corrupted ones.
clean=$(run clean "$images" $(seq 0 75))
corrupted=$(run imagenet-c "$images" 0)
python3 - "$out" "$images" "$start" "$clean" "$corrupted" <<'PY'
import json, sys
out, images, start, clean, corrupted = sys.argv[1], *map(float, sys.argv[2:])
table = json.load(open(f"{out}/imagenet-c.json"))
rates = {name: 76 * images / (seconds - start) for name, seconds in [("clean", clean), ("imagenet-c", corrupted)]}
print(json.dumps({
    "verdicts_per_second": rates, "ratio": rates["imagenet-c"] / rates["clean"], "cpu_time": table["provenance"]["cpu_time"],
    "profile": table["provenance"]["profile"], "corruption_rate": json.load(open(f"{out}/rate.json")),
}, indent=1))
PY
