#!/usr/bin/env bash
# transformers 5.23.0 (the newest), accelerate 1.15.0, torch 2.13.0.
# One would expect `TrainingArguments(fsdp=True, ...)` to shard the model, or to raise: PyTorch's `fully_shard` works on
# CPUs with gloo, and Accelerate does shard there once it is told that this is FSDP.
# Seen: on CPUs (`use_cpu=True`, two processes) the Trainer wraps the model in DistributedDataParallel, without a word, and
# `args.fsdp` stays True. Accelerate looks at its plugin for FSDP only if the processes have GPUs or the like.
# It hurts tests of FSDP in a CI without GPUs: they pass, and have tested DDP. Wrong classes in `fsdp_config`, unsupported
# models and checkpoints that do not load show on the cluster.
# A way out: assert `trainer.is_fsdp_enabled` in such a test, which is False then.
# Exits with 1 if that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 'transformers[torch]==5.23.0' accelerate==1.15.0

cat > train.py <<'PY'
import os

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
args = TrainingArguments(
    "output", max_steps=2, per_device_train_batch_size=2, report_to="none", save_strategy="no", use_cpu=True,
    disable_tqdm=True, dataloader_pin_memory=False, fsdp=True,
    fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
)
texts = [{"input_ids": torch.arange(6), "labels": torch.arange(6)} for _ in range(8)]
trainer = Trainer(LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes)), args, train_dataset=texts)
trainer.train()
if os.environ["RANK"] == "0":
    wrapped = type(trainer.model_wrapped).__name__
    print(f"transformers {transformers.__version__}: args.fsdp is {args.fsdp}, the model is in {wrapped}")
PY
env/bin/python -m torch.distributed.run --standalone --nproc-per-node=2 train.py > log 2>&1 || { cat log >&2; exit 1; }
grep "the model is in" log
if grep -v "the model is in" log | grep -qi fsdp; then echo "changed: it says something of FSDP"; exit 1; fi
grep -q "fsdp is True, the model is in DistributedDataParallel" log || { echo "changed: the model is sharded"; exit 1; }
