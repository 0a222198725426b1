"""Multiply-adds by the other counters.

Usage: python benchmarks/peer_counts.py MODEL [--quick] [--timeout 300] PEER ..., which prints a line of JSON for each.

`peers.py` runs it in the environment where they are installed. Each function's docstring names the tool's own figure
and what was done to compare it: multiply-adds of matrix products, convolutions, attention and recurrent layers. If a
tool reports figures by layer or operator, norms and similar layers are left out; otherwise they are included.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import select
import signal
import warnings
from collections.abc import Callable, Mapping

# DeepSpeed reads it on import; without it, it looks for an accelerator and for a compiler.
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from cases import Case, TensorsOnly
from models import build
from torch import nn

__all__ = ["PEERS"]


def ptflops(case: Case) -> int:
    """Return multiply-adds, including activations, norms and elementwise products."""
    from ptflops import get_model_complexity_info

    return _ptflops(get_model_complexity_info, case, "pytorch")


def ptflops_aten(case: Case) -> int:
    """Return multiply-adds of products and convolutions, including a convolution's bias."""
    from ptflops import get_model_complexity_info

    return _ptflops(get_model_complexity_info, case, "aten")


def _ptflops(count: Callable[..., tuple[int | None, int | None]], case: Case, backend: str) -> int:
    # With inputs by keyword it takes the batch size to be 1, and then does not divide by it.
    multiply_adds, _ = count(
        case.model, (1,), input_constructor=lambda _: dict(case.inputs), backend=backend, as_strings=False,
        print_per_layer_stat=False,
    )  # fmt: skip
    if multiply_adds is None:
        raise RuntimeError("printed an error and gave None")
    return int(multiply_adds)


def thop(case: Case) -> int:
    """Return multiply-adds.

    Rules for norms, pools, softmax and upsampling are replaced by 0.
    """
    from thop import profile
    from thop.vision.basic_hooks import zero_ops

    layers = (
        nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU, nn.Softmax, nn.LogSoftmax,
        nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
        nn.Upsample,
    )  # fmt: skip
    counted, _ = profile(TensorsOnly(case), tuple(case.inputs.values()), dict.fromkeys(layers, zero_ops), verbose=False)
    return round(counted)


def torchinfo(case: Case) -> int:
    """Return multiply-adds by layer, without norms.

    Its figure of an embedding is included.
    """
    from torchinfo import summary

    # Only leaves: a container repeats the figures of its layers.
    layers = summary(case.model, input_data=dict(case.inputs), verbose=0, depth=99).summary_list
    return sum(layer.macs for layer in layers if layer.is_leaf_layer and "Norm" not in layer.class_name)


def calflops(case: Case) -> int:
    """Return multiply-adds, which it has besides its FLOPs."""
    from calflops import calculate_flops

    _, multiply_adds, _ = calculate_flops(
        case.model, kwargs=dict(case.inputs), print_results=False, output_as_string=False
    )
    return int(multiply_adds)


def torchprofile(case: Case) -> int:
    """Return multiply-adds of the operators that are products."""
    from torchprofile import profile_macs

    products = {
        "aten::addmm", "aten::addmv", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul", "aten::einsum",
        "aten::_convolution", "aten::lstm", "aten::scaled_dot_product_attention",
    }  # fmt: skip
    by_node = profile_macs(TensorsOnly(case), tuple(case.inputs.values()), reduction=None)
    return sum(count for node, count in by_node.items() if node.operator in products)


def deepspeed(case: Case) -> int:
    """Return multiply-adds, which it has besides its FLOPs."""
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    profiler = FlopsProfiler(case.model)
    profiler.start_profile()
    case.call()
    multiply_adds = profiler.get_total_macs()
    profiler.end_profile()
    return int(multiply_adds)


def torchlens(case: Case) -> int:
    """Return multiply-adds, which it has besides its FLOPs."""
    from torchlens import trace

    return int(trace(TensorsOnly(case), list(case.inputs.values())).total_macs_forward)


PEERS: Mapping[str, Callable[[Case], int]] = {
    "ptflops": ptflops,
    "ptflops, aten": ptflops_aten,
    "ultralytics-thop": thop,
    "torchinfo": torchinfo,
    "calflops": calflops,
    "torchprofile": torchprofile,
    "DeepSpeed": deepspeed,
    "TorchLens": torchlens,
}


def answer(peer: str, case: Case) -> dict[str, object]:
    """Return a tool's count, or the exception that it raised.

    Its prints are discarded.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            with torch.set_grad_enabled(case.grad):
                return {"multiply_adds": PEERS[peer](case)}
        except Exception as error:  # noqa: BLE001 - a counter that cannot count a model is a result too
            return {"error": type(error).__name__, "message": str(error)[:500]}


def in_a_process(peer: str, case: Case, timeout_s: float) -> dict[str, object]:
    """Return the answer of a fork of this process.

    The tools leave patches and hooks behind, above all when they fail. It is a plain fork: TorchLens refuses to work in
    a child of `multiprocessing`.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, json.dumps(answer(peer, case)).encode())
        os._exit(0)  # no cleanup of the parent's in the child
    os.close(writing)
    has_answered, _, _ = select.select([reading], [], [], timeout_s)
    # Empty if the child died: the pipe is closed, which also ends `select`.
    written = os.read(reading, 2**16) if has_answered else b""
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not has_answered:
        return {"error": f"no answer in {timeout_s:g} s"}
    return json.loads(written) if written else {"error": f"ended by signal {os.WTERMSIG(status)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("peers", nargs="+", choices=PEERS, metavar="PEER")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for each")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    case = build(options.model, small=options.quick)
    for peer in options.peers:
        print(json.dumps(in_a_process(peer, case, options.timeout)), flush=True)


if __name__ == "__main__":
    main()
