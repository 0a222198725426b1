"""Print three real models in full, as table and tree.

Usage: python examples/print_models.py

It also writes them to docs/examples.md. Weights are random and inputs made up: neither matters for a count.
"""

import sys
from pathlib import Path

import torch

from flopcallback import ActivationCountAnalysis, FlopCountAnalysis, flop_count_str, flop_count_table

# The benchmarks are scripts in one folder, not a package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import models

PAGE = Path(__file__).resolve().parents[1] / "docs" / "examples.md"
TITLES = {
    "ResNet-50": "`ResNetForImageClassification` of transformers, one image of 224 x 224",
    "U-Net": "`UNet` of [benchmarks/models.py](../benchmarks/models.py), one image of 256 x 256",
    "Llama, grouped queries": "`LlamaForCausalLM` of transformers, 12 layers of width 1024, 4 key heads, 256 tokens",
}
INTRODUCTION = """\
# Three models, printed in full

Written by `python examples/print_models.py`; a test compares. One multiply-add is one FLOP, fvcore's unit:
`macs` in [conventions](conventions.md). G is 10^9, M is 10^6, K is 10^3.
"""


def printed(name: str) -> str:
    """Format a chapter: the model as `flop_count_table` and `flop_count_str`."""
    case = models.build(name)
    with torch.no_grad():
        flops = FlopCountAnalysis(case.model, (), case.inputs)
        activations = ActivationCountAnalysis(case.model, (), case.inputs)
        # Deeper than any of the models, so that nothing is left out.
        table = flop_count_table(flops, max_depth=99, activations=activations)
        tree = flop_count_str(flops, activations)
        operators = ", ".join(f"{operator} {count:,}" for operator, count in flops.by_operator().most_common())
    facts = f"{TITLES[name]}. In all {flops.total():,} FLOPs: {operators}."
    return f"## {name}\n\n{facts}\n\n### As a table\n\n```\n{table}\n```\n\n### As a tree\n\n```\n{tree}\n```\n"


def document() -> str:
    """Format the whole of docs/examples.md."""
    return "\n".join([INTRODUCTION, *map(printed, TITLES)])


if __name__ == "__main__":
    text = document()
    PAGE.write_text(text, encoding="utf-8")
    print(text)
