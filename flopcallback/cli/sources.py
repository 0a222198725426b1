"""The model that a command line names: `package.module:factory`, or `hf:config.json` for a transformers config."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flopcallback.cli.failures import UsageError, users_code

__all__ = ["load_model"]

HUB = "hf:"
"""In front of a transformers config: a folder, a file, or the id of a model."""


def load_model(
    target: str, arguments: Mapping[str, Any], *, device: str | None
) -> tuple[Callable[..., Any], str | None]:
    """The model, and the device that it was made on; None where that was left to it.

    A transformers model is made on the meta device unless another one is asked for: a config has no weights.

    Args:
        target: `module:name` of a module, a class or a function that returns one, or `hf:` and a config.
        arguments: of the class or function; of a config, fields that are to be different.
        device: where to make it.

    Raises:
        UsageError: there is no such thing, or it is no model.
    """
    model: Callable[..., Any]
    if target.startswith(HUB):
        device = device or "meta"
        model = _from_config(target.removeprefix(HUB), arguments, _on(device))
    else:
        model = _from_module(target, arguments, _on(device))
    if isinstance(model, nn.Module) and device is not None:
        with users_code(f"moving the model to {device}"):
            model.to(device)
    return model, device


def _on(device: str | None) -> AbstractContextManager[Any]:
    return nullcontext() if device is None else torch.device(device)


# --- A module of the user's -------------------------------------------------------------------------------------------


def _from_module(target: str, arguments: Mapping[str, Any], place: AbstractContextManager[Any]) -> Callable[..., Any]:
    found = _named(target)
    if isinstance(found, nn.Module):
        if arguments:
            raise UsageError(f"{target} is a model already; --arg is for a class or a function that makes one")
        return found
    if not callable(found):
        raise UsageError(f"{target} is {_shown(found)}, expected a model, or a class or a function that makes one")
    given = f"({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    with users_code(f"{target}{given if arguments else '() (--arg gives it arguments)'}"), place:
        model = found(**arguments)
    if not callable(model):
        raise UsageError(f"{target} returned {_shown(model)}, expected a model")
    return model  # type: ignore[no-any-return]


def _named(target: str) -> Any:
    """What `package.module:name` names; the working directory is searched first, as by `python -m`."""
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise UsageError(f"{target!r} is no module:name, such as net:make for make in net.py, and no {HUB}config.json")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise UsageError(f"{module_name!r} is a file, expected a module: {dotted}:{path}, from the folder it is in")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found: Any = _module(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, dir(found), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{target!r}: {_shown(found)} has no {name!r}{hint}")
        found = getattr(found, name)
    return found


def _module(name: str) -> Any:
    with users_code(f"importing {name}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # one that it imports is missing
                raise
            raise UsageError(f"there is no module {name!r} in {Path.cwd()} or among the installed packages") from None


def _shown(value: Any) -> str:
    return f"the module {value.__name__}" if isinstance(value, type(sys)) else f"{value!r:.80}"


# --- A transformers config --------------------------------------------------------------------------------------------


def _from_config(source: str, fields: Mapping[str, Any], place: AbstractContextManager[Any]) -> nn.Module:
    if importlib.util.find_spec("transformers") is None:
        raise UsageError(f"{HUB}{source} needs transformers: pip install transformers")
    with users_code("importing transformers"):
        transformers: Any = importlib.import_module("transformers")
    config = _config(transformers, source, fields)
    # The class that the config was made for, with its head; without one in the config, the model behind the heads.
    kind = getattr(transformers, next(iter(config.architectures or ()), ""), None)
    with users_code(f"making the model of {HUB}{source}"), place:
        model: nn.Module = (transformers.AutoModel.from_config if kind is None else kind)(config)
    return model


def _config(transformers: Any, source: str, fields: Mapping[str, Any]) -> Any:
    is_path = source.endswith(".json") or source.startswith((".", "/", "~"))
    path = Path(source).expanduser()
    if is_path and not path.exists():
        raise UsageError(f"{HUB}{source}: there is no file or folder {path}")
    with users_code(f"reading {HUB}{source}"):
        try:
            return transformers.AutoConfig.from_pretrained(str(path) if path.exists() else source, **fields)
        except OSError:
            if path.exists():
                raise
            raise UsageError(
                f"{HUB}{source} is neither a file nor a folder here, so it is taken for a model on the Hugging Face "
                "Hub, and its config could not be had from there (no network, no such model, or no access). A "
                f"config.json that was downloaded is named as {HUB}path/to/config.json."
            ) from None
