"""skorch: a callback makes the hook, where the net has its module and its optimizer."""

import numpy as np
from check import check, linear
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

ROWS, WIDE, HIDDEN, OUT, BATCH, EPOCHS = 60, 12, 16, 3, 10, 2


def train(hook_of):
    class Count(Callback):
        def on_train_begin(self, net, **_):
            self.hook = hook_of(net.module_, net.optimizer_)

        def on_train_end(self, net, **_):
            self.hook.close()

    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(WIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT), nn.Softmax(-1)),
        max_epochs=EPOCHS, batch_size=BATCH, lr=0.1, train_split=None, callbacks=[Count()], verbose=0,
    )  # fmt: skip
    x = np.linspace(-1, 1, ROWS * WIDE, dtype=np.float32).reshape(ROWS, WIDE)
    net.fit(x, np.arange(ROWS) % OUT)
    return net.module_.parameters()


if __name__ == "__main__":
    check("skorch", train, EPOCHS * ROWS // BATCH * linear(BATCH, WIDE, HIDDEN, OUT)[1])
