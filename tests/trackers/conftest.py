from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow_stores as stores
import pytest

from flopcallback.reporting import LatencySummary, ModelProfile, ModuleRow, OperatorRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def net(flops: Sequence[int], names: Sequence[str] = (), **more: object) -> ModelProfile:
    """A net of linear layers side by side with these FLOPs; without names they are `layer0`, `layer1`, ..."""
    named = names or [f"layer{index}" for index in range(len(flops))]
    rows = [
        ModuleRow(name, "", 1, "Linear", calls=1, params=each, flops=each, own_flops=each, macs=each // 2)
        for name, each in zip(named, flops, strict=True)
    ]
    total = sum(flops)
    macs = sum(row.macs for row in rows)
    top = ModuleRow("", None, 0, "Net", calls=1, params=total, flops=total, macs=macs)
    content: dict[str, object] = {
        "name": "Net",
        "phase": "train",
        "modules": (top, *rows),
        "operators": (OperatorRow("aten::linear", len(rows), total, "matmul", macs=macs),),
        "batch_size": 4,
        "forward_flops": total,
        "forward_macs": macs,
        **more,
    }
    return ModelProfile(**content)  # type: ignore[arg-type]


@pytest.fixture(name="net", scope="session")
def net_() -> Callable[..., ModelProfile]:
    return net


@pytest.fixture
def timed() -> Callable[[ModelProfile], ModelProfile]:
    """The profile with 0.5 ms for each module but the root."""

    def with_times(profile: ModelProfile) -> ModelProfile:
        times = {row.path: 0.5 for row in profile.modules[1:]}
        return profile.with_latency(LatencySummary(forward_ms=0.5 * len(times), step_ms=9.0, steps=20), times)

    return with_times


@pytest.fixture(scope="module")
def _collected() -> Iterator[None]:
    """Here, and not in a test of another file, which knows nothing of the folders that W&B leaves to the collector."""
    yield
    gc.collect()


@pytest.fixture
def wandb_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _collected: None) -> None:
    """What W&B would write elsewhere stays in the test's folder; Lightning's logger sets the mode by itself."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of MLflow's without runs, to copy."""
    return stores.make_database(tmp_path_factory.mktemp("mlflow") / "empty.db")


@pytest.fixture(scope="session")
def sqlite(empty_database: Path) -> str:
    """The address of a bare SQLite store."""
    database = empty_database.with_name("store.db")
    shutil.copy(empty_database, database)
    return f"sqlite:///{database}"


@pytest.fixture(scope="session")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server on loopback, one for each process of tests."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copy(empty_database, folder / "store.db")
    with stores.serving(folder, folder / "store.db") as address:
        yield address
