"""What the callback counts: the numbers that an analysis of the same model and batch gives, and numbers by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flopcallback import ActivationCountAnalysis, BytesCountAnalysis, FlopCountAnalysis

pytestmark = [pytest.mark.lightning, pytest.mark.models]

BATCH, SIDE, CLASSES = 6, 7, 3


@pytest.fixture
def make_callback():
    from flopcallback import FlopCallback

    def make_callback(**options):
        return FlopCallback(**{"warmup_steps": 0, "latency_steps": 1, "summary": False, "strict": True, **options})

    return make_callback


def rows(profile):
    return {row.path: row for row in profile.modules}


@pytest.mark.parametrize("elementwise", [False, True])
def test_the_profile_is_what_an_analysis_of_the_same_model_and_batch_gives(
    lightning, run, make_callback, loader, elementwise
):
    callback = make_callback(elementwise=elementwise)
    model = run(lightning, [callback], max_epochs=1).model
    profile = callback.profiles["train"]
    images, _ = next(iter(loader(shuffle=False)))
    flops = FlopCountAnalysis(model.net.train(), images, elementwise=elementwise)
    activations, moved = ActivationCountAnalysis(model.net, images), BytesCountAnalysis(model.net, images)
    assert profile.config["flops.elementwise"] == elementwise
    for path, count in flops.by_module().items():
        row = rows(profile)[f"net.{path}" if path else "net"]
        assert row.macs == count
        assert row.flops == flops.hardware_flops()[path]
        assert row.activations == activations.by_module()[path]
        assert row.bytes == moved.by_module()[path] > -1
        assert row.calls == flops.module_calls()[path]
    assert all(type(row.flops) is int and type(row.macs) is int for row in profile.modules)


def make_linear_step(flavour, calls):
    class Step(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(SIDE * SIDE, 11), nn.ReLU(), nn.Linear(11, 5, bias=False))
            self.tied = self.encoder
            self.head = nn.Linear(5, CLASSES).requires_grad_(False)
            self.unused = nn.LazyLinear(4)
            self.weight = nn.Parameter(torch.ones(CLASSES, 13))

        def training_step(self, batch, batch_idx):
            scores = self.head(self.encoder(batch[0].flatten(1)) + self.tied(batch[0].flatten(1)))
            return F.cross_entropy(scores @ self.weight @ self.weight.T, batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if not nn.parameter.is_lazy(p)], lr=0.1)

    return Step()


def test_the_numbers_are_those_that_come_out_by_hand(lightning, run, make_callback):
    callback = make_callback()
    run(lightning, [callback], make=make_linear_step, max_epochs=1)
    profile = callback.profiles["train"]
    encoder = 2 * BATCH * (49 * 11 + 11 * 5)
    head = 2 * BATCH * 5 * CLASSES
    outside = 2 * (2 * BATCH * CLASSES * 13)
    by_path = rows(profile)
    assert by_path["encoder"].flops == 2 * encoder
    assert by_path["encoder.0"].calls == 2
    assert by_path["head"].flops == head
    assert by_path["(training_step)"].flops == by_path["(training_step)"].own_flops == outside
    assert (by_path["(training_step)"].parent, by_path["(training_step)"].depth) == ("", 1)
    assert profile.forward_flops == by_path[""].flops == 2 * encoder + head + outside
    assert by_path[""].own_flops == 0
    assert profile.forward_macs == (2 * encoder + head + outside) // 2
    assert "tied" not in by_path
    assert by_path["encoder"].params == by_path["encoder"].params_trainable == 49 * 11 + 11 + 11 * 5
    assert (by_path["head"].params, by_path["head"].params_trainable) == (5 * 3 + 3, 0)
    assert (by_path["unused"].params, by_path["unused"].calls) == (0, 0)  # its parameters have no size yet
    assert by_path[""].params == 49 * 11 + 11 + 11 * 5 + 5 * 3 + 3 + CLASSES * 13
    assert {row.operator: (row.calls, row.flops, row.family) for row in profile.operators} == {
        "linear": (5, 2 * encoder + head, "matmul"),
        "matmul": (2, outside, "matmul"),
    }


def test_the_conditions_are_noted(lightning, run, make_callback):
    callback = make_callback()
    run(lightning, [callback], max_epochs=1)
    profile = callback.profiles["train"]
    assert profile.name == "Classifier"
    assert profile.batch_size == BATCH
    assert profile.config == {
        "flops.upper_bounds": [],
        "flops.elementwise": False,
        "flops.engine": "trace",
        "flops.engine_reason": "",
        "flops.is_lower_bound": False,
        "flops.device": "cpu",
        "flops.dtype": "float32",
        "flops.peak_tflops": None,
        "flops.peak_source": None,
        "flops.peak_gb_per_s": None,
        "flops.input_shapes": [[BATCH, 1, SIDE, SIDE], [BATCH]],
        "flops.unknown_operators": [],
        "flops.version": "0.1.0",
    }


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", "bfloat16"), ("bf16-true", "bfloat16")])
def test_the_dtype_is_the_one_that_is_computed_in(lightning, run, make_callback, precision, dtype):
    callback = make_callback()
    run(lightning, [callback], max_epochs=1, precision=precision)
    assert callback.profiles["train"].config["flops.dtype"] == dtype


def test_a_batch_size_can_be_told(lightning, run, make_callback):
    callback = make_callback(batch_size_fn=lambda batch: 3 * len(batch[0]))
    run(lightning, [callback], max_epochs=1)
    assert callback.profiles["train"].batch_size == 3 * BATCH


def test_module_by_module_each_outermost_call_is_counted(lightning, run, make_callback, gan):
    callback = make_callback()
    run(lightning, [callback], make=gan, max_epochs=1)
    by_path = rows(callback.profiles["train"])
    pixels = SIDE * SIDE
    generator = 2 * 2 * BATCH * (5 * 11 + 11 * pixels)  # for its own loss and for the discriminator's
    discriminator = 2 * 3 * BATCH * (pixels * 13 + 13)  # fake, fake, real
    assert by_path["generator.0"].flops + by_path["generator.3"].flops == generator
    assert by_path["discriminator"].flops == discriminator
    assert (by_path["generator"].calls, by_path["discriminator"].calls, by_path[""].calls) == (2, 3, 1)
    assert by_path[""].flops == generator + discriminator
    assert by_path["generator"].forward_ms > 0
    whole, parts = by_path[""].forward_ms, [by_path["generator"].forward_ms, by_path["discriminator"].forward_ms]
    assert whole == pytest.approx(sum(parts))


def make_recomputing(manual):
    def make(flavour, calls):
        class Recomputing(flavour.LightningModule):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = not manual
                self.inner = nn.Linear(SIDE * SIDE, CLASSES)

            def training_step(self, batch, batch_idx):
                images = batch[0].flatten(1)
                scores = torch.utils.checkpoint.checkpoint(self.inner, images, use_reentrant=False)
                loss = F.cross_entropy(scores, batch[1])
                if manual:
                    self.manual_backward(loss)
                return loss

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        return Recomputing()

    return make


@pytest.mark.parametrize("manual", [False, True])
def test_what_a_backward_recomputes_is_not_part_of_the_forward(lightning, run, make_callback, manual):
    callback = make_callback()
    run(lightning, [callback], make=make_recomputing(manual), max_epochs=1)
    row = rows(callback.profiles["train"])["inner"]
    assert (row.flops, row.calls) == (2 * BATCH * SIDE * SIDE * CLASSES, 1)


@pytest.mark.parametrize(("do", "method"), [("validate", "validation_step"), ("test", "test_step")])
def test_an_evaluation_has_a_profile_of_its_own(lightning, run, make_callback, loader, do, method):
    callback = make_callback()
    training = run(lightning, [callback], do=do)
    profile = callback.profiles[do]
    images, _ = next(iter(loader(shuffle=False)))
    with torch.no_grad():
        expected = FlopCountAnalysis(copy.deepcopy(training.model.net).eval(), images)
        assert rows(profile)["net.conv"].flops == 2 * BATCH * SIDE * SIDE * 4 * 9
        assert rows(profile)["net"].flops == expected.hardware_flops()[""]
        assert rows(profile)["net"].macs == expected.total()
    assert profile.scalars()[f"{do}/flops/forward"] == profile.forward_flops
    assert f"({method})" in rows(profile)
    assert profile.config["flops.engine"] == "observer"


def make_bilinear(flavour, calls):
    class Bilinear(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Bilinear(SIDE, SIDE, CLASSES, bias=False)

        def predict_step(self, batch, batch_idx):
            rows = batch[0][:, 0]
            self.outputs = self.layer(rows[:, 0], rows[:, 1])
            return self.outputs

    return Bilinear()


def test_under_autocast_an_evaluation_keeps_its_digits(lightning, run, make_callback, differences):
    """Its kernel calls operators that autocast casts, but for those inside a dispatch mode."""
    callback, options = make_callback(), {"do": "predict", "precision": "bf16-mixed", "make": make_bilinear}
    without, with_ = (run(lightning, callbacks, **options, limit_predict_batches=1) for callbacks in ([], [callback]))
    assert differences(without, with_) == []
    assert torch.equal(without.model.outputs, with_.model.outputs)
    products = BATCH * CLASSES * (SIDE * SIDE + SIDE)  # with the matrix, and then of two vectors
    assert callback.profiles["predict"].forward_flops == 2 * products


def make_graph(flavour, calls):
    class Graph(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.graph = nn.Linear(SIDE, CLASSES), torch.eye(BATCH).to_sparse()

        def predict_step(self, batch, batch_idx):
            return torch.sparse.mm(2 * self.graph, self.layer(batch[0][:, 0, 0]))

    return Graph()


def test_an_evaluation_on_sparse_tensors_is_exact(lightning, run, make_callback):
    """Records have no stored elements, and the matrix that is used is another one than the model has."""
    callback = make_callback()
    run(lightning, [callback], make=make_graph, do="predict")
    profile = callback.profiles["predict"]
    assert profile.config["flops.engine"] == "dispatch"
    assert profile.forward_flops == 2 * BATCH * SIDE * CLASSES + 2 * BATCH * CLASSES
    assert not profile.is_lower_bound


def test_an_evaluation_under_a_profiler_of_the_users_is_counted(lightning, run, make_callback, loader):
    callback = make_callback()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as theirs:
        training = run(lightning, [callback], do="test")
    profile = callback.profiles["test"]
    images, _ = next(iter(loader(shuffle=False)))
    expected = FlopCountAnalysis(copy.deepcopy(training.model.net).eval(), images).hardware_flops()[""]
    assert profile.config["flops.engine"] == "dispatch"
    assert rows(profile)["net"].flops == expected
    assert any(event.key == "aten::addmm" for event in theirs.key_averages())


def make_encoder(flavour, calls):
    class Encoder(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)

        def predict_step(self, batch, batch_idx):
            tokens = batch[0].flatten(1)[:, :40].unflatten(1, (5, 8))
            padding = torch.arange(5)[None] >= torch.tensor([5, 3, 4, 2, 5, 1])[:, None]
            self.outputs = self.encoder(tokens, src_key_padding_mask=padding)
            return self.outputs

    return Encoder()


def test_fast_paths_of_evaluation_stay_as_they_are(lightning, run, make_callback, differences):
    callback = make_callback()
    without, with_ = (run(lightning, callbacks, make=make_encoder, do="predict") for callbacks in ([], [callback]))
    assert differences(without, with_) == []
    assert torch.equal(without.model.outputs, with_.model.outputs)
    profile = callback.profiles["predict"]
    assert not profile.is_lower_bound
    # The fast path computes on a nested tensor, the 20 tokens that are no padding; of these, each looks at its row's.
    lengths, wide, hidden = [5, 3, 4, 2, 5, 1], 8, 12
    linear = sum(lengths) * (wide * 3 * wide + wide * wide + 2 * wide * hidden)
    attention = 2 * wide * sum(length**2 for length in lengths)
    assert profile.forward_flops == 2 * 2 * (linear + attention)  # of two layers, 2 per multiply-add


def test_fit_profiles_training_and_not_its_validation(lightning, run, make_callback):
    callback = make_callback()
    run(lightning, [callback], num_sanity_val_steps=2)
    assert list(callback.profiles) == ["train"]


def test_a_second_fit_is_counted_anew(lightning, run, make_callback, gan):
    callback = make_callback()
    run(lightning, [callback])
    first = callback.profiles["train"]
    run(lightning, [callback], make=gan)
    assert (first.name, callback.profiles["train"].name) == ("Classifier", "Gan")
    run(lightning, [callback], do="test")
    assert list(callback.profiles) == ["train", "test"]


@pytest.mark.parametrize(
    ("epochs", "warmup", "steps", "timed"), [(3, 2, 4, 4), (1, 2, 20, 2), (1, 9, 1, None), (1, 0, 0, None)]
)
def test_the_window_is_as_long_as_training_lets_it_be(lightning, run, make_callback, epochs, warmup, steps, timed):
    callback = make_callback(warmup_steps=warmup, latency_steps=steps)
    run(lightning, [callback], max_epochs=epochs)
    latency = callback.profiles["train"].latency
    assert (None if latency is None else latency.steps) == timed


def test_times_of_modules_add_up_with_what_is_outside_of_them(lightning, run, make_callback):
    callback = make_callback(latency_steps=1)
    run(lightning, [callback])
    by_path = rows(callback.profiles["train"])
    parts = [by_path[path].forward_ms for path in ("net", "accuracy", "(training_step)")]
    assert by_path[""].forward_ms == pytest.approx(sum(parts))
    assert 0 < by_path["net.conv"].forward_ms < by_path["net"].forward_ms < by_path[""].forward_ms
    assert callback.profiles["train"].latency.step_ms > by_path[""].forward_ms


@pytest.mark.parametrize("options", [{"fma": 3}, {"fma": True}, {"warmup_steps": -1}, {"latency_steps": -2}])
def test_options_that_mean_nothing_are_refused(make_callback, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"FlopCallback: {name} is {value}"):
        make_callback(**options)


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(SIDE * SIDE, CLASSES)

    def forward(self, x):
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("how", ["script", "trace"])
def test_scripted_and_traced_children_are_counted_and_timed(
    lightning, run, make_callback, classifier, differences, leftovers, how
):
    def net():
        torch.manual_seed(4)
        inner = Scores()
        return torch.jit.script(inner) if how == "script" else torch.jit.trace(inner, torch.ones(BATCH, 1, SIDE, SIDE))

    def make(flavour, calls):
        return classifier(flavour, calls, net=net)

    callback = make_callback()
    without, with_ = run(lightning, make=make), run(lightning, [callback], make=make)
    assert differences(without, with_) == []
    assert leftovers(with_.model) == leftovers(without.model)  # a scripted module keeps its own `forward` there
    row = rows(callback.profiles["train"])["net"]
    assert row.flops == 2 * BATCH * SIDE * SIDE * CLASSES
    assert row.forward_ms > 0


def test_metrics_that_no_training_step_calls_are_no_rows_and_what_is_called_by_other_methods_is_timed(
    flavour, run, make_callback
):
    import torchmetrics

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(SIDE, 11))
            self.heads = nn.ModuleList([nn.Linear(11, CLASSES)])

        def encode(self, x):
            return self.heads[0](x @ self.weight)

    def make(flavour, calls):
        class Encoding(flavour.LightningModule):
            def __init__(self):
                super().__init__()
                self.encoder = Encoder()
                self.unused = nn.Linear(2, 3)
                metrics = {when: torchmetrics.classification.MulticlassAccuracy(CLASSES) for when in ("fit", "val")}
                self.metrics = nn.ModuleDict(metrics)
                self.val_metrics = nn.ModuleList([torchmetrics.MeanMetric()])

            def training_step(self, batch, batch_idx):
                calls.one_more()
                images, labels = batch
                scores = self.encoder.encode(images[:, 0, 0])
                self.metrics["fit"](scores, labels)
                return F.cross_entropy(scores, labels)

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        return Encoding()

    watching = make_callback(latency_steps=4)
    run(flavour, [watching], make=make)
    of = rows(watching.profiles["train"])
    inside = ["encoder", "encoder.heads", "encoder.heads.0"]
    # A layer without calls is a row, since its parameters are part of the model.
    assert [*of] == ["", *inside, "unused", "metrics", "metrics.fit", "(training_step)"]
    forward = [2 * BATCH * (SIDE * 11 + 11 * CLASSES), 2 * BATCH * 11 * CLASSES, 2 * BATCH * 11 * CLASSES]
    assert [of[name].flops for name in inside] == forward
    assert of["encoder"].forward_ms >= of["encoder.heads"].forward_ms == of["encoder.heads.0"].forward_ms > 0
    assert of["unused"].forward_ms is None
