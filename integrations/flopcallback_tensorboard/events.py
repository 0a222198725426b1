"""Events that no method of a SummaryWriter adds: notes for readers of the file, hyperparameters of the run itself."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PLUGIN", "hyperparameters", "note"]

PLUGIN = "flopcallback"
"""Name of the plugin that a note is for. TensorBoard has none of that name, and shows no notes."""


def note(writer: Any, tag: str, text: str, step: int) -> None:
    """Add a text that only readers of the file see, to a writer that is open."""
    protos = "tensorboardX.proto" if _is_tensorboardx(writer) else "tensorboard.compat.proto"
    summary, tensor = (import_module(f"{protos}.{name}_pb2") for name in ("summary", "tensor"))
    plugin = summary.SummaryMetadata.PluginData(plugin_name=PLUGIN)
    content = tensor.TensorProto(dtype="DT_STRING", string_val=[text.encode()])
    value = summary.Summary.Value(tag=tag, metadata=summary.SummaryMetadata(plugin_data=plugin), tensor=content)
    writer.file_writer.add_summary(summary.Summary(value=[value]), step)


def hyperparameters(writer: Any, values: Mapping[str, int | float]) -> None:
    """Add hyperparameters to the run of a writer that is open.

    The writers' `add_hparams` would make another run for them. It also lists their names, and TensorBoard takes the
    list of one run for that of all, so that hyperparameters of the user's would have no column. Without any list it
    finds all names itself.
    """
    module = import_module("tensorboardX.summary" if _is_tensorboardx(writer) else "torch.utils.tensorboard.summary")
    # 2026-11, tensorboardX 2.6.5: integers of 2**64 and above raise.
    _, values_of_run, _ = module.hparams({name: float(value) for name, value in values.items()}, {})
    writer.file_writer.add_summary(values_of_run)


def _is_tensorboardx(writer: Any) -> bool:
    return type(writer).__module__.startswith("tensorboardX")
