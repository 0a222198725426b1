"""`flopcallback count`: one call as a table, JSON, HTML or Markdown."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.nn.parameter import is_lazy

from flopcallback.cli.failures import COULD_NOT, FAILED, UsageError, user_code
from flopcallback.cli.inputs import parse_arguments, parse_dtype, parse_inputs
from flopcallback.cli.screen import say, screen
from flopcallback.cli.sources import load_model
from flopcallback.counting.verification import COMPARABLE, checked_engines
from flopcallback.modules.errors import first_line
from flopcallback.profile.old_names import OldNameWarning
from flopcallback.profile.verdict import Verdict
from flopcallback.profiling.checks import NO_FMA
from flopcallback.profiling.measure import measure_latency
from flopcallback.profiling.on_demand import profile_call, verify_call
from flopcallback.reporting import (
    ModelProfile,
    html_page,
    markdown_modules,
    markdown_operators,
    plain_table,
    rich_table,
    verdict_line,
    write_file,
)
from flopcallback.reporting.units import visible_json
from flopcallback.tracing.run import AUTO, ENGINES, TRACE

__all__ = ["count"]

# By the suffix of a file, which stands for the printed form as well.
FORMS: dict[str, Callable[[ModelProfile], str]] = {
    ".json": lambda profile: profile.to_json(indent=1),
    ".html": html_page,
    ".md": lambda profile: f"{markdown_modules(profile)}\n\n{markdown_operators(profile)}",
    ".txt": plain_table,
}


# An enumeration, since typer takes choices from one.
class Engine(str, Enum):
    """Values of `--engine`."""

    AUTO, TRACE, DISPATCH, OBSERVER = ENGINES


def count(
    target: Annotated[
        str, typer.Argument(metavar="MODEL", help="module:name of a model, a class or a function; or hf:config.json.")
    ],
    input_: Annotated[
        list[str],
        typer.Option(
            "--input",
            "-i",
            metavar="[NAME=]SHAPE[:DTYPE[:RANGE]]",
            help="Input tensor of random values: 1,3,224,224 or ids=1,128:int64:1000. May be repeated.",
        ),
    ] = [],  # noqa: B006 - typer takes it as a default and never gives it out
    arg: Annotated[
        list[str],
        typer.Option(metavar="NAME=VALUE", help="Argument of the class, function or config. May be repeated."),
    ] = [],  # noqa: B006
    device: Annotated[
        str | None, typer.Option(help="Device of the model: cpu, cuda, or meta to compute nothing.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Dtype of the model and of inputs without one, such as bfloat16.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train/--eval", help="Training mode with gradients, or evaluation without.")
    ] = False,
    fma: Annotated[int | None, typer.Option(min=1, max=2, help="Without effect: FLOPs are 2 per multiply-add.")] = None,
    elementwise: Annotated[
        bool, typer.Option("--elementwise", help="Count elementwise operators too, in the column macs.")
    ] = False,
    engine: Annotated[
        Engine,
        typer.Option(help="Counting engine: the tracer, the dispatcher, either of them, or PyTorch's own records."),
    ] = Engine.AUTO,
    latency: Annotated[bool, typer.Option("--latency", help="Measure times by module as well.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Count with tracer and dispatcher; exit code 1 where they differ.")
    ] = False,
    verify_with: Annotated[
        str | None,
        typer.Option(metavar="ENGINE,ENGINE", help="As --verify, with two of trace, dispatch and observer."),
    ] = None,
    depth: Annotated[int | None, typer.Option(min=0, help="Levels of modules in the table.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Print the HTML page in place of the table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown in place of the table.")] = False,
    output: Annotated[
        list[Path],
        typer.Option(
            "--output", "-o", metavar="FILE", help="Also write a .json, .html, .md or .txt file. May be repeated."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Count the FLOPs of one call of a model, module by module."""
    form = _form(json=json, html=html, markdown=markdown)
    engines = _engines_of(verify_with) if verify_with is not None else Verdict().engines if verify else None
    _check_files(output)
    _check_device(device)
    if fma is not None:
        warnings.warn(f"--fma: {NO_FMA}", OldNameWarning, stacklevel=1)
    kind = _model_dtype(dtype)
    torch.manual_seed(0)  # data-dependent models take the same path every time
    model, device = load_model(target, parse_arguments(arg), device=device)
    _set_modes(model, kind, is_training=train)
    args, kwargs = parse_inputs(input_, device=device, dtype=kind)
    with user_code(_calling(model, args, kwargs)), torch.set_grad_enabled(train):
        _initialise(model, args, kwargs)
        take = measure_latency if latency else profile_call
        # "auto" in place of "trace": `_check_engine` then tells a call that cannot be traced from one that raises.
        engine_name = AUTO if engine.value == TRACE else engine.value
        profile = take(model, args, kwargs, elementwise=elementwise, engine=engine_name)
        _check_engine(engine.value, profile)
        if engines is not None:
            profile = dataclasses.replace(profile, verdict=verify_call(model, args, kwargs, engines=engines))
    for path in output:
        _write(path, FORMS[path.suffix](profile) + "\n")
    _print(profile, form, depth)
    _end(profile, is_printed=not form)


