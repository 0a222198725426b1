"""ignite: the hook around `trainer.run`."""

import torch
from check import check, linear
from ignite.engine import create_supervised_trainer
from torch import nn

ROWS, WIDE, HIDDEN, OUT, BATCH, EPOCHS = 60, 12, 16, 3, 10, 2


def train(hook_of):
    model = nn.Sequential(nn.Linear(WIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    batches = [(torch.randn(BATCH, WIDE), torch.arange(BATCH) % OUT) for _ in range(ROWS // BATCH)]
    with hook_of(model, optimizer):
        trainer.run(batches, max_epochs=EPOCHS)
    return model.parameters()


if __name__ == "__main__":
    check("pytorch-ignite", train, EPOCHS * ROWS // BATCH * linear(BATCH, WIDE, HIDDEN, OUT)[1])
