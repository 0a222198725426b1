"""The benchmarks' models, in small: what is counted is what the formulas on paper say."""

from types import SimpleNamespace

import models
import pytest
import torch
import truth

from flopcallback import FlopCountAnalysis


# 2026-11, torch 2.13: said once by an LSTM with a projection; as an error it would stop the tracer.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.models
@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_is_counted_to_the_last_multiply_add(name):
    case = models.build(name, small=True)
    with torch.set_grad_enabled(case.grad):
        analysis = FlopCountAnalysis(case.model, (), case.inputs)
        assert analysis.hardware_flops()[""] == 2 * case.multiply_adds
    assert analysis.unknown_ops() == {}
    assert analysis.engine == "trace"


# torchvision's table of weights, column GFLOPS: https://docs.pytorch.org/vision/stable/models.html
def test_the_formula_of_resnet_50_gives_the_published_figure():
    config = SimpleNamespace(
        num_channels=3, embedding_size=64, hidden_sizes=(256, 512, 1024, 2048), depths=(3, 4, 6, 3), num_labels=1000
    )
    assert round(truth.resnet(config, 1, 224) / 1e9, 2) == 4.09


def test_the_formula_of_mobilenet_v2_gives_the_published_figure():
    config = SimpleNamespace(num_channels=3, num_labels=1000)
    assert round(truth.mobilenet_v2(config, 1, 224) / 1e9, 2) == 0.30


def test_the_formula_of_vit_b_gives_the_published_figure():
    sizes = {"image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12}
    config = SimpleNamespace(num_channels=3, num_labels=1000, intermediate_size=3072, **sizes)
    assert round(truth.vit(config, 1) / 1e9, 2) == 17.56
