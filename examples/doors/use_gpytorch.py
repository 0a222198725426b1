"""gpytorch: give the hook the marginal likelihood, in which the model and its Cholesky decomposition are."""

import gpytorch
import torch
from check import check

POINTS, WIDE, STEPS = 20, 3, 5


class Exact(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.mean, self.kernel = (
            gpytorch.means.ConstantMean(),
            gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()),
        )

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))


class Loss(torch.nn.Module):
    """The marginal likelihood of the model, with both in it."""

    def __init__(self, mll):
        super().__init__()
        self.mll = mll

    def forward(self, x, y):
        return -self.mll(self.mll.model(x), y)


def train(hook_of):
    x = torch.linspace(0, 1, POINTS * WIDE).view(POINTS, WIDE)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Exact(x, x.sum(1).sin(), likelihood)
    loss = Loss(gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model.train()
    with hook_of(loss, optimizer):
        for _ in range(STEPS):
            loss(x, x.sum(1).sin()).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.parameters()


if __name__ == "__main__":
    kernel = 2 * POINTS * POINTS * (WIDE + 2)  # distances by one product, of points with their squares and ones
    cholesky, solve = POINTS * (POINTS**2 - 1) // 3, POINTS * (POINTS - 1)
    # The backward of the decomposition has a product and two solves with a matrix; that of the solve another solve and
    # a product. The kernel's is elementwise.
    backward = 2 * POINTS**3 + 2 * POINTS * solve + solve + 2 * POINTS**2
    check("gpytorch", train, STEPS * (kernel + cholesky + solve + backward))
