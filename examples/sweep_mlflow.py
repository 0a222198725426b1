"""Train the six networks of sweep.py as children of an MLflow run.

Usage: python examples/sweep_mlflow.py [--budget 16e9] [--output sweep_mlflow_output]

The store is SQLite.
"""

from __future__ import annotations

import mlflow
from lightning.pytorch.loggers import MLFlowLogger
from sweep import compare, configurations, name_of, options, train


def main() -> None:
    given = options(__doc__, "sweep_mlflow_output")
    store = f"sqlite:///{given.output / 'mlflow.db'}"
    mlflow.set_tracking_uri(store)
    experiment = mlflow.create_experiment("digits", artifact_location=(given.output / "artifacts").resolve().as_uri())
    losses = {}
    with mlflow.start_run(experiment_id=experiment, run_name="sweep"):
        for configuration in configurations():
            name = name_of(configuration)
            with mlflow.start_run(experiment_id=experiment, run_name=name, nested=True) as child:
                mlflow.log_params(configuration)
                # By its id, so that the logger writes to this child run and makes none of its own.
                logger = MLFlowLogger("digits", tracking_uri=store, run_id=child.info.run_id)
                losses[name], callback = train(configuration, logger, given.budget)
                spent = callback.profiles["train"].training["compute/flops_total"]
                print(f"{name}: val/loss {losses[name]:.4f}, {spent:,} FLOPs")
        mlflow.log_metric("best_val_loss", min(losses.values()))
    compare([f"{store}#digits"], given.output / "compare.html")
    print(f"\nto look at them: mlflow server --backend-store-uri {store}, and http://localhost:5000")


if __name__ == "__main__":
    main()
