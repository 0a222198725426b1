#!/usr/bin/env bash
# torch 2.13.0, Inductor on a CPU (a C++ compiler is needed).
# One would expect the profiler's operator records of a compiled training step to have the matrix products of the eager
# one, since Inductor calls ATen for them, or to have none of a layer's.
# Seen: for a layer with one output the forward's product is there, and of the backward's two one is missing, without a
# word: it has become a loop. With a batch of one, two of three are gone. A layer without a dimension of 1 is
# whole. It hurts whoever takes FLOPs or MFU of a compiled model from profiler events: heads of value functions, rewards
# and regressions have one output.
# A way out: multiply the shapes oneself where a dimension is 1, or count the model uncompiled.
# Exits with 1 if that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0

cat > products.py <<'PY'
import torch
from torch import nn

PRODUCTS = ("aten::mm", "aten::addmm")


def products(rows, outputs, is_compiled):
    torch._dynamo.reset()
    layer = nn.Linear(8, outputs)
    call = torch.compile(layer) if is_compiled else layer
    x = torch.ones(rows, 8, requires_grad=True)
    for _ in range(2):  # the first one compiles
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            call(x).square().sum().backward()
    return sum(event.name in PRODUCTS for event in profile.events())


print(f"torch {torch.__version__}: products in the records of a step, eager and compiled")
for what, rows, outputs in (("four rows, three outputs", 4, 3), ("four rows, one output", 4, 1), ("one row, three outputs", 1, 3)):
    print(f"{what}: {products(rows, outputs, False)} and {products(rows, outputs, True)}")
PY
TORCHINDUCTOR_CACHE_DIR="$folder/cache" env/bin/python products.py 2> /dev/null | tee seen
grep -q "three outputs: 3 and 3" seen || { echo "changed: a layer without a dimension of 1 is not whole"; exit 1; }
grep -q "one output: 3 and 2" seen || { echo "changed: with one output"; exit 1; }
grep -q "one row, three outputs: 3 and 1" seen || { echo "changed: with one row"; exit 1; }
