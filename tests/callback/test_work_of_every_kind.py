"""Trainings on quantized, sparse and nested tensors, by transforms and functions of one's own: right to the FLOP."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from observed_steps import OwnProduct, Product
from torch import nn
from torch.utils.checkpoint import checkpoint

from flopcallback import FlopHook

ROWS, WIDE, INNER, OUT, STEPS = 5, 7, 11, 3, 5
FIRST, SECOND = 2 * ROWS * WIDE * INNER, 2 * ROWS * INNER * OUT
# Of a step of two layers: the inputs need no gradient.
STEP = 2 * FIRST + 3 * SECOND
QUIET = {"summary": False, "warmup_steps": 0, "latency_steps": 2, "strict": True}

KINDS = {}


def kind(*arguments):
    """Add a function that returns a model, its inputs and the FLOPs of a step, for each of the arguments."""

    def add(make):
        name = make.__name__.replace("_", " ")
        for argument in arguments or ((),):
            given = argument if isinstance(argument, tuple) else (argument,)
            KINDS[" ".join([name, *map(str, given)])] = lambda given=given: make(*given)
        return make

    return add


class Layers(nn.Module):
    """Two layers, and work between them."""

    def __init__(self, between=torch.relu):
        super().__init__()
        self.first, self.second, self.between = nn.Linear(WIDE, INNER), nn.Linear(INNER, OUT), between

    def forward(self, x, *others):
        return self.second(self.between(self.first(x), *others))


# --- Sparse -----------------------------------------------------------------------------------------------------------

STORED = 9  # of ROWS * ROWS
PROPAGATED = 2 * STORED * INNER  # in the forward, and as much in the backward


def adjacency(layout):
    dense = torch.zeros(ROWS * ROWS)
    dense[torch.arange(STORED) * 2 + 1] = 0.5
    sparse = dense.view(ROWS, ROWS).to_sparse()
    return sparse if layout == "coo" else sparse.to_sparse_csr()


def aggregate(x, graph):
    return torch.sparse.mm(graph, x)


@kind("coo", "csr")
def graph_convolution(layout):
    return Layers(aggregate), (torch.randn(ROWS, WIDE), adjacency(layout)), STEP + 2 * PROPAGATED


@kind("coo", "csr")
def graph_among_others(layout):
    model = Layers(lambda x, graphs: graphs["near"][0] @ x)
    return model, (torch.randn(ROWS, WIDE), {"near": [adjacency(layout)]}), STEP + 2 * PROPAGATED


class OwnGraph(Layers):
    """A model that has its graph, as a buffer or not."""

    def __init__(self, graph, *, is_buffer):
        super().__init__(lambda x: torch.sparse.mm(self.graph, x))
        if is_buffer:
            self.register_buffer("graph", graph)
        else:
            self.graph = graph


@kind(("coo", True), ("csr", True), ("coo", False), ("csr", False))
def graph_of_the_models_own(layout, is_buffer):
    return OwnGraph(adjacency(layout), is_buffer=is_buffer), (torch.randn(ROWS, WIDE),), STEP + 2 * PROPAGATED


# --- Nested -----------------------------------------------------------------------------------------------------------


@kind()
def jagged_rows():
    rows = torch.nested.nested_tensor([torch.randn(2, WIDE), torch.randn(ROWS - 2, WIDE)], layout=torch.jagged)
    model = nn.Sequential(Layers(), Values())
    return model, (rows,), STEP


class Values(nn.Module):
    def forward(self, x):
        return x.values()


# --- Transforms -------------------------------------------------------------------------------------------------------


class PerSample(nn.Module):
    """The gradients of each sample in turn, and a penalty on these; their own gradient stops there."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x):
        def loss(parameters, sample):
            return torch.func.functional_call(self.layers, parameters, (sample[None],)).square().sum()

        parameters = {name: each.detach() for name, each in self.layers.named_parameters()}
        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
        return self.layers(x).mean() + sum(each.square().mean() for each in gradients.values())


@kind()
def gradients_of_each_sample():
    # Each sample: its forward, the gradients of both weights, and back to the first layer. Then a plain step.
    return PerSample(), (torch.randn(ROWS, WIDE),), (2 * FIRST + 3 * SECOND) + STEP


class Mapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x):
        return torch.func.vmap(self.layers)(x)


@kind()
def layers_under_vmap():
    return Mapped(), (torch.randn(ROWS, WIDE),), STEP


class Ensemble(nn.Module):
    def __init__(self, members):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(members, INNER, WIDE))

    def forward(self, x):
        return torch.func.vmap(lambda weight: F.linear(x, weight))(self.weights)


@kind()
def an_ensemble_under_vmap():
    members = 4
    return Ensemble(members), (torch.randn(ROWS, WIDE),), members * 2 * FIRST


# --- Functions and operators of one's own -----------------------------------------------------------------------------


@kind()
def autograd_function():
    return OwnProduct(Product.apply, WIDE, INNER, OUT), (torch.randn(ROWS, WIDE),), STEP


@torch.library.custom_op("work_of_every_kind::product", mutates_args=())
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


@product.register_fake
def _(x, weight):
    return x.new_empty(x.shape[0], weight.shape[1])


def save_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


product.register_autograd(Product.backward, setup_context=save_inputs)
library = torch.library.Library("work_of_every_kind", "FRAGMENT")
library.define("composite(Tensor x, Tensor weight) -> Tensor")
library.impl("composite", lambda x, weight: x @ weight, "CompositeImplicitAutograd")


@kind("product", "composite")
def operator(name):
    model = OwnProduct(getattr(torch.ops.work_of_every_kind, name), WIDE, INNER, OUT)
    return model, (torch.randn(ROWS, WIDE),), STEP


# --- Checkpoints ------------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, *, is_reentrant):
        super().__init__()
        self.first, self.last = nn.Linear(WIDE, INNER), nn.Linear(INNER, OUT)
        self.block = nn.Sequential(nn.Linear(INNER, INNER), nn.Tanh(), nn.Linear(INNER, INNER))
        self.is_reentrant = is_reentrant

    def forward(self, x):
        return self.last(checkpoint(self.block, self.first(x), use_reentrant=self.is_reentrant))


@kind("reentrant", "early")
def checkpoints(how):
    square = 2 * ROWS * INNER * INNER
    # The one ends once all saved tensors are there again: before the last product.
    again = {"reentrant": 2, "early": 1}[how] * square
    model = Checkpointed(is_reentrant=how == "reentrant")
    return model, (torch.randn(ROWS, WIDE),), STEP + 3 * 2 * square + again


# --- Quantized weights ------------------------------------------------------------------------------------------------

WIDTH, HIDDEN, HEADS, RANK = 64, 32, 48, 4  # multiples of what torchao's kernels take


class Adapted(nn.Module):
    """Frozen quantized layers with adapters around them, behind a layer that is trained."""

    def __init__(self, config):
        from torchao.quantization import quantize_

        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.frozen = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HEADS)).requires_grad_(False)
        quantize_(self.frozen, config)
        self.down, self.up = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, HEADS, bias=False)

    def forward(self, x):
        x = self.first(x)
        return self.frozen(x) + self.up(self.down(x))


QUANTIZED = 2 * ROWS * (WIDTH * HIDDEN + HIDDEN * HEADS)
ADAPTERS, BEFORE = 2 * ROWS * RANK * (WIDTH + HEADS), 2 * ROWS * WIDTH * WIDTH


@kind()
def torchao_int8_weights():
    from torchao.quantization import Int8WeightOnlyConfig

    config = Int8WeightOnlyConfig(version=2)
    # The adapters' gradients and inputs, the gradient through the frozen layers, and that of the first weight.
    return Adapted(config), (torch.randn(ROWS, WIDTH),), 2 * QUANTIZED + 3 * ADAPTERS + 2 * BEFORE


@kind()
def torchao_dynamic_int8():
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    # Rounded inputs have no gradient: nothing goes back through the frozen layers.
    config = Int8DynamicActivationInt8WeightConfig(version=2)
    return Adapted(config), (torch.randn(ROWS, WIDTH),), QUANTIZED + 3 * ADAPTERS + 2 * BEFORE


