#!/usr/bin/env bash
# On a GPU machine whose python3 has PyTorch 2.11: one evaluation on the GPU and on the CPU, and how far they agree.
#   scripts/gpu/smoke.sh [gauntlet binary] [devices…]      results also go to $OUT, if set
# The binary is built elsewhere (`cargo build --release`, stripped) and finds libtorch, CUDA half included, in PyTorch's own folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
gauntlet=${1:-target/release/gauntlet}
devices=("${@:2}")
[ ${#devices[@]} -gt 0 ] || devices=(cpu cuda)
library=$(python3 -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")' 2>/dev/null || echo .libtorch/lib)
export LD_LIBRARY_PATH=$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
out=${OUT:-$(mktemp -d)}
for device in "${devices[@]}"; do
  echo "== $device"
  GAUNTLET_DEVICE=$device "$gauntlet" run models/digits/robust.pt --dataset data/digits/digits.npz --size 32 --offset 1297 \
    --protocol pgd-grid --preset mnist --set steps=20 --verdicts "$out/$device.csv" --format json >"$out/$device.json"
  python3 - "$out/$device.json" <<'PY'
import json, sys
table = json.load(open(sys.argv[1]))
print(table["provenance"]["profile"])
for row in table["conditions"]:
    print(f'{row["id"]:16} {row["accuracy"]:.3f}')
PY
done
[ ${#devices[@]} -eq 2 ] || exit 0
# Across devices agreement is statistical: on a few images floating point decides.
python3 - "$out/${devices[0]}.csv" "$out/${devices[1]}.csv" <<'PY'
import csv, sys
a, b = (list(csv.DictReader(open(path))) for path in sys.argv[1:])
differ = sum(x["robust"] != y["robust"] for x, y in zip(a, b, strict=True))
print(f"{differ} of {len(a)} verdicts differ between the devices")
sys.exit(differ > 0.02 * len(a))
PY
