"""FlopHook in plain loops: what it counts, where a call and a step end, what it tells and to whom."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flopcallback import FlopCallbackWarning, FlopCountAnalysis, FlopHook
from flopcallback.trackers import MemoryTracker, NoTrackerError

BATCH, WIDE, INNER, OUT = 3, 5, 7, 2
FLOPS = 2 * BATCH * (WIDE * INNER + INNER * OUT)
STEP = 2 * BATCH * (2 * WIDE * INNER + 3 * INNER * OUT)  # nobody asks for the gradient of the batch


def net():
    return nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, OUT))


@pytest.fixture
def model():
    torch.manual_seed(5)
    return net()


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


@pytest.fixture
def batch():
    return torch.ones(BATCH, WIDE)


def train(model, optimizer, batch, steps, between=lambda step: None):
    for step in range(steps):
        model(batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        between(step)


def hooked(*args, **options):
    return FlopHook(*args, **{"warmup_steps": 1, "latency_steps": 2, "summary": False, "strict": True, **options})


def test_the_first_step_is_counted_and_shown_and_the_times_follow(model, optimizer, batch):
    tracker = MemoryTracker()
    with hooked(model, optimizer, to=tracker, prefix="net/") as hook:
        train(model, optimizer, batch, 6)
    (first, numbers), (last, times), (end, compute) = tracker.scalars
    assert (first, last, end) == (0, 3, 5)
    assert all(name.startswith(("net/compute/", "net/perf/")) for name in compute)
    assert numbers["net/flops/forward"] == FLOPS == FlopCountAnalysis(model, batch).hardware_flops()[""]
    assert numbers["net/flops/forward_per_sample"] == 2 * (WIDE * INNER + INNER * OUT)
    assert numbers["net/flops/train_step"] == hook.profile.step.total
    assert set(times) == {"net/latency/forward_ms", "net/latency/step_ms"}
    assert [step for step, _ in tracker.profiles] == [0, 3]
    assert replace(tracker.profiles[-1][1], training=hook.profile.training) == hook.profile
    assert tracker.closed


def test_modules_of_a_plain_loop_are_timed_with_what_they_contain(model, optimizer, batch):
    with hooked(model, optimizer) as hook:
        train(model, optimizer, batch, 4)
    times = {row.path: row.forward_ms for row in hook.profile.modules}
    assert set(times) == {"", "0", "1", "2"}
    assert times[""] >= max(times["0"], times["1"], times["2"]) > 0
    assert hook.profile.latency.steps == 2
    assert hook.profile.latency.step_ms > times[""]


@pytest.mark.lightning
def test_hook_and_callback_take_the_same_options():
    from flopcallback import FlopCallback

    ours = dict(inspect.signature(FlopHook).parameters)
    for name in ("model", "optimizer"):
        del ours[name]
    assert list(ours.items()) == list(inspect.signature(FlopCallback).parameters.items())


@pytest.mark.lightning
@pytest.mark.models
def test_both_doors_give_the_same_rows_but_for_the_steps_own(lightning, run, classifier, loader):
    from flopcallback import FlopCallback

    callback = FlopCallback(latency_steps=0, summary=False)
    training = run(lightning, [callback], max_epochs=1)
    module = training.model.train()
    images, labels = next(iter(loader()))
    optimizer = torch.optim.AdamW(module.parameters())
    with hooked(module, optimizer, latency_steps=0) as hook:
        for _ in range(2):
            F.cross_entropy(module.net(images), labels).backward()
            optimizer.step()
    theirs = {row.path: row for row in callback.profiles["train"].modules if row.path.startswith("net")}
    ours = {row.path: row for row in hook.profile.modules if row.path.startswith("net")}
    assert len(ours) > 5
    assert ours == theirs
    only_theirs = {row.path for row in callback.profiles["train"].modules} - {row.path for row in hook.profile.modules}
    assert only_theirs == {"(training_step)", "accuracy"}  # a metric, which the plain loop does not call


# --- Where the counted call begins and ends ---------------------------------------------------------------------------


def test_evaluation_and_calls_without_grad_are_not_what_is_counted(model, optimizer, batch):
    tracker = MemoryTracker()
    with hooked(model, optimizer, to=tracker) as hook:
        model.eval()
        model(torch.ones(11, WIDE))
        model.train()
        with torch.no_grad():
            model(torch.ones(13, WIDE))
        assert hook.profile is None
        assert hook.metrics() == {}
        train(model, optimizer, batch, 5, between=lambda step: (model.eval()(torch.ones(11, WIDE)), model.train()))
    assert hook.profile.forward_flops == FLOPS
    assert hook.profile.latency.steps == 2


def test_evaluation_between_forward_and_backward_is_neither_counted_nor_timed(model, optimizer, batch):
    with hooked(model, optimizer) as hook:
        for _ in range(5):
            loss = model(batch).sum()
            with torch.no_grad():
                model(torch.ones(11, WIDE))
            loss.backward()
            optimizer.step()
    assert hook.profile.forward_flops == FLOPS
    assert {row.calls for row in hook.profile.modules} == {1}


def test_of_accumulated_micro_batches_the_first_is_counted_and_the_step_is_all_of_them(model, optimizer, batch):
    tracker = MemoryTracker()
    with hooked(model, optimizer, to=tracker) as hook:
        for _ in range(4):
            for _ in range(3):
                model(batch).sum().backward()
            optimizer.step()
    assert hook.profile.forward_flops == FLOPS
    assert [step for step, _ in tracker.profiles] == [0, 3]
    assert hook.profile.latency.steps == 2 * 3  # calls that were timed


def test_two_forwards_before_one_backward_are_one_call(model, optimizer, batch):
    with hooked(model, optimizer) as hook:
        for _ in range(4):
            (model(batch) - model(batch + 1)).abs().sum().backward()
            optimizer.step()
    assert hook.profile.forward_flops == 2 * FLOPS
    assert hook.profile.latency.steps == 2
    assert [row.calls for row in hook.profile.modules] == [1, 2, 2, 2]


def test_an_output_in_a_dataclass_is_looked_into_for_the_backward(batch):
    from dataclasses import dataclass

    @dataclass
    class Output:
        scores: torch.Tensor

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDE, OUT)

        def forward(self, x):
            return Output(self.layer(x))

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hooked(model, optimizer) as hook:
        for _ in range(2):
            model(batch).scores.sum().backward()
        optimizer.step()
    assert hook.profile.forward_flops == 2 * BATCH * WIDE * OUT


def test_with_several_optimizers_a_step_ends_when_each_has_stepped_and_all_in_it_is_counted(batch):
    tracker = MemoryTracker()
    model = nn.ModuleDict({"generator": nn.Linear(WIDE, INNER), "discriminator": nn.Linear(INNER, 1)})
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model.values()]
    with hooked(model, optimizers, to=tracker) as hook:
        for _ in range(5):
            model["discriminator"](model["generator"](batch)).sum().backward()
            optimizers[0].step()
            fake = model["generator"](batch).detach()
            (model["discriminator"](fake) - model["discriminator"](torch.ones(BATCH, INNER))).sum().backward()
            optimizers[1].step()
    by_path = {row.path: row.flops for row in hook.profile.modules}
    generator, discriminator = 2 * (2 * BATCH * WIDE * INNER), 2 * (3 * BATCH * INNER * 1)
    assert by_path == {"": generator + discriminator, "generator": generator, "discriminator": discriminator}
    assert [step for step, _ in tracker.profiles] == [0, 3]
    assert hook.profile.latency.steps == 2


@pytest.mark.lightning
@pytest.mark.models
def test_a_gan_has_the_same_rows_through_both_doors(lightning, run, gan, loader):
    from flopcallback import FlopCallback

    callback = FlopCallback(latency_steps=0, summary=False)
    training = run(lightning, [callback], make=gan, max_epochs=1)
    module = training.model.train()
    real = next(iter(loader()))[0].flatten(1)
    optimizers = [torch.optim.Adam(part.parameters()) for part in (module.generator, module.discriminator)]
    with hooked(module, optimizers, latency_steps=0) as hook:
        for _ in range(2):
            module.discriminator.requires_grad_(False)  # as `toggle_optimizer` has it
            F.softplus(-module.discriminator(module.generator(torch.randn(len(real), 5)))).mean().backward()
            optimizers[0].step()
            module.discriminator.requires_grad_(True)
            fake = module.generator(torch.randn(len(real), 5)).detach()
            (F.softplus(module.discriminator(fake)) + F.softplus(-module.discriminator(real))).mean().backward()
            optimizers[1].step()
    theirs = {row.path: row for row in callback.profiles["train"].modules if row.path not in ("", "(training_step)")}
    assert {row.path: row for row in hook.profile.modules if row.path} == theirs
    assert hook.profile.forward_flops == callback.profiles["train"].forward_flops


def test_a_scaler_that_skips_the_first_steps_costs_nothing_but_these_steps(model, optimizer, batch):
    tracker = MemoryTracker()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with hooked(model, optimizer, to=tracker) as hook:
        for _ in range(30):
            scaler.scale(1e3 * model(batch).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert scaler.get_scale() < 2.0**127, "no step was skipped: the test tests nothing"
    assert hook.profile.forward_flops == FLOPS
    assert [step for step, _ in tracker.profiles] == [0, 3]


def test_a_closure_may_call_the_model_often_in_one_step(model, batch):
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    tracker = MemoryTracker()
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = model(batch).square().sum()
        loss.backward()
        return loss

    with hooked(model, optimizer, to=tracker) as hook:
        for _ in range(9):
            optimizer.step(closure)
    assert calls > 9
    assert hook.profile.forward_flops == FLOPS
    assert [profile.latency is not None for _, profile in tracker.profiles] == [False, True]


def test_steps_can_be_marked_where_no_optimizer_says_them(model, batch):
    tracker = MemoryTracker()
    with hooked(model, to=tracker) as hook:
        for _ in range(5):
            with hook.step():
                model(batch).sum().backward()
    assert [step for step, _ in tracker.profiles] == [0, 3]
    assert hook.profile.latency.step_ms > hook.profile.latency.forward_ms


def test_a_step_has_a_begin_and_an_end_for_loops_that_are_not_ours(model, batch):
    with hooked(model) as hook:
        for _ in range(5):
            model(batch).sum().backward()  # in no step
            hook.begin_step()
            model(batch).sum().backward()
            hook.end_step()
    assert hook.profile.latency.step_ms > hook.profile.latency.forward_ms
    assert hook.metrics()["compute/flops_total"] == 5 * STEP


def test_steps_whose_ends_alone_are_marked_follow_one_another(model, batch):
    with hooked(model) as hook:
        for _ in range(5):
            for _ in range(2):
                model(batch).sum().backward()
            hook.end_step()
    assert hook.metrics()["compute/flops_total"] == 5 * 2 * STEP


def test_of_a_step_that_was_not_ended_nothing_is_booked(model, batch):
    with hooked(model) as hook:
        for number in range(6):
            hook.begin_step()
            model(batch).sum().backward()
            if number != 3:
                hook.end_step()
    assert hook.metrics()["compute/flops_total"] == 5 * STEP


def test_a_copy_of_a_hook_marks_nothing(model, batch):
    with hooked(model) as hook:
        model(batch).sum().backward()
    copied = copy.deepcopy(hook)
    copied.begin_step()
    copied.end_step()
    assert copied.metrics() == hook.metrics()


def test_marked_steps_go_before_what_optimizers_say(model, optimizer, batch):
    tracker = MemoryTracker()
    with hooked(model, optimizer, to=tracker) as hook:
        for _ in range(5):
            with hook.step():
                for _ in range(2):
                    model(batch).sum().backward()
                    optimizer.step()
    assert [step for step, _ in tracker.profiles] == [0, 3]


def test_without_optimizer_and_marks_calls_are_timed_and_steps_are_not(model, batch):
    tracker = MemoryTracker()
    with hooked(model, to=tracker) as hook:
        for _ in range(6):
            model(batch).sum().backward()
    assert hook.profile.forward_flops == FLOPS
    assert hook.profile.latency.step_ms is None
    assert hook.profile.latency.steps == 2
    assert [step for step, _ in tracker.profiles] == [0, 3]


def test_keyword_inputs_and_explicit_forwards_are_seen(batch):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDE, OUT)

        def forward(self, *, x):
            return self.layer.forward(x)

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hooked(model, optimizer, batch_size_fn=lambda inputs: 2 * len(inputs["x"])) as hook:
        model.forward(x=batch).sum().backward()
        optimizer.step()
    assert [row.flops for row in hook.profile.modules] == [2 * BATCH * WIDE * OUT] * 2
    assert hook.profile.batch_size == 2 * BATCH


def test_a_call_that_raised_and_was_made_again_is_counted_once(batch):
    class Fragile(nn.Linear):
        fails = True

        def forward(self, x):
            y = super().forward(x)
            if self.fails:
                raise MemoryError
            return y

    model = Fragile(WIDE, OUT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hooked(model, optimizer) as hook:
        for step in range(5):
            if step in (0, 3):
                model.fails = True
                with pytest.raises(MemoryError):
                    model(batch)
            model.fails = False
            model(batch).sum().backward()
            optimizer.step()
    assert hook.profile.forward_flops == 2 * BATCH * WIDE * OUT
    assert hook.profile.latency.steps == 2


# --- What it tells, and to whom ---------------------------------------------------------------------------------------


def test_each_of_several_targets_gets_it_all(model, optimizer, batch, tmp_path):
    trackers = [MemoryTracker(), MemoryTracker()]
    with hooked(model, optimizer, to=[*trackers, tmp_path / "here"], report_dir=tmp_path / "there"):
        train(model, optimizer, batch, 5)
    assert trackers[0].scalars == trackers[1].scalars
    for folder in ("here", "there"):
        profile = json.loads((tmp_path / folder / "flopcallback.json").read_text())
        assert profile["forward_flops"] == FLOPS


def test_without_a_target_there_is_data_and_no_file(model, optimizer, batch, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with hooked(model, optimizer, prefix="a/", summary=True) as hook:
        train(model, optimizer, batch, 1)
        counted = {"a/" + name: value for name, value in hook.profile.scalars().items()}
        assert hook.metrics() == {**hook.metrics(), **counted}
        assert hook.metrics()["a/compute/samples_total"] == BATCH
        train(model, optimizer, batch, 4)
    assert list(tmp_path.iterdir()) == []
    assert {"loss": 0.5, **hook.metrics()}["a/flops/forward"] == FLOPS
    assert "a/latency/step_ms" in hook.metrics()
    counts, line = capsys.readouterr().out.splitlines()
    assert counts.startswith(f"flopcallback: forward {FLOPS} FLOPs, ")
    assert counts.endswith("times to come")
    assert " of the forward), no MFU" in line or " of the step), no MFU" in line


def test_a_forgotten_close_loses_nothing_that_was_logged(model, optimizer, batch, tmp_path):
    hook = hooked(model, optimizer, to=tmp_path)
    train(model, optimizer, batch, 3)
    profile = json.loads((tmp_path / "flopcallback.json").read_text())
    assert profile["forward_flops"] == FLOPS
    assert len((tmp_path / "scalars.jsonl").read_text().splitlines()) == 1
    hook.close()
    hook.close()
    assert len((tmp_path / "scalars.jsonl").read_text().splitlines()) == 3  # compute so far is among them


def test_a_tracker_that_fails_is_named_the_others_go_on_and_the_profile_is_kept(
    model, optimizer, batch, tmp_path, monkeypatch
):
    class Broken(MemoryTracker):
        def log_profile(self, profile, step):
            raise ConnectionError("no route to host")

    monkeypatch.chdir(tmp_path)
    other = MemoryTracker()
    with pytest.warns(FlopCallbackWarning) as told, hooked(model, optimizer, to=[Broken(), other], strict=False):
        train(model, optimizer, batch, 5)
    (message,) = [str(warning.message) for warning in told]
    assert message.startswith("the tracker Broken failed: ConnectionError: no route to host.")
    assert [step for step, _ in other.profiles] == [0, 3]
    profile = json.loads((tmp_path / "flopcallback_report" / "flopcallback.json").read_text())
    assert profile["forward_flops"] == FLOPS
    assert profile["latency"]["steps"] == 2


@pytest.mark.parametrize("rank", ["1", "7"])
def test_other_ranks_count_and_log_nothing(model, optimizer, batch, tmp_path, monkeypatch, capsys, rank):
    monkeypatch.setenv("RANK", rank)
    with hooked(model, optimizer, to=[tmp_path / "report", "mlflow"], summary=True) as hook:
        train(model, optimizer, batch, 5)
    assert hook.profile.forward_flops == FLOPS
    assert not (tmp_path / "report").exists()
    assert capsys.readouterr().out == ""


def test_a_loop_without_a_training_call_is_told_why_there_is_no_count(model, optimizer, batch):
    hook = hooked(model, optimizer)
    model.eval()(batch)
    with pytest.warns(FlopCallbackWarning, match="no training call of Sequential was seen"):
        hook.close()


def test_it_is_told_at_the_first_step_of_an_optimizer_and_not_again(model, optimizer, batch):
    hook = hooked(model, optimizer)
    with pytest.warns(
        FlopCallbackWarning, match="no training call of Sequential was seen before the first step"
    ) as told:
        train(model.eval(), optimizer, batch, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hook.close()
    assert [str(each.message).count("Give it the module that the loop calls") for each in told] == [1]


def test_a_step_at_no_learning_rate_is_none_of_a_training(model, optimizer, batch):
    """By such a step PyTorch's distributed checkpoints create the state of an optimizer."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    with hooked(model, optimizer) as hook:
        get_optimizer_state_dict(model, optimizer)
        model(batch).sum().backward()
        optimizer.step()
    assert hook.profile.forward_flops == FLOPS