# --- The trainings ----------------------------------------------------------------------------------------------------

# 2026-11: pytest shows warnings of torch (COO and CSR are "in beta") and of torchao (what it deprecates in itself).
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torchao"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchao"),
]


def made(name):
    if "torchao" in name:
        pytest.importorskip("torchao")
    torch.manual_seed(3)
    return KINDS[name]()


def optimizer_of(model):
    return torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.01)


def trained(model, inputs):
    """The weights after a few steps in a plain loop."""
    optimizer = optimizer_of(model)
    for _ in range(STEPS):
        model(*inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights_of(model)


def weights_of(model):
    weights = [each.detach().clone() for each in model.parameters() if each.requires_grad]
    assert all(each.isfinite().all() for each in weights)
    return weights


@pytest.mark.parametrize("name", KINDS)
def test_in_a_plain_loop_it_is_right_to_the_flop_and_to_the_digit(name):
    model, inputs, step = made(name)
    optimizer = optimizer_of(model)
    with FlopHook(model, optimizer, **QUIET) as hook:
        for _ in range(STEPS):
            model(*inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert hook.metrics()["compute/flops_total"] == STEPS * step
    assert hook.metrics()["compute/estimated_pct"] == 0
    assert hook.profile.step.total == step
    plain, inputs, _ = made(name)
    assert all(map(torch.equal, weights_of(model), trained(plain, inputs)))


def fitted(lightning, folder, model, inputs, callbacks):
    """The weights after as many steps under a Trainer."""

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

        def training_step(self, batch, batch_idx):
            return self.net(*batch).square().mean()

        def configure_optimizers(self):
            return optimizer_of(self)

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return batch

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(
        Module(), torch.utils.data.DataLoader([inputs] * STEPS, batch_size=None, collate_fn=lambda batch: batch)
    )
    return weights_of(model)


@pytest.mark.lightning
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size` from an ambiguous collection")
@pytest.mark.parametrize("name", KINDS)
def test_under_a_trainer_it_is_right_to_the_flop_and_to_the_digit(name, lightning, tmp_path):
    from flopcallback import FlopCallback

    model, inputs, step = made(name)
    callback = FlopCallback(**QUIET, report_dir=tmp_path / "report")
    weights = fitted(lightning, tmp_path, model, inputs, [callback])
    profile = callback.profiles["train"]
    assert profile.training["compute/flops_total"] == STEPS * step
    assert profile.training["compute/estimated_pct"] == 0
    assert profile.step.total == step
    plain, inputs, _ = made(name)
    assert all(map(torch.equal, weights, fitted(lightning, tmp_path, plain, inputs, [])))


class Parallel(nn.Module):
    """Two layers side by side, one of them in a thread."""

    def __init__(self):
        super().__init__()
        self.here, self.there = nn.Linear(WIDE, INNER), nn.Linear(WIDE, INNER)

    def forward(self, x):
        results = []
        thread = threading.Thread(target=lambda: results.append(self.there(x)))
        thread.start()
        thread.join()
        return self.here(x) + results[0]


def test_work_in_a_thread_that_a_module_starts_is_named_as_missing():
    model = Parallel()
    optimizer = optimizer_of(model)
    with FlopHook(model, optimizer, **QUIET) as hook:
        for _ in range(STEPS):
            model(torch.ones(ROWS, WIDE)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    # The backward of both, in which a thread of autograd's is seen, and the forward of one.
    assert hook.profile.step.total == FIRST + 2 * FIRST
    assert "thread::there" in hook.profile.unknown
    assert "thread::there" in hook.profile.step_note


def test_a_sparse_matrix_that_the_model_makes_is_named_as_missing():
    model, graph = Layers(lambda x, graph: torch.sparse.mm(2 * graph, x)), adjacency("coo")
    optimizer = optimizer_of(model)
    with FlopHook(model, optimizer, **QUIET) as hook:
        for _ in range(STEPS):
            model(torch.ones(ROWS, WIDE), graph).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert hook.profile.step.total == STEP
    assert "aten::_sparse_addmm" in hook.profile.unknown
    assert "aten::_sparse_addmm" in hook.profile.step_note
