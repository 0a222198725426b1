"""fastai: its optimizer is none of PyTorch's, so a callback marks where steps begin and end."""

import torch
from check import check, linear
from fastai.callback import progress  # noqa: F401 - gives a learner `no_bar`
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROWS, WIDE, HIDDEN, OUT, BATCH, EPOCHS = 60, 12, 16, 3, 10, 2


def train(hook_of):
    class Count(Callback):
        def before_fit(self):
            self.hook = hook_of(self.learn.model)

        def before_batch(self):
            if self.training:
                self.hook.begin_step()

        def after_batch(self):
            if self.training:
                self.hook.end_step()

        def after_fit(self):
            self.hook.close()

    x = torch.linspace(-1, 1, ROWS * WIDE).view(ROWS, WIDE)
    batches = DataLoader(TensorDataset(x, torch.arange(ROWS) % OUT), BATCH)
    model = nn.Sequential(nn.Linear(WIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))
    learner = Learner(DataLoaders(batches, batches), model, loss_func=nn.functional.cross_entropy, cbs=[Count()])
    with learner.no_bar(), learner.no_logging():
        learner.fit(EPOCHS)
    return model.parameters()


if __name__ == "__main__":
    check("fastai", train, EPOCHS * ROWS // BATCH * linear(BATCH, WIDE, HIDDEN, OUT)[1])
