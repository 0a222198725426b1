"""Prints the FLOPs that W&B, TensorBoard and MLflow hold, in total and by module. It knows nothing of flopcallback.

python read_back.py W&B-RUN-FOLDER EVENTS-FOLDER MLFLOW-ADDRESS MLFLOW-RUN
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from wandb_files import RunFiles


def in_wandb(folder: str) -> dict[str, object]:
    read = RunFiles(folder)
    modules = paths(read.table("workload/modules"))
    return {"forward": read.summary["flopcallback"]["flops/forward"], "modules": modules}


def paths(rows: list[dict[str, object]]) -> dict[str, object]:
    """FLOPs by path; the first row is the root, which has the model's name for a path."""
    return {"" if place == 0 else row["path"]: row["flops"] for place, row in enumerate(rows)}


def in_tensorboard(folder: str) -> dict[str, object]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder, size_guidance={"tensors": 0}).Reload()
    tree = events.Tensors("workload/tree/text_summary")[-1].tensor_proto.string_val[0].decode()
    (total,) = re.findall(r"^forward: ([\d,]+) FLOPs", tree, re.MULTILINE)
    profile = json.loads(Path(folder, "flopcallback.json").read_text(encoding="utf-8"))
    modules = {row["path"]: row["flops"] for row in profile["modules"]}
    return {"forward": int(total.replace(",", "")), "modules": modules}


def in_mlflow(address: str, run_id: str) -> dict[str, object]:
    from mlflow import MlflowClient

    client = MlflowClient(address)
    table = json.loads(Path(client.download_artifacts(run_id, "flops/modules.json")).read_text(encoding="utf-8"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    modules = paths(rows)
    return {"forward": int(client.get_run(run_id).data.tags["flops.forward"]), "modules": modules}


if __name__ == "__main__":
    wandb_folder, events_folder, *mlflow_run = sys.argv[1:]
    found = {
        "wandb": in_wandb(wandb_folder),
        "tensorboard": in_tensorboard(events_folder),
        "mlflow": in_mlflow(*mlflow_run),
    }
    json.dump(found, sys.stdout)
