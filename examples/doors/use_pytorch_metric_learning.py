"""pytorch-metric-learning: losses and miners are modules, with rows. Mined pairs have other shapes in every step."""

import torch
from check import linear
from check_callback import QUIET, check_callback
from lightning.pytorch import LightningModule, Trainer
from pytorch_metric_learning import losses, miners, samplers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WIDE, HIDDEN, OUT, CLASSES, BATCH, STEPS, EPOCHS = 12, 16, 8, 5, 20, 3, 3


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))
        self.miner, self.triplets = miners.MultiSimilarityMiner(), losses.TripletMarginLoss()
        self.classes = losses.ArcFaceLoss(num_classes=CLASSES, embedding_size=OUT)

    def training_step(self, batch, _):
        x, y = batch
        embeddings = self.net(x)
        return self.classes(embeddings, y) + self.triplets(embeddings, y, self.miner(embeddings, y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(callbacks):
    labels = torch.arange(STEPS * BATCH) % CLASSES
    sampler = samplers.MPerClassSampler(labels, m=4, batch_size=BATCH, length_before_new_iter=len(labels))
    data, net = TensorDataset(torch.randn(len(labels), WIDE), labels), Net()
    trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", enable_checkpointing=False, callbacks=callbacks, **QUIET)
    trainer.fit(net, DataLoader(data, BATCH, sampler=sampler))
    return net.parameters()


if __name__ == "__main__":
    mined = 2 * BATCH * BATCH * OUT  # cosines of all pairs, without grad
    step = linear(BATCH, WIDE, HIDDEN, OUT)[1] + 3 * 2 * BATCH * OUT * CLASSES + mined
    profile, numbers = check_callback("pytorch-metric-learning", train, EPOCHS * STEPS * step)
    assert {row.path: row.step.without_grad for row in profile.modules}["miner"] == mined
    assert numbers["compute/samples_total"] == EPOCHS * STEPS * BATCH
