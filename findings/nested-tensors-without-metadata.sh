#!/usr/bin/env bash
# torch 2.13.0, on a CPU.
# One would expect `record_shapes=True` to give a nested tensor's shape, or a mark that there is none to give.
# Seen: for the strided and the jagged layout the shape is [], exactly as for a scalar. Below a jagged operator stands
# the record of a dense one, with shapes; below some strided ones, such as layer_norm, there is none. So batches of 5
# and of 500 rows are one row of `key_averages(group_by_input_shape=True)`. It hurts whoever takes FLOPs or bytes of
# ragged batches from profiler events; `nn.TransformerEncoder` nests a padded batch by itself in inference.
# A way out: the jagged layout and its dense records; for the strided one, a range whose name gives the sizes.
# Exits with 1 if that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export TORCHINDUCTOR_CACHE_DIR="$folder/cache"  # torch makes this folder even where nothing is compiled
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0

cat > shapes.py <<'PY'
import torch
from torch.nn.functional import layer_norm
from torch.profiler import ProfilerActivity, profile


def profiled(call):
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        call()
    return profiler


def nested(layout, *lengths):
    return torch.nested.nested_tensor([torch.ones(rows, 6) for rows in lengths], layout=layout)


def shapes(profiler, name):
    return [event.input_shapes[0] for event in profiler.events() if event.name == name]


print(f"torch {torch.__version__.split('+')[0]}, shapes of the first input in the records of a call")
print("scalar: relu", *shapes(profiled(torch.tensor(1.0).relu), "aten::relu"))
weight = bias = torch.ones(6)
for layout in (torch.strided, torch.jagged):
    small, large = (nested(layout, *lengths) for lengths in ((2, 3), (200, 300)))
    relu = shapes(profiled(small.relu), "aten::relu")
    norms = profiled(lambda: [layer_norm(batch, (6,), weight, bias) for batch in (small, large)])
    print(f"{layout}: relu", *relu, "and two layer_norm", *shapes(norms, "aten::native_layer_norm"))
    for row in norms.key_averages(group_by_input_shape=True):
        if row.key == "aten::native_layer_norm":
            print(f"  grouped: {row.input_shapes} called {row.count} times")
PY
env/bin/python shapes.py 2> /dev/null | tee seen
grep -qxF "scalar: relu []" seen || { echo "changed: a scalar"; exit 1; }
grep -qxF "torch.strided: relu [] [30] and two layer_norm [] []" seen || { echo "changed: the strided layout"; exit 1; }
grep -qxF "torch.jagged: relu [] [5, 6] and two layer_norm [] [5, 6] [] [500, 6]" seen \
    || { echo "changed: the jagged layout"; exit 1; }
grep -qF "called 2 times" seen || { echo "changed: two sizes are two rows"; exit 1; }
