"""Model of a command line: `package.module:factory`, or a transformers config.

A config is `hf:config.json`.
"""

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

from flopcallback.cli.failures import UsageError, user_code

__all__ = ["load_model"]

HUB = "hf:"
"""Prefix of a transformers config: a folder, a file, or the id of a model."""


def load_model(
    target: str, arguments: Mapping[str, Any], *, device: str | None
) -> tuple[Callable[..., Any], str | None]:
    """Load the model that a command line names.

    A transformers model is made on the meta device unless another one is given: a config has no weights.

    Args:
        target: `module:name` of a module, a class or a function that returns one, or `hf:` and a config.
        arguments: arguments of the class or function; fields of a config to replace.
        device: device to make the model on.

    Returns:
        The model and its device, None if no device was chosen.

    Raises:
        UsageError: there is no such model.
    """
    model: Callable[..., Any]
    if target.startswith(HUB):
        device = device or "meta"
        model = _from_config(target.removeprefix(HUB), arguments, _on(device))
    else:
        model = _from_module(target, arguments, _on(device))
    # A module made without regard to `torch.device(...)`, such as one that was imported, is still elsewhere.
    if isinstance(model, nn.Module) and device is not None:
        with user_code(f"moving the model to {device}"):
            model.to(device)
    return model, device


def _on(device: str | None) -> AbstractContextManager[Any]:
    return nullcontext() if device is None else torch.device(device)


# --- A module of the user's -------------------------------------------------------------------------------------------


def _from_module(target: str, arguments: Mapping[str, Any], place: AbstractContextManager[Any]) -> Callable[..., Any]:
    source = _import(target)
    if isinstance(source, nn.Module):
        if arguments:
            raise UsageError(f"{target} is a model already; --arg is for a class or a function that makes one")
        return source
    if not callable(source):
        raise UsageError(f"{target} is {_described(source)}, expected a model, or a class or a function that makes one")
    given = f"({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    with user_code(f"{target}{given if arguments else '() (--arg gives it arguments)'}"), place:
        model = source(**arguments)
    if not callable(model):
        raise UsageError(f"{target} returned {_described(model)}, expected a model")
    return model  # type: ignore[no-any-return]


def _import(target: str) -> Any:
    """Import the object that `package.module:name` names.

    The working directory is searched first, as with `python -m`.
    """
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise UsageError(
            f"{target!r} names no model. Give module:name, such as net:Net for class Net in net.py, or {HUB}config.json"
        )
    if module_name.endswith(".py") or "/" in module_name:
        # A path is a common mistake, so the message has the module's name ready.
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise UsageError(f"{module_name!r} is a file, expected a module: {dotted}:{path}, from the folder it is in")
    # The installed command has its own folder there, unlike `python -m`.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    value: Any = _module(module_name)
    for name in path.split("."):
        if not hasattr(value, name):
            matches = difflib.get_close_matches(name, dir(value), n=1)
            hint = f"; did you mean {matches[0]}?" if matches else ""
            raise UsageError(f"{target!r}: {_described(value)} has no {name!r}{hint}")
        value = getattr(value, name)
    return value


def _module(name: str) -> Any:
    with user_code(f"importing {name}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Another module is missing, one that it imports: that is an error of the user's code.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise UsageError(f"there is no module {name!r} in {Path.cwd()} or among the installed packages") from None


def _described(value: Any) -> str:
    return f"the module {value.__name__}" if isinstance(value, type(sys)) else f"{value!r:.80}"


# --- A transformers config --------------------------------------------------------------------------------------------


def _from_config(source: str, fields: Mapping[str, Any], place: AbstractContextManager[Any]) -> nn.Module:
    if importlib.util.find_spec("transformers") is None:
        raise UsageError(f"{HUB}{source} needs transformers: pip install transformers")
    with user_code("importing transformers"):
        transformers: Any = importlib.import_module("transformers")
    config = _config(transformers, source, fields)
    # The config's own class, with its head, such as `LlamaForCausalLM`; without one, the model below the heads.
    architecture = getattr(transformers, next(iter(config.architectures or ()), ""), None)
    with user_code(f"making the model of {HUB}{source}"), place:
        model: nn.Module = (transformers.AutoModel.from_config if architecture is None else architecture)(config)
    return model


def _config(transformers: Any, source: str, fields: Mapping[str, Any]) -> Any:
    # A text such as "org/name" may be either; these can only be meant as files.
    is_path = source.endswith(".json") or source.startswith((".", "/", "~"))
    path = Path(source).expanduser()
    if is_path and not path.exists():
        raise UsageError(f"{HUB}{source}: there is no file or folder {path}")
    with user_code(f"reading {HUB}{source}"):
        try:
            return transformers.AutoConfig.from_pretrained(str(path) if path.exists() else source, **fields)
        except OSError:  # also what transformers raises without a network
            if path.exists():
                raise
            raise UsageError(
                f"{HUB}{source} is neither a file nor a folder here, so it is taken for a model on the Hugging Face "
                "Hub, and its config could not be had from there (no network, no such model, or no access). A "
                f"config.json that was downloaded is named as {HUB}path/to/config.json."
            ) from None
