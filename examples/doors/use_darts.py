"""darts: the trainer's arguments are the model's, which copies them where it trains anew, as in a backtest."""

import numpy as np
import torch
from check_callback import QUIET, check_callback
from darts import TimeSeries
from darts.models import NBEATSModel

LENGTH, PAST, HORIZON, EPOCHS, BATCH = 80, 8, 3, 3, 16


def train(callbacks):
    series = TimeSeries.from_values(np.sin(np.arange(LENGTH, dtype=np.float32) / 5))
    model = NBEATSModel(
        PAST, HORIZON, num_stacks=2, num_blocks=1, num_layers=2, layer_widths=16, n_epochs=EPOCHS, batch_size=BATCH,
        random_state=0, pl_trainer_kwargs={"accelerator": "cpu", "callbacks": callbacks, **QUIET},
    )  # fmt: skip
    anew = model.untrained_model()  # before it has learned: its callback is a copy
    anew.fit(series)
    return [*anew.model.parameters(), torch.as_tensor(anew.predict(HORIZON).values())]


if __name__ == "__main__":
    _, numbers = check_callback("darts", train)
    assert numbers["compute/samples_total"] == EPOCHS * (LENGTH - PAST - HORIZON + 1)
