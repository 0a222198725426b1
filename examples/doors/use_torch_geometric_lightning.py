"""torch_geometric under Lightning, with its data module: batches of graphs, of other sizes in every step."""

import torch
import torchmetrics
from check import linear
from check_callback import QUIET, check_callback
from lightning.pytorch import LightningModule, Trainer
from torch_geometric.data import Data
from torch_geometric.data.lightning import LightningDataset
from torch_geometric.nn import GCNConv, global_mean_pool

WIDE, HIDDEN, OUT, BATCH, EPOCHS = 5, 16, 3, 4, 3
NODES = [4 + 7 * n % 11 for n in range(24)]


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.first, self.second = GCNConv(WIDE, HIDDEN), GCNConv(HIDDEN, OUT)
        self.accuracy, self.val_accuracy = (torchmetrics.Accuracy("multiclass", num_classes=OUT) for _ in range(2))

    def training_step(self, batch, _):
        x = self.first(batch.x, batch.edge_index).relu()
        scores = global_mean_pool(self.second(x, batch.edge_index), batch.batch)
        self.log("train/accuracy", self.accuracy(scores, batch.y), batch_size=batch.num_graphs)
        return torch.nn.functional.cross_entropy(scores, batch.y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def ring(nodes):
    edges = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes])
    return Data(x=torch.randn(nodes, WIDE), edge_index=edges, y=torch.tensor([nodes % OUT]))


def train(callbacks):
    data, net = LightningDataset([ring(nodes) for nodes in NODES], batch_size=BATCH), Net()
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, enable_checkpointing=False, callbacks=callbacks, **QUIET
    )
    trainer.fit(net, data)
    return net.parameters()


if __name__ == "__main__":
    flops = EPOCHS * linear(sum(NODES), WIDE, HIDDEN, OUT)[1]
    profile, numbers = check_callback("torch-geometric", train, flops)
    assert numbers["compute/samples_total"] == EPOCHS * len(NODES)  # graphs, and not nodes
    assert {row.path for row in profile.modules if row.depth == 1} == {"first", "second", "accuracy", "(training_step)"}
