"""Groups of ranks that work on the same samples, as far as a model tells."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["fingerprint_of", "first_rank_on_samples"]


def first_rank_on_samples(model: nn.Module, rank: int) -> int:
    """Return the lowest rank that works on the same samples as this one.

    Distributed parameters tell: along a dimension of their mesh that `fully_shard` does not use, ranks share the work
    on one batch, as in tensor parallelism. Ranks that share samples by other means are not found: those of a pipeline,
    of context parallelism, or with plain tensors for parameters.

    Args:
        model: the model, in a state with sharded parameters: not between a forward and its backward.
        rank: rank of this process.
    """
    sharded = {id(each) for module in model.modules() if _is_fully_sharded(module) for each in module.parameters()}
    firsts = (_first_of(each, is_fully_sharded=id(each) in sharded) for each in model.parameters())
    return min((first for first in firsts if first is not None), default=rank)


def _is_fully_sharded(module: nn.Module, kind: str = "FSDPModule") -> bool:
    fsdp = getattr(torch.distributed, "fsdp", None)  # imported by whoever uses it
    return isinstance(module, getattr(fsdp, kind, ()))


def _first_of(parameter: Any, *, is_fully_sharded: bool) -> int | None:
    """Return the lowest rank that shares this one's samples; None if the parameter does not tell."""
    mesh = getattr(parameter, "device_mesh", None)
    coordinate = None if mesh is None else mesh.get_coordinate()
    if mesh is None or coordinate is None:  # a plain tensor, or one of other ranks
        return None
    # `fully_shard` uses the first dimension, and with replicas the first two: (Replicate(), Shard(0), ...).
    own = 0 if not is_fully_sharded else 2 if parameter.placements[0].is_replicate() else 1
    return int(mesh.mesh[tuple(coordinate[:own])].min())


def fingerprint_of(model: nn.Module, *, takes_gradients: bool) -> int:
    """Return a number that differs between the stages of a pipeline, and not between ranks that have the same model.

    Args:
        model: the model, or a rank's part of it.
        takes_gradients: whether its inputs require gradients, as those of all stages but the first do.
    """
    # With `use_orig_params`, FSDP1 leaves each rank another part of each parameter: then names alone are the same.
    is_flat = any(_is_fully_sharded(module, "FullyShardedDataParallel") for module in model.modules())
    named: Iterable[tuple[str, Any]] = model.named_parameters()
    shapes = [(name, None if is_flat or is_lazy(each) else tuple(each.shape)) for name, each in named]
    return zlib.crc32(repr((takes_gradients, shapes)).encode())
