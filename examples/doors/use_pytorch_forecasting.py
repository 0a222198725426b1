"""pytorch-forecasting: a Temporal Fusion Transformer; series of other lengths, so of other shapes in every batch."""

import numpy as np
import pandas as pd
from check_callback import QUIET, check_callback
from lightning.pytorch import Trainer
from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import QuantileLoss

LENGTH, BATCH, STEPS, EPOCHS = 40, 32, 4, 2


def train(callbacks):
    times, series = np.tile(np.arange(LENGTH), 4), np.repeat(list("abcd"), LENGTH)
    values = pd.DataFrame({"time": times, "series": series, "value": np.sin(np.arange(4.0 * LENGTH) / 5)})
    data = TimeSeriesDataSet(
        values, time_idx="time", target="value", group_ids=["series"], static_categoricals=["series"],
        min_encoder_length=4, max_encoder_length=8, min_prediction_length=1, max_prediction_length=3,
        time_varying_unknown_reals=["value"], time_varying_known_reals=["time"],
    )  # fmt: skip
    model = TemporalFusionTransformer.from_dataset(
        data, hidden_size=8, attention_head_size=2, hidden_continuous_size=4, loss=QuantileLoss(), optimizer="adam"
    )
    trainer = Trainer(
        max_epochs=EPOCHS, limit_train_batches=STEPS, accelerator="cpu", enable_checkpointing=False,
        callbacks=callbacks, **QUIET,
    )  # fmt: skip
    trainer.fit(model, data.to_dataloader(train=True, batch_size=BATCH))
    return model.parameters()


if __name__ == "__main__":
    _, numbers = check_callback("pytorch-forecasting", train)
    assert numbers["compute/samples_total"] == EPOCHS * STEPS * BATCH