# --- Arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fma": 3}, ValueError, "FlopHook: fma is 3, expected 1, 2 or None"),
        ({"latency_steps": -1}, ValueError, "FlopHook: latency_steps is -1, expected a whole number, 0 or more"),
        ({"peak_flops": "fast"}, ValueError, "FlopHook: peak_flops is 'fast', expected FLOP/s above 0"),
        ({"peak_flops": 0}, ValueError, "FlopHook: peak_flops is 0, expected FLOP/s above 0"),
        ({"by_compute": "loss"}, ValueError, "FlopHook: by_compute is 'loss', expected a list of names of metrics"),
        ({"to": object()}, NoTrackerError, "no tracker takes a builtins.object"),
        ({"to": "tensorbored"}, NoTrackerError, "no tracker takes a builtins.str"),
        ({"to": (1, 2)}, NoTrackerError, "no tracker takes a builtins.tuple"),
        ({"optimizer": "adam"}, TypeError, "FlopHook: optimizer is 'adam', expected a torch.optim.Optimizer"),
        ({"optimizer": [None]}, TypeError, "FlopHook: optimizer is None, expected a torch.optim.Optimizer"),
    ],
)
def test_a_wrong_argument_is_named_with_the_way_out(model, leftovers, options, error, message):
    with pytest.raises(error, match=message):
        FlopHook(model, **options)
    assert leftovers(model) == []


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"FlopHook: model is <built-in function len>, expected a torch\.nn\.Module"):
        FlopHook(len)


def test_an_optimizer_in_name_alone_is_refused(model):
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner

    with pytest.raises(TypeError, match=r"Give its \.inner"):
        FlopHook(model, Wrapper(torch.optim.SGD(model.parameters(), lr=1.0)))


def test_strict_raises_what_fails(model, optimizer, batch):
    class Broken(MemoryTracker):
        def log_profile(self, profile, step):
            raise ConnectionError("no route to host")

    hook = FlopHook(model, optimizer, to=Broken(), strict=True, summary=False)
    with pytest.raises(ConnectionError, match="no route"):
        train(model, optimizer, batch, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hook.close()
