"""torch_geometric: a plain loop over graphs; sums over neighbours are no products."""

import torch
from check import check, linear
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool

NODES, WIDE, HIDDEN, OUT, GRAPHS, BATCH, EPOCHS = 7, 5, 16, 3, 12, 4, 2


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = GCNConv(WIDE, HIDDEN), GCNConv(HIDDEN, OUT)

    def forward(self, data):
        x = self.first(data.x, data.edge_index).relu()
        return global_mean_pool(self.second(x, data.edge_index), data.batch)


def train(hook_of):
    ring = torch.stack([torch.arange(NODES), (torch.arange(NODES) + 1) % NODES])
    graphs = [Data(x=torch.randn(NODES, WIDE), edge_index=ring, y=torch.tensor([n % OUT])) for n in range(GRAPHS)]
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    with hook_of(model, optimizer):
        for _ in range(EPOCHS):
            for batch in DataLoader(graphs, batch_size=BATCH):
                torch.nn.functional.cross_entropy(model(batch), batch.y).backward()
                optimizer.step()
                optimizer.zero_grad()
    return model.parameters()


if __name__ == "__main__":
    hook = check("torch-geometric", train, EPOCHS * GRAPHS // BATCH * linear(BATCH * NODES, WIDE, HIDDEN, OUT)[1])
    assert hook.metrics()["compute/samples_total"] == EPOCHS * GRAPHS  # graphs, and not nodes
