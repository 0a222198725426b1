"""Count a Llama of 70 billion parameters without its weights, in seconds.

Usage: python examples/count_llama.py [--batch 1] [--tokens 4096] [--depth 3]

The model is made on the meta device from its configuration. The script prints the table of modules, parameters and
FLOPs, and checks both against the closed form below: FLOPs by the tracer and, independently, by the dispatcher. The
exit status is 1 if anything differs. --layers, --width, ... choose other sizes of the family.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from flopcallback import FlopCountAnalysis, flop_count_table

# Llama 3 70B: Grattafiori et al., "The Llama 3 Herd of Models", 2024, table 3.
SIZES = {"layers": 80, "width": 8192, "heads": 64, "key-heads": 8, "hidden": 28_672, "vocabulary": 128_256}


def parameters_on_paper(o: argparse.Namespace) -> int:
    """Count the parameters in closed form.

    A layer has query and output projections, keys and values, three dense layers and two norms. The model also has the
    embedding, a norm and the head.
    """
    keys = o.width // o.heads * o.key_heads  # several query heads share a key head
    layer = 2 * o.width * o.width + 2 * o.width * keys + 3 * o.width * o.hidden + 2 * o.width
    return o.layers * layer + o.width + 2 * o.vocabulary * o.width


def multiply_adds_on_paper(o: argparse.Namespace) -> int:
    """Count the multiply-adds in closed form.

    Every weight of a product meets every token; every query meets every key twice, for the score and the value.
    """
    keys = o.width // o.heads * o.key_heads
    weights = 2 * o.width * o.width + 2 * o.width * keys + 3 * o.width * o.hidden
    attention = 2 * o.tokens * o.tokens * o.width
    return o.batch * (o.layers * (o.tokens * weights + attention) + o.tokens * o.width * o.vocabulary)


def on_meta(o: argparse.Namespace) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=o.layers, hidden_size=o.width, num_attention_heads=o.heads, num_key_value_heads=o.key_heads,
        intermediate_size=o.hidden, vocab_size=o.vocabulary, max_position_embeddings=max(o.tokens, 8192),
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def count(model: torch.nn.Module, o: argparse.Namespace, engine: str) -> FlopCountAnalysis:
    tokens = torch.empty(o.batch, o.tokens, dtype=torch.long, device="meta")
    # Without a cache the model searches the positions for packed sequences, and meta tensors have no values.
    flops = FlopCountAnalysis(model, tokens, {"use_cache": True}, engine=engine)
    flops.total()
    return flops


def agree(quantity: str, counted: int, on_paper: int) -> bool:
    print(f"{quantity}: {counted:,}; on paper {on_paper:,}: {'equal' if counted == on_paper else 'DIFFERENT'}")
    return counted == on_paper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--depth", type=int, default=3, help="of the table")
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    o = parser.parse_args()

    model = on_meta(o)
    equal = agree("parameters", sum(p.numel() for p in model.parameters()), parameters_on_paper(o))
    for engine in ("dispatch", "trace"):
        began = time.perf_counter()
        flops = count(model, o, engine)
        # FLOPs are 2 per multiply-add.
        equal &= agree(
            f"multiply-adds by {engine}, in {time.perf_counter() - began:.1f} s",
            flops.hardware_flops()[""] // 2,
            multiply_adds_on_paper(o),
        )
        # An operator without a formula would make the count a lower bound.
        equal &= not flops.unknown_ops()
    print(f"FLOPs: {flops.hardware_flops()['']:,}; macs, as in the table: {flops.total():,}\n")
    print(flop_count_table(flops, max_depth=o.depth, show_param_shapes=False))
    sys.exit(not equal)


if __name__ == "__main__":
    main()
