#!/usr/bin/env bash
# torch 2.13.0.
# One would expect `torch.autograd._enable_record_function(False)`, with which a library can keep its own operators out
# of its own records, to leave other people's profilers alone, or these to say that something is missing.
# Seen: the switch belongs to the thread, not to a listener. A profiler that somebody else has running loses the
# operators and the `record_function` ranges in between, and so does an `ExecutionTraceObserver`; neither says a word.
# It hurts the user of a library that flips it: work that is missing from a trace looks like idle time.
# A way out: leave the switch on, and put one's own calls in a `record_function` range that can be filtered out later.
# Exits with 1 if that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export TORCHINDUCTOR_CACHE_DIR="$folder/cache"  # torch makes this folder even where nothing is compiled
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0

cat > switch.py <<'PY'
import json

import torch
from torch.profiler import ExecutionTraceObserver, ProfilerActivity, profile, record_function


def quiet_library(x):
    torch.autograd._enable_record_function(False)
    try:
        return torch.mul(x, x)
    finally:
        torch.autograd._enable_record_function(True)


OPERATORS = ("aten::add", "aten::mul", "aten::sub")
x = torch.ones(5, 7)
observer = ExecutionTraceObserver().register_callback("trace.json")
with profile(activities=[ProfilerActivity.CPU]) as profiler:
    observer.start()
    torch.add(x, x)
    quiet_library(x)
    torch.sub(x, x)
    observer.stop()
observer.unregister_callback()

with open("trace.json") as trace:
    nodes = json.load(trace)["nodes"]
print(f"torch {torch.__version__.split('+')[0]}, ran: {' '.join(OPERATORS)}")
print("profiler:", *(event.name for event in profiler.events() if event.name in OPERATORS))
print("execution trace:", *(node["name"] for node in nodes if node["name"] in OPERATORS))

with profile(activities=[ProfilerActivity.CPU]) as profiler:
    with record_function("seen"):
        torch.autograd._enable_record_function(False)
        with record_function("unseen"):
            pass
        torch.autograd._enable_record_function(True)
print("ranges:", *(event.name for event in profiler.events() if event.name in ("seen", "unseen")))
PY
env/bin/python switch.py > seen 2> told
cat seen
echo "said on stderr about it: $(grep -ciE 'record_?function|missing|disabled' told || true) lines"
grep -qx "profiler: aten::add aten::sub" seen || { echo "changed: the profiler's operators"; exit 1; }
grep -qx "execution trace: aten::add aten::sub" seen || { echo "changed: the execution trace"; exit 1; }
grep -qx "ranges: seen" seen || { echo "changed: ranges"; exit 1; }
