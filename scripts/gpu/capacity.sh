#!/usr/bin/env bash
# On a GPU machine whose python3 has PyTorch 2.11: measured shard times of VOneNet's protocol on a ResNet-50, and what `gauntlet simulate` makes
# of them for 50,000 images on 1, 8 and 64 such GPUs.
#   scripts/gpu/capacity.sh [gauntlet binary] [images] [protocol]      results also go to $OUT, if set; `GAUNTLET_DEVICE=cpu … 16 clean` tries it
#   without a GPU
# The machine needs PostgreSQL. The binary is built elsewhere (`cargo build --release`, stripped) and finds libtorch, CUDA half included, in PyTorch's own folder. Weights
# are random, so accuracy means nothing; `keep = "last"` attacks cost the same whether they succeed or not.
set -euo pipefail
cd "$(dirname "$0")/../.."
gauntlet=$(realpath "${1:-target/release/gauntlet}")
images=${2:-256}
protocol=${3:-vonenet-2020}
library=$(python3 -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")' 2>/dev/null || echo .libtorch/lib)
export LD_LIBRARY_PATH=$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} GAUNTLET_DEVICE=${GAUNTLET_DEVICE:-cuda}
out=${OUT:-$(mktemp -d)}
work=$(mktemp -d)
export GAUNTLET_DATA_DIR=$work/data GAUNTLET_LISTEN=127.0.0.1:18080 GAUNTLET_METRICS_LISTEN=127.0.0.1:19464 GAUNTLET_SERVER=http://127.0.0.1:18080
chmod 755 "$work"

python3 tools/bench/resnet.py 50 "$work/resnet50.pt"
python3 - "$work" "$images" <<'PY'
import sys, numpy, torch
work, images = sys.argv[1], int(sys.argv[2])

smooth = torch.nn.functional.interpolate(torch.rand(images, 3, 28, 28), size=224, mode="bilinear")
pixels = (smooth * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
numpy.savez(f"{work}/images.npz", x=pixels, y=numpy.arange(images, dtype=numpy.int64) % 1000)
PY

"$gauntlet" dataset import "$work/images.npz" --name images --preset imagenet
"$gauntlet" up 2>"$out/up.log" &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null; rm -rf "$work"' EXIT
until "$gauntlet" health api 2>/dev/null; do kill -0 $server || { cat "$out/up.log"; exit 1; }; sleep 1; done
"$gauntlet" submit "$work/resnet50.pt" --dataset images --classes 1000 --protocol "$protocol" --witnesses none --watch --format json >"$out/table.json"
id=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["evaluation"])' "$out/table.json")
for count in "$images" 50000; do
  echo "== $count images"
  "$gauntlet" simulate like "$id" --images "$count" --workers 1,8,64 --price 2.5 | tee "$out/simulate-$count.txt"
  "$gauntlet" simulate like "$id" --images "$count" --workers 1,8,64 --price 2.5 --format json >"$out/simulate-$count.json"
done
python3 - "$out/table.json" <<'PY'
import json, sys
print(json.dumps(json.load(open(sys.argv[1]))["provenance"]["profile"], indent=1))
PY
