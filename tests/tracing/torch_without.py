"""Counts and trains in a process whose torch lacks one private name; reads names from its input, a line each.

A child is forked for each, from a process that has imported torch and nothing of ours. It deletes the name, asks torch
whether it does without, and only then imports flopcallback. What it saw is one line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import traceback
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch

# What torch imports late, each child would import again. No backward before the fork: it may start threads.
import torch._dynamo
import torch._subclasses.functional_tensor
import torch._subclasses.schema_check_mode
import torch.fx.experimental.proxy_tensor


def resolved(path: str) -> Any:
    """What a dotted path leads to."""
    found: Any = sys.modules[path.partition(".")[0]]
    for name in path.split(".")[1:]:
        found = getattr(found, name)
    return found


def delete(path: str) -> None:
    """Deletes a name, that of a package included, and from types that Python says are immutable."""
    name = path.rpartition(".")[2]
    if isinstance(resolved(path), types.ModuleType):
        sys.modules[path] = None  # type: ignore[assignment] - whoever imports it is told that there is none
    owner = resolved(path.rpartition(".")[0])
    if not isinstance(owner, type):
        delattr(owner, name)
    elif name in vars(owner):
        # `del` refuses for types of C, so it goes out of the dictionary behind the proxy, and the type is told.
        del gc.get_referents(vars(owner))[0][name]
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(owner))
    try:
        resolved(path)
    except AttributeError:
        return
    raise AssertionError(f"{path} is still there")


def linear() -> torch.nn.Linear:
    """3 features to 5, the same ones each time."""
    torch.manual_seed(0)
    return torch.nn.Linear(3, 5)


def ask_torch() -> None:
    """Calls a module, goes back, and calls it under a mode: all that must work without the name."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    model = linear()
    with Names():
        model(torch.ones(2, 3)).sum().backward()
    assert "aten::addmm" in seen
    assert model.weight.grad is not None


def trained(watch: Callable[[torch.nn.Module, torch.optim.Optimizer], None] = lambda model, optimizer: None) -> Any:
    """Two steps of a plain loop: the losses, and the parameters after them."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch(model, optimizer)
    losses = []
    for seed in range(2):
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, [parameter.tolist() for parameter in model.parameters()]


def seen_without(path: str) -> dict[str, Any]:
    """What torch and flopcallback do without the name."""
    torch.set_num_threads(1)
    if path:
        delete(path)
    try:
        ask_torch()
        alone = trained()
    except Exception as error:  # noqa: BLE001 - any: torch needs the name
        return {"torch": f"{type(error).__name__}: {error}"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from flopcallback import FlopCountAnalysis, FlopHook

        count = FlopCountAnalysis(linear(), torch.ones(2, 3))
        hooks = []
        with_us = trained(lambda model, optimizer: hooks.append(FlopHook(model, optimizer)))
        hooks[0].close()
    return {
        "torch": "",
        "total": count.total(),
        "engine": [count.engine, count.engine_reason],
        "is_identical": with_us == alone,
        "numbers": hooks[0].metrics(),
        "warnings": [str(each.message) for each in caught],
    }


def report(path: str, pipe: int) -> None:
    """Writes what was seen, or how it ended."""
    try:
        seen = seen_without(path)
    except BaseException:  # noqa: BLE001 - all of it is the answer
        seen = {"torch": "", "error": traceback.format_exc()}
    os.write(pipe, json.dumps(seen).encode())


def main() -> None:
    """A child for each line."""
    for line in sys.stdin:
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            report(line.strip(), write)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as answer:
            text = answer.read()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{text or json.dumps({'torch': f'ended with {status}'})}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
