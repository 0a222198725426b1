"""Where the original is right, the numbers, names and texts are the same."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flopcallback import fvcore as ours

pytestmark = pytest.mark.peers


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.stages = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 12, 1, bias=False)])
        self.unused = nn.Linear(5, 5)
        self.head = nn.Linear(12, 7)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(7, 7)
        self.act = nn.Sigmoid()

    def forward(self, x):
        for _ in range(3):
            x = self.act(self.fc(x))
        return x


class Owner(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.shared = shared

    def forward(self, x):
        return self.shared(x)


class Sharing(nn.Module):
    def __init__(self):
        super().__init__()
        shared = nn.Linear(7, 7)
        self.first, self.second = Owner(shared), Owner(shared)
        self.twin_a = self.twin_b = nn.Linear(7, 3)

    def forward(self, x):
        x = self.first(x) + self.second(x)
        return self.twin_a(x) + self.twin_b(x)


class Visitor(nn.Module):
    """Calls a module that another one owns."""

    def __init__(self):
        super().__init__()
        self.host = nn.Sequential(nn.Linear(7, 7))
        self.guest = nn.Module()
        self.guest.forward = lambda x: self.host[0](x)

    def forward(self, x):
        return self.host(self.guest(x))


class Recursive(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(7, 5)

    def forward(self, x, depth=3):
        return self(x, depth - 1) if depth else self.fc(x)


class Products(nn.Module):
    def forward(self, x, y):
        z = torch.bmm(x, y) + x @ y
        z = z + torch.einsum("nij,njk->nik", x, y)
        return torch.mm(z[0], z[1].T) + F.linear(x[0], y[1].T)


class Resampling(nn.Module):
    def forward(self, x):
        grid = torch.zeros(x.shape[0], 3, 5, 2)
        pooled = F.adaptive_avg_pool2d(x, 1)
        up = F.interpolate(x, scale_factor=2, mode="bilinear"), F.interpolate(x, scale_factor=2)
        return pooled, *up, F.grid_sample(x, grid, align_corners=False)


def norms(affine):
    return nn.Sequential(
        nn.BatchNorm2d(6, affine=affine),
        nn.GroupNorm(2, 6, affine=affine),
        nn.InstanceNorm2d(6, affine=affine),
        nn.LayerNorm(5, elementwise_affine=affine),
    )


CASES = {
    "nested": lambda: (Nested(), (torch.randn(2, 3, 15, 15),)),
    "nested, evaluation": lambda: (Nested().eval(), (torch.randn(2, 3, 15, 15),)),
    "repeated": lambda: (Repeated(), (torch.randn(5, 7),)),
    "sharing": lambda: (Sharing(), (torch.randn(5, 7),)),
    "visitor": lambda: (Visitor(), (torch.randn(5, 7),)),
    "recursive": lambda: (Recursive(), (torch.randn(5, 7),)),
    "one module": lambda: (nn.Linear(7, 3), torch.randn(2, 5, 7)),
    "no parameters": lambda: (nn.Sequential(nn.ReLU(), nn.Sigmoid()), torch.randn(2, 5)),
    "data parallel": lambda: (nn.DataParallel(Nested()).cpu(), (torch.randn(2, 3, 15, 15),)),
    "products": lambda: (Products(), (torch.randn(2, 3, 3), torch.randn(2, 3, 3))),
    "resampling": lambda: (Resampling(), torch.randn(2, 3, 5, 7)),
    "norms": lambda: (norms(True), torch.randn(3, 6, 7, 5)),
    "norms without weights": lambda: (norms(False), torch.randn(3, 6, 7, 5)),
    "norms, evaluation": lambda: (norms(True).eval(), torch.randn(3, 6, 7, 5)),
    "conv1d": lambda: (nn.Conv1d(6, 10, 5, stride=3, padding=2), torch.randn(2, 6, 23)),
    "conv3d, dilated": lambda: (nn.Conv3d(2, 3, 2, dilation=2), torch.randn(2, 2, 5, 6, 7)),
    "conv, grouped": lambda: (nn.Conv2d(6, 9, 3, groups=3), torch.randn(2, 6, 8, 9)),
    "conv, depthwise": lambda: (nn.Conv2d(6, 6, 3, groups=6), torch.randn(2, 6, 8, 9)),
    "conv, unbatched": lambda: (nn.Conv2d(6, 5, 3), torch.randn(6, 8, 9)),
    "transposed conv": lambda: (
        nn.ConvTranspose2d(6, 10, 3, stride=3, padding=1, output_padding=2, groups=2),
        torch.randn(2, 6, 5, 7),
    ),
}


# `mm` is a product whose activations the original leaves out; a model without parameters is a KeyError for its table.
WITHOUT_MM = [name for name in CASES if name != "products"]
WITH_PARAMETERS = [
    name for name in CASES if name not in ("products", "resampling", "no parameters", "norms without weights")
]


@pytest.fixture
def case(request):
    torch.manual_seed(0)
    return CASES[request.param]()


def over(names):
    return pytest.mark.parametrize("case", names, indirect=True)


@over(CASES)
@pytest.mark.parametrize("mode", ["owner", "caller"])
def test_flops_by_module_and_operator_are_the_same(original, case, mode):
    theirs = original.package.FlopCountAnalysis(*case).ancestor_mode(mode)
    mine = ours.FlopCountAnalysis(*case).ancestor_mode(mode)
    assert mine.by_module_and_operator() == theirs.by_module_and_operator()
    assert mine.by_module() == theirs.by_module()
    assert mine.by_module().keys() == theirs.by_module().keys()
    assert (mine.total(), mine.by_operator()) == (theirs.total(), theirs.by_operator())
    assert all(type(count) is int for count in mine.by_operator().values())


@over(WITHOUT_MM)
@pytest.mark.parametrize("mode", ["owner", "caller"])
def test_activations_by_module_and_operator_are_the_same(original, case, mode):
    theirs = original.package.ActivationCountAnalysis(*case).ancestor_mode(mode)
    mine = ours.ActivationCountAnalysis(*case).ancestor_mode(mode)
    assert mine.by_module_and_operator() == theirs.by_module_and_operator()


@over(CASES)
def test_unsupported_operators_and_uncalled_modules_are_the_same(original, case):
    theirs = original.package.FlopCountAnalysis(*case)
    mine = ours.FlopCountAnalysis(*case)
    theirs.total(), mine.total()
    for name in theirs.by_module():
        assert mine.unsupported_ops(name) == theirs.unsupported_ops(name)
    assert mine.uncalled_modules() == theirs.uncalled_modules()


def test_canonical_names_are_the_same(original):
    model = Sharing()
    theirs, mine = original.package.FlopCountAnalysis(model, ()), ours.FlopCountAnalysis(model, ())
    for name, _ in model.named_modules(remove_duplicate=False):
        assert mine.canonical_module_name(name) == theirs.canonical_module_name(name)


@over(WITHOUT_MM)
def test_the_one_call_forms_give_the_same_in_giga_and_mega(original, case):
    model, inputs = case
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    assert ours.flop_count(model, args) == original.package.flop_count(model, args)
    assert ours.activation_count(model, args) == original.package.activation_count(model, args)


@over(CASES)
def test_parameter_counts_are_the_same(original, case):
    model = case[0]
    assert ours.parameter_count(model) == original.package.parameter_count(model)


# --- Texts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def original_tables(original, monkeypatch):
    """The original with its indentation back: it sets a flag that tabulate 0.10 no longer reads."""
    tabulate = functools.partial(original.parameter_count.tabulate.tabulate, preserve_whitespace=True)
    for module in (original.print_model_statistics, original.parameter_count):
        monkeypatch.setattr(module, "tabulate", SimpleNamespace(tabulate=tabulate, PRESERVE_WHITESPACE=True))
    return original.package


@over(CASES)
@pytest.mark.parametrize("options", [{}, {"max_depth": 1}, {"max_depth": 2, "show_param_shapes": False}])
def test_flop_count_tables_are_the_same_text(original_tables, case, options):
    theirs = original_tables.flop_count_table(original_tables.FlopCountAnalysis(*case), **options)
    assert ours.flop_count_table(ours.FlopCountAnalysis(*case), **options) == theirs


@over(WITHOUT_MM)
def test_flop_count_tables_with_activations_are_the_same_text(original_tables, case):
    theirs = original_tables.flop_count_table(
        original_tables.FlopCountAnalysis(*case), activations=original_tables.ActivationCountAnalysis(*case)
    )
    mine = ours.flop_count_table(ours.FlopCountAnalysis(*case), activations=ours.ActivationCountAnalysis(*case))
    assert mine == theirs


@over(CASES)
def test_models_with_figures_are_the_same_text_below_the_line_about_missing_ones(original, case):
    theirs = original.package.flop_count_str(original.package.FlopCountAnalysis(*case))
    mine = ours.flop_count_str(ours.FlopCountAnalysis(*case))
    if mine.startswith("N/A"):
        assert theirs.startswith("N/A")
        mine, theirs = mine.split("\n", 1)[1], theirs.split("\n", 1)[1]
    assert mine == theirs


@over(WITH_PARAMETERS)
@pytest.mark.parametrize("max_depth", [1, 2, 3])
def test_parameter_tables_are_the_same_text(original_tables, case, max_depth):
    model = case[0]
    theirs = original_tables.parameter_count_table(model, max_depth)
    assert ours.parameter_count_table(model, max_depth) == theirs
