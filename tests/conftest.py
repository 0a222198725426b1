"""Which tests run where: markers that name optional packages, and the run of the core without any of them."""

from __future__ import annotations

import datetime
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

# Read when torch is first imported: the tests run in several processes, and their tensors are small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# 2026-11, comet_ml 3.58: even an offline experiment asks a cloud's metadata address where it is, and has Sentry know of
# its warnings. No test asks any address.
os.environ.update(COMET_AUTO_LOG_ENV_DETAILS="false", COMET_INTERNAL_SENTRY_DSN="")

import hypothesis
import pytest

OPTIONAL_PACKAGES = {
    "lightning": ("lightning", "pytorch_lightning"),
    "tensorboard": ("tensorboard", "tensorboardX", "matplotlib"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "comet": ("comet_ml",),
    "accelerate": ("accelerate",),
    "models": ("transformers", "torchmetrics", "sklearn", "opt_einsum", "pandas"),
    "sweeps": ("optuna",),
    "peers": ("fvcore",),
}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")

# The first call of an operator can take a second: time says nothing about an example.
hypothesis.settings.register_profile("flopcallback", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("flopcallback")


def is_installed(package: str) -> bool:
    """Whether `package` can be imported; a bare folder of that name (a tracker's run folder, say) does not count."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--core-only",
        action="store_true",
        help="run what needs no optional package, on an installed flopcallback, where no such package is installed",
    )
    parser.addoption(
        "--zoo",
        type=int,
        metavar="SEED",
        help="run all of tests/zoo, in every mode, with sizes drawn by this seed, instead of the day's slice of it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse an environment that would make the run say less than it seems to."""
    # Set here, as all processes of a run must have the same; set by hand, it repeats the run of another day.
    os.environ.setdefault("ZOO_DAY", str(datetime.date.today().toordinal()))
    packages = [package for group in OPTIONAL_PACKAGES.values() for package in group]
    if not config.getoption("--core-only"):
        if missing := [package for package in packages if not is_installed(package)]:
            raise pytest.UsageError(f"not installed: {', '.join(missing)}; run `make test`, or pass --core-only")
        return
    if present := [package for package in packages if is_installed(package)]:
        raise pytest.UsageError(f"--core-only is for an environment without {', '.join(present)}")
    spec = find_spec("flopcallback")
    if spec is None or spec.origin is None or Path(spec.origin).is_relative_to(config.rootpath / "flopcallback"):
        raise pytest.UsageError("--core-only tests the installed wheel, but flopcallback comes from the source tree")


def pytest_report_header() -> str:
    """Say which slice of the zoo is visited."""
    return f"ZOO_DAY={os.environ['ZOO_DAY']}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Files go to the processes one after the other: those that take long begin, and at the end no process waits.
    takes_long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in takes_long)
    for item in items:
        if any(item.get_closest_marker(name) for name in (*OPTIONAL_PACKAGES, "browser")):
            item.add_marker("slow")  # Each process imports the package, or starts the browser.
    if config.getoption("--core-only"):
        optional = [item for item in items if any(item.get_closest_marker(name) for name in OPTIONAL_PACKAGES)]
        config.hook.pytest_deselected(items=optional)
        items[:] = [item for item in items if item not in optional]
    if not any(shutil.which(name) for name in CHROMIUM):
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.skip(reason="no Chromium on this machine"))


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said once per process is said once per test."""
    if (old_names := sys.modules.get("flopcallback.profile.old_names")) is not None:
        monkeypatch.setattr(old_names, "_said", set())


@pytest.fixture
def frozen_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more column of the table of modules, by the one row that it takes."""
    from flopcallback.profile import columns

    column = columns.Column(
        "params_frozen",
        "frozen",
        "amount",
        lambda _, rows: [row.params - row.params_trainable for row in rows],
        help="parameters that do not train",
        lead=3,
        terminal=1,
        markdown=1,
        page=2,
        diff=0,
    )
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, column))


@pytest.fixture
def joules_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more metric, by the one row that it takes."""
    from flopcallback.profile import metrics

    metric = metrics.Metric(
        "perf/samples_per_joule",
        "samples/s",
        "log",
        "max",
        "efficiency",
        "per joule",
        "median",
        text="{} for each watt",
    )
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, metric))
