"""neuralforecast: it trains copies of its models, and so of the callback; the user's own has the profiles."""

import numpy as np
import pandas as pd
import torch
from check_callback import QUIET, check_callback
from neuralforecast import NeuralForecast
from neuralforecast.models import NHITS

LENGTH, HORIZON, PAST, STEPS = 60, 3, 9, 12


def train(callbacks):
    days = np.tile(pd.date_range("2020", periods=LENGTH, freq="D"), 4)
    values = {"unique_id": np.repeat(list("abcd"), LENGTH), "ds": days, "y": np.sin(np.arange(4.0 * LENGTH) / 5)}
    model = NHITS(
        HORIZON, PAST, mlp_units=3 * [[16, 16]], max_steps=STEPS, batch_size=4, windows_batch_size=16,
        accelerator="cpu", devices=1, callbacks=callbacks, **QUIET,
    )  # fmt: skip
    package = NeuralForecast([model], freq="D")
    package.fit(pd.DataFrame(values))
    forecast = torch.as_tensor(package.predict()["NHITS"].to_numpy())
    return [*package.models[0].parameters(), forecast]


if __name__ == "__main__":
    _, numbers = check_callback("neuralforecast", train)
    assert "compute/samples_total" not in numbers  # a batch has series, of which the step draws windows
