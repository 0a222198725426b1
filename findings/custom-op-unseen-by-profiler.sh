#!/usr/bin/env bash
# torch 2.14.1 and, for comparison, torch 2.13.0; numpy 2.4.6 for the body of an operator.
# One would expect the profiler to record each call of an operator that `torch.library.custom_op` made.
# Seen: in 2.14.1 the record of `product(a, b)` itself is missing; only the small steps in its body are there. The same
# goes for `torch.ops.shelf.product.default(a, b)`, which compiled code calls; `torch.ops.shelf.product(a, b)` is
# recorded. 2.13.0 records all three. It hurts whoever takes time, shapes or FLOPs of custom kernels from profiler
# events: an operator whose body torch cannot look into (NumPy, a library of one's own) is gone without a word.
# A way out: call `torch.ops.<namespace>.<name>`, or open a `torch.profiler.record_function` in the body.
# Exits with 1 if that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export TORCHINDUCTOR_CACHE_DIR="$folder/cache"  # torch makes this folder even where nothing is compiled
python3 -m venv old && python3 -m venv new
old/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
new/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cat > records.py <<'PY'
import torch
from torch.profiler import ProfilerActivity, profile


@torch.library.custom_op("shelf::product", mutates_args=())
def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(a.numpy() @ b.numpy())


def records(call):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call(torch.ones(5, 7), torch.ones(7, 3))
    return sum(event.name == "shelf::product" for event in profiler.events())


calls = {"op object": product, "overload": torch.ops.shelf.product.default, "packet": torch.ops.shelf.product}
found = ", ".join(f"{name} {records(call)}" for name, call in calls.items())
print(f"torch {torch.__version__.split('+')[0]}, records of shelf::product for one call: {found}")
PY
old/bin/python records.py 2> /dev/null | tee seen
new/bin/python records.py 2> /dev/null | tee -a seen
grep -q "2.13.0.*: op object 1, overload 1, packet 1" seen || { echo "changed: the records of 2.13.0"; exit 1; }
grep -q "2.14.1.*: op object 0, overload 0, packet 1" seen || { echo "changed: the records of 2.14.1"; exit 1; }