def _form(**flags: bool) -> str:
    """Return the suffix of the printed form, empty for the table."""
    forms = [name for name, is_given in flags.items() if is_given]
    if len(forms) > 1:
        raise UsageError(
            f"--{' and --'.join(forms)}: only one form can be printed; --output writes any number of files"
        )
    return {"json": ".json", "html": ".html", "markdown": ".md"}[forms[0]] if forms else ""


def _engines_of(text: str) -> tuple[str, str]:
    try:
        return checked_engines("--verify-with", [name.strip() for name in text.split(",")])
    except ValueError:
        expected = f"expected two different ones of {', '.join(COMPARABLE)}, such as trace,observer"
        raise UsageError(f"--verify-with {text}: {expected}") from None


def _check_files(paths: list[Path]) -> None:
    for path in paths:
        if path.suffix not in FORMS:
            raise UsageError(f"--output {path}: its form is not known; a name ends in {', '.join(FORMS)}")
        if not path.parent.is_dir():  # checked now, since the count may take minutes
            raise UsageError(f"--output {path}: there is no folder {path.parent}")


def _check_device(device: str | None) -> None:
    try:
        torch.empty(0, device=device)
    except Exception as error:  # noqa: BLE001 - each backend raises what it likes when it is not there
        raise UsageError(f"--device {device}: {first_line(error)}") from None


def _check_engine(engine: str, profile: ModelProfile) -> None:
    """Raise if another engine counted than the one asked for."""
    if engine == TRACE != profile.config["flops.engine"]:
        reason = profile.config["flops.engine_reason"]
        raise UsageError(f"--engine trace: {reason}; the dispatcher can count this call, with --engine auto")


def _model_dtype(name: str | None) -> torch.dtype | None:
    dtype = parse_dtype(name, "--dtype") if name else None
    # `model.to` refuses integers, with a message that does not name the option.
    if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
        raise UsageError(
            f"--dtype {name}: parameters are floating-point; integers are for inputs: --input 1,128:{name}"
        )
    return dtype


def _initialise(model: Callable[..., Any], args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
    """Call a model with lazy modules once, which gives them their sizes."""
    if isinstance(model, nn.Module) and any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        model(*args, **kwargs)


def _set_modes(model: Callable[..., Any], dtype: torch.dtype | None, *, is_training: bool) -> None:
    if isinstance(model, nn.Module):
        with user_code("setting its mode"):
            model.train(is_training)
            if dtype is not None:
                model.to(dtype)


def _calling(model: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> str:
    """Describe the call by everything that a user can change."""
    texts = [str(tuple(tensor.shape)) for tensor in args]
    texts += [f"{name}={tuple(tensor.shape)}" for name, tensor in kwargs.items()]
    inputs = ", ".join(texts) if texts else "nothing (--input gives it tensors)"
    # A model that looks at values of meta tensors fails: the message names the device that computes them.
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    is_meta = any(tensor.is_meta for tensor in (*args, *kwargs.values(), *weights))
    where = " on the meta device, where nothing is computed (--device cpu computes it)" if is_meta else ""
    return f"calling it{where} with {inputs}"


def _write(path: Path, text: str) -> None:
    try:
        write_file(path, text)
    except OSError as error:
        raise UsageError(f"--output {path}: {error.strerror}") from None


def _print(profile: ModelProfile, form: str, depth: int | None) -> None:
    if form:
        text = FORMS[form](profile)
        say(visible_json(text) if form == ".json" else text)
        return
    console = screen()
    console.print(rich_table(profile, width=console.width, max_depth=depth))


def _end(profile: ModelProfile, *, is_printed: bool) -> None:
    """Exit with the code of the verdict, if there is one."""
    verdict = profile.verdict
    if verdict is None:
        return
    # A call that one engine cannot count is not verified, so it does not pass.
    code = COULD_NOT if verdict.reason else FAILED if verdict.differences else 0
    # The table has the verdict already; JSON and other forms must not be mixed with it.
    if code or not is_printed:
        say({0: "", FAILED: "Failed: ", COULD_NOT: "Error: "}[code] + verdict_line(profile), is_error=True)
    raise typer.Exit(code)
