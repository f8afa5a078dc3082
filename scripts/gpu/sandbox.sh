#!/usr/bin/env bash
# On a GPU machine: a model runs on the GPU inside the sandbox, gives the verdicts that it gives outside, and a hostile one gets nothing.
#   scripts/gpu/sandbox.sh [gauntlet binary]      results also go to $OUT, if set
# The binary is built elsewhere (`cargo build --release`, stripped) and finds libtorch, CUDA half included, in PyTorch's own folder,
# which must be readable by every account.
set -euo pipefail
cd "$(dirname "$0")/../.."
gauntlet=${1:-target/release/gauntlet}
library=$(python3 -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")' 2>/dev/null || echo .libtorch/lib)
export LD_LIBRARY_PATH=$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} GAUNTLET_DEVICE=cuda
out=${OUT:-$(mktemp -d)}
chmod 755 "$out"
run() { # sandbox model name
  GAUNTLET_SANDBOX=$1 "$gauntlet" run "$2" --dataset data/digits/digits.npz --size 32 --offset 1297 --images 200 \
    --protocol pgd-linf --preset mnist --set steps=10 --verdicts "$out/$3.csv" --format json >"$out/$3.json" 2>"$out/$3.log"
}
for sandbox in off required; do
  echo "== sandbox $sandbox"
  run $sandbox models/digits/robust.pt $sandbox || { cat "$out/$sandbox.log"; exit 1; }
  python3 -c 'import json, sys; p = json.load(open(sys.argv[1]))["provenance"]; print(p["profile"], p["sandbox"])' "$out/$sandbox.json"
done
cmp "$out/off.csv" "$out/required.csv" && echo "the same verdicts inside and outside"

python3 - "$out/hostile.pt" "$out/secret" <<'PY'
import sys, torch
path, secret = sys.argv[1:]
open(secret, "w").write("0123456789abcdef")
code = f'''
def forward(self, x):
    stolen = torch.from_file("{secret}", False, 16, dtype=torch.uint8)
    return torch.flatten(x, 1)[:, :10] + stolen[0].to(x.device) * 0
'''
class Net(torch.nn.Module):
    pass
module = torch.jit.script(Net())
module.define(code)
module.save(path)
PY
chmod 644 "$out/secret" "$out/hostile.pt"
run off "$out/hostile.pt" hostile-off || { cat "$out/hostile-off.log"; echo "the hostile model should run outside the sandbox"; exit 1; }
if run required "$out/hostile.pt" hostile-required; then
  echo "the hostile model read the secret"; exit 1
fi
grep -q "Permission denied" "$out/hostile-required.log" && echo "the hostile model was refused"
