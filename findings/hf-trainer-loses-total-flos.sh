#!/usr/bin/env bash
# transformers 5.23.0 (the newest), torch 2.13.0.
# One would expect `disable_tqdm=True` to turn the progress bar off, and what `train()` returns to be the same.
# Seen: `trainer.train().metrics` has `total_flos` with the bar and not without it. In the place of the bar the Trainer
# has `PrinterCallback`, which takes `total_flos` out of the dict of the last log before it prints it, and that dict is
# the one that `train()` returns. `trainer.state` and its `log_history` have the number.
# It hurts batch jobs: they turn the bar off, save `train().metrics` with `save_metrics`, and `train_results.json` of the
# cluster has no FLOPs where that of the notebook has. Callbacks that are added after the Trainer is made miss it, too.
# A way out: `trainer.state.total_flos`; or `trainer.remove_callback(PrinterCallback)`.
# Exits with 1 if that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 'transformers[torch]==5.23.0'

cat > train.py <<'PY'
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
has_bar = sys.argv[1] == "bar"
args = TrainingArguments(
    "output", max_steps=2, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=not has_bar,
    dataloader_pin_memory=False,
)
texts = [{"input_ids": torch.arange(6), "labels": torch.arange(6)} for _ in range(16)]
trainer = Trainer(LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes)), args, train_dataset=texts)
returned = trainer.train().metrics
is_in = "total_flos" in returned, "total_flos" in trainer.state.log_history[-1]
print(f"transformers {transformers.__version__}, bar {has_bar}: total_flos is returned {is_in[0]}, in the history {is_in[1]}")
PY
env/bin/python -W ignore train.py bar 2> /dev/null | tail -1 | tee with
env/bin/python -W ignore train.py none 2> /dev/null | tail -1 | tee without
grep -q "returned True, in the history True" with || { echo "changed: not even with the bar"; exit 1; }
grep -q "returned False, in the history True" without || { echo "changed: it is returned without the bar"; exit 1; }
