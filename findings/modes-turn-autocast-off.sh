#!/usr/bin/env bash
# torch 2.13.0, on a CPU.
# One would expect a `TorchDispatchMode` that passes each operator on, such as torch's own `FlopCounterMode`, to leave
# the results as they are.
# Seen: autocast is off inside the mode's handler, so the Python body of a custom operator, which runs inside it,
# computes in float32 what it computes in bfloat16 without the mode. Built-in operators are cast before the mode sees
# them and are not affected. It hurts whoever counts FLOPs, memory or operators of a mixed-precision model with custom
# operators: results, time and memory differ from the run that nobody watches.
# A way out: `custom_op.register_autocast`, or open `torch.autocast` in the body. Exits with 1 if that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export TORCHINDUCTOR_CACHE_DIR="$folder/cache"  # torch makes this folder even where nothing is compiled
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0

cat > watched.py <<'PY'
import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

body_dtypes = []


@torch.library.custom_op("shelf::product", mutates_args=())
def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    result = a @ b
    body_dtypes.append(result.dtype)
    return result.float()


class PassOn(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return operator(*args, **(kwargs or {}))


torch.manual_seed(0)
a, b = torch.rand(5, 7), torch.rand(7, 3)
with torch.autocast("cpu", dtype=torch.bfloat16):
    unwatched = product(a, b)

print(f"torch {torch.__version__.split('+')[0]}, under autocast to bfloat16")
for mode in (contextlib.nullcontext(), PassOn(), FlopCounterMode(display=False)):
    with torch.autocast("cpu", dtype=torch.bfloat16), mode:
        result = product(a, b)
        builtin = a @ b
    same = "the same" if torch.equal(result, unwatched) else "another"
    print(f"{type(mode).__name__}: body in {body_dtypes[-1]}, {same} result; a @ b in {builtin.dtype}")
PY
env/bin/python watched.py 2> /dev/null | tee seen
for mode in PassOn FlopCounterMode; do
    grep -q "^$mode: body in torch.float32, another result" seen || { echo "changed: under $mode"; exit 1; }
done
grep -q "^nullcontext: body in torch.bfloat16, the same result" seen || { echo "changed: without a mode"; exit 1; }
[ "$(grep -c "a @ b in torch.bfloat16" seen)" -eq 3 ] || { echo "changed: built-in operators"; exit 1; }
