#!/usr/bin/env bash
# On a GPU machine whose python3 has PyTorch 2.11: attacks on a ResNet-18 (32×32) and a ResNet-50 (224×224) with random weights, with the search
# in float32, TF32 and bfloat16, against torchattacks where python3 has it; and where the rest of the time goes.
#   scripts/gpu/attacks.sh [gauntlet binary] [images of ResNet-18] [images of ResNet-50]      results also go to $OUT, if set; DEVICE=cpu tries it
#   without a GPU
# The binary is built elsewhere (`cargo build --release`, stripped) and finds libtorch, CUDA half included, in PyTorch's own folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
gauntlet=${1:-target/release/gauntlet}
library=$(python3 -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")' 2>/dev/null || echo .libtorch/lib)
export LD_LIBRARY_PATH=$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
out=${OUT:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rival=()
python3 -c 'import torchattacks' 2>/dev/null && rival=(--python python3)
bench() { # depth side classes images
  python3 tools/bench/resnet.py "$1" "$work/resnet$1.pt"
  "$gauntlet" bench attacks --json --untrained "$work/resnet$1.pt" --side "$2" --classes "$3" --images "$4" --device "${DEVICE:-cuda}" \
    "${rival[@]}" >"$out/attacks-resnet$1.json"
  python3 - "$out/attacks-resnet$1.json" <<'PY'
import json, sys
report = json.load(open(sys.argv[1]))
for cell in report["cells"]:
    print(f'{cell["id"]:44} {cell["value"]:12.3f} {cell["unit"]:7} {cell["rival"]:12.3f} {cell["ratio"]:8.3f}')
print(json.dumps(report["summary"]))
PY
}
bench 18 32 10 "${2:-2048}"
bench 50 224 1000 "${3:-128}"
