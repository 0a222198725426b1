#!/usr/bin/env bash
# Lightning 2.6.6, torch 2.13.0.
# One would expect that `extract_batch_size`, called in a callback under `warnings.catch_warnings()` with "ignore", leaves
# the warnings of others alone: Python puts the filters back, and shows a warning that was ignored at its next chance.
# Seen: Lightning remembers the message in a cache of its own and never gives it again. So the user's `self.log(...,
# on_epoch=True)`, which weights the epoch's mean by a guessed batch size, is no longer told that the size is ambiguous.
# It hurts callbacks that ask for the size of a batch: they silence the one warning about a wrong mean, for the process.
# A way out: `batch_size=` at the log call, and in a callback a rule of one's own.
# Exits with 1 if that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 lightning==2.6.6

cat > told.py <<'PY'
import sys
import warnings

import lightning
import torch
from lightning.pytorch.utilities.data import extract_batch_size

batch = {"points": torch.zeros(30, 4), "clouds": torch.zeros(8)}
if sys.argv[1] == "asked before":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extract_batch_size(batch)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    size = extract_batch_size(batch)  # what `self.log(..., on_epoch=True)` does
is_told = any("ambiguous" in str(each.message) for each in told)
print(f"lightning {lightning.__version__}, {sys.argv[1]}: size {size}, told that it is ambiguous: {is_told}")
PY
first=$(env/bin/python told.py "not asked before")
second=$(env/bin/python told.py "asked before")
printf '%s\n%s\n' "$first" "$second"
case $first in *"ambiguous: True") ;; *) echo "changed: the size is not said to be ambiguous"; exit 1 ;; esac
case $second in *"ambiguous: False") ;; *) echo "changed: the warning is given again"; exit 1 ;; esac
