"""Train a small Llama by Hugging Face's Trainer, and say what it cost.

Usage: python examples/huggingface.py [--steps 40] [--output huggingface_output]

It needs no download. TensorBoard's files are in the output folder: tensorboard --logdir huggingface_output
"""

from __future__ import annotations

import argparse

import torch
from flopcallback_transformers import FlopTrainerCallback
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

WORDS, LENGTH = 64, 32


def sentences(number: int) -> list[dict[str, torch.Tensor]]:
    """Return sequences that count on from a random word, of several lengths."""
    examples = []
    for start, length in zip(
        torch.randint(WORDS, (number,)), torch.randint(LENGTH // 2, LENGTH, (number,)), strict=True
    ):
        words = (start + torch.arange(LENGTH)) % WORDS
        mask = (torch.arange(LENGTH) < length).long()
        examples.append({"input_ids": words, "attention_mask": mask, "labels": words.where(mask == 1, -100)})
    return examples


def main(steps: int, output: str) -> None:
    """Train, and print compute and throughput."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    arguments = TrainingArguments(
        output,
        max_steps=steps,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        logging_steps=10,
        report_to="tensorboard",
        save_strategy="no",
    )
    flops = FlopTrainerCallback()
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=sentences(1024), callbacks=[flops])
    trainer.train()

    numbers = flops.metrics()
    print(
        f"{numbers['compute/flops_total']:,} FLOPs in {steps} steps; the Trainer says {trainer.state.total_flos:,.0f}"
    )
    print(f"{numbers['compute/tokens_total']:,} tokens, {numbers['perf/padding_pct']:.0f} % of the last ones padding")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", default="huggingface_output")
    options = parser.parse_args()
    main(options.steps, options.output)
