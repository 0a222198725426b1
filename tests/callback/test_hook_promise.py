"""A plain loop with the hook is the loop without it, to the bit, and nothing stays behind."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flopcallback import FlopCallbackWarning, FlopHook
from flopcallback.trackers import MemoryTracker

BATCH, SIDE, CLASSES, STEPS = 6, 7, 3, 8


class Net(nn.Module):
    """Convolution, batch norm, dropout, attention, a linear head: on `SIDE` x `SIDE` images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.2)
        self.attention = nn.MultiheadAttention(SIDE * 4, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(SIDE * 4, CLASSES)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        maps = F.relu(self.norm(self.conv(x)), inplace=True)
        tokens = self.dropout(maps).flatten(1, 2).unflatten(1, (4, SIDE)).transpose(1, 2).flatten(2)
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.head(mixed.mean(dim=1))


def batches():
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        images = torch.randn(BATCH, 1, SIDE, SIDE, generator=generator)
        yield images, torch.randint(0, CLASSES, (BATCH,), generator=generator)


def plain(model, losses, hook):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with hook(model, optimizer):
        for images, labels in batches():
            loss = F.cross_entropy(model(images + 0.01 * random.random() * torch.randn_like(images)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return [optimizer]


def autocast(model, losses, hook):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    with hook(model, optimizer):
        for images, labels in batches():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(loss.item())
    return [optimizer]


def accumulating(model, losses, hook):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with hook(model, optimizer):
        for index, (images, labels) in enumerate(batches()):
            loss = F.cross_entropy(model(images), labels) / 2
            loss.backward()
            losses.append(loss.item())
            if index % 2:
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return [optimizer]


def evaluating(model, losses, hook):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with hook(model, optimizer):
        for images, labels in batches():
            model.eval()
            with torch.no_grad():
                losses.append(model(images).sum().item())
            model.train()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return [optimizer]


def lbfgs(model, losses, hook):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
    with hook(model, optimizer):
        for images, labels in batches():

            def closure(images=images, labels=labels):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
    return [optimizer]


def two_optimizers(model, losses, hook):
    body = [*model.conv.parameters(), *model.norm.parameters(), *model.attention.parameters()]
    optimizers = [torch.optim.Adam(body, lr=1e-2), torch.optim.SGD(model.head.parameters(), lr=1e-1)]
    with hook(model, optimizers):
        for images, labels in batches():
            for optimizer in optimizers:
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                model.zero_grad()
                losses.append(loss.item())
    return optimizers


def compiled(model, losses, hook):
    torch._dynamo.reset()
    fast = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with hook(fast, optimizer):
        for images, labels in batches():
            loss = F.cross_entropy(fast(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return [optimizer]


def outcome(loop, hook):
    torch.manual_seed(11)
    random.seed(11)
    model, losses = Net(), []
    optimizers = loop(model, losses, hook)
    states = [optimizer.state_dict() for optimizer in optimizers]
    return model, {
        "losses": losses,
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "optimizers": states,
        "random": (torch.get_rng_state(), random.getstate()),
        "calls": model.calls,
        "hooks": [len(optimizer._optimizer_step_post_hooks) for optimizer in optimizers],
    }


class NoHook:
    def __init__(self, *_):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


LOOPS = [plain, autocast, accumulating, evaluating, lbfgs, two_optimizers, compiled]


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_training_is_the_same_to_the_bit_and_nothing_stays(loop, differences, leftovers):
    hooks = []

    def hook(model, optimizer):
        hooks.append(FlopHook(model, optimizer, warmup_steps=1, latency_steps=2, summary=False, strict=True))
        return hooks[-1]

    _, without = outcome(loop, NoHook)
    model, with_us = outcome(loop, hook)
    assert differences(with_us, without) == []
    assert leftovers(model) == []
    assert hooks[0].profile.forward_flops > 0
    assert hooks[0].profile.latency.steps >= 2


def test_a_loop_that_is_changed_would_be_noticed(differences):
    def hook(model, optimizer):
        torch.rand(1)
        return NoHook()

    assert differences(outcome(plain, hook)[1], outcome(plain, NoHook)[1]) != []


# --- Nothing stays ----------------------------------------------------------------------------------------------------


def start(model, steps, **options):
    """A hook that is in the middle of its window after `steps` steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = FlopHook(model, optimizer, **{"warmup_steps": 0, "summary": False, "strict": True, **options})
    for images, labels in list(batches())[:steps]:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return hook


def test_after_the_window_the_modules_that_the_loop_calls_carry_a_wrapper_until_the_hook_is_closed(leftovers):
    model = Net()
    hook = start(model, 4, latency_steps=2)
    parts = [name for name, part in model.named_children() if part is not model]
    assert leftovers(model) == [".forward", *[f"{name}.forward" for name in parts]]  # those of modules inside are gone
    hook.close()
    assert leftovers(model) == []


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_loop_that_breaks_leaves_nothing_and_shows_what_it_has(leftovers, steps):
    model, tracker = Net(), MemoryTracker()
    hook = start(model, steps, to=tracker, strict=False)
    if steps:
        hook.close()
    else:
        with pytest.warns(FlopCallbackWarning, match="no training call"):
            hook.close()
    assert leftovers(model) == []
    assert len(tracker.profiles) == (0, 1, None, 2)[steps]


@pytest.mark.parametrize("error", [ValueError("theirs"), KeyboardInterrupt(), RuntimeError("theirs")])
@pytest.mark.parametrize("at", [0, 1, 3], ids=["while it is counted", "while it is observed", "while it is timed"])
@pytest.mark.parametrize("where", ["in the forward", "after the forward", "in the backward"])
def test_an_exception_in_the_loop_surfaces_and_leaves_nothing(leftovers, differences, error, at, where):
    model, tracker = Net(), MemoryTracker()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def raise_it(*_):
        raise error

    def loop():
        with FlopHook(model, optimizer, to=tracker, warmup_steps=0, summary=False):
            for step, (images, labels) in enumerate(batches()):
                at_head = model.head.register_forward_hook(
                    raise_it if (step, where) == (at, "in the forward") else lambda *_: None
                )
                with contextlib.ExitStack() as undo:
                    undo.callback(at_head.remove)
                    scores = model(images)
                if (step, where) == (at, "in the backward"):
                    scores.register_hook(raise_it)
                if (step, where) == (at, "after the forward"):
                    raise_it()
                F.cross_entropy(scores, labels).backward()
                optimizer.step()

    with pytest.raises(type(error)) as caught:
        loop()
    assert caught.value is error
    assert leftovers(model) == []
    assert len(optimizer._optimizer_step_post_hooks) == 0
    profile = tracker.profiles[-1][1] if tracker.profiles else None
    assert (profile is None) == (at == 0 and where == "in the forward")
    if at == 1:
        assert profile.step is not None  # that of the counted step
    if at == 3:
        assert profile.latency.steps == 1 + (where != "in the forward")
        assert profile.step.backward > 0


def test_copies_and_pickles_made_in_the_window_are_plain(leftovers):
    model = Net()
    with start(model, 2):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert [leftovers(each) for each in copies] == [[], []]


SMALL = 2 * 3 * (5 * 7 + 7 * 2)  # FLOPs of a forward of three rows


def small_loop(hook, between):
    """A loop of a small model; `between` is called before some of its steps, in each state that a hook goes through."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hook(model, optimizer) as hook:
        for step in range(9):
            if step in (0, 1, 2, 4, 8):  # nothing yet, observed, timed, timed, booked
                between(model)
            model(torch.ones(3, 5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()], hook


SCRIPTS = {
    "script": torch.jit.script,
    "trace": lambda model: torch.jit.trace(model, torch.ones(3, 5)),
    "freeze": lambda model: torch.jit.freeze(torch.jit.script(model).eval()),
    "script a part": lambda model: torch.jit.script(model[0]),
}


@pytest.mark.parametrize("how", SCRIPTS)
def test_a_model_is_scripted_while_it_is_watched_as_it_would_be(how, differences):
    made = []

    def between(model):
        scripted = SCRIPTS[how](model)
        made.append((scripted(torch.ones(3, 5)).detach(), str(scripted.graph)))

    def watched(model, optimizer):
        return FlopHook(model, optimizer, warmup_steps=0, latency_steps=4, summary=False, strict=True)

    untouched, _ = small_loop(lambda *_: contextlib.nullcontext(), between)
    made_without_us, made[:] = list(made), []
    left, hook = small_loop(watched, between)
    assert differences(left, untouched) == []
    assert [result.tolist() for result, _ in made] == [result.tolist() for result, _ in made_without_us]
    assert all("flopcallback" not in graph for _, graph in made)
    assert hook.profile.forward_flops == SMALL
    assert hook._watch._steps == 9
    # The tracer's own checks call the model without autograd: those steps are of another kind.
    assert hook.metrics()["compute/estimated_pct"] == 0 or how == "trace"
    torch.jit.script(nn.Sequential(nn.Linear(5, 7)))  # no type of ours stays with the compiler
    assert torch.jit._recursive.create_script_module.__module__ == "torch.jit._recursive"


EXPORTS = {
    "export": lambda model: torch.export.export(model, (torch.ones(3, 5),)),
    "strictly": lambda model: torch.export.export(model, (torch.ones(3, 5),), strict=True),
    "a part": lambda model: torch.export.export(model[0], (torch.ones(3, 5),)),
    "a copy": lambda model: torch.export.export(copy.deepcopy(model).eval(), (torch.ones(3, 5),)),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", EXPORTS)
def test_a_model_is_exported_while_it_is_watched_as_it_would_be(how, differences):
    made = []

    def between(model):
        exported = EXPORTS[how](model)
        made.append((exported.module()(torch.ones(3, 5)).tolist(), str(exported.graph)))

    def watched(model, optimizer):
        return FlopHook(model, optimizer, warmup_steps=0, latency_steps=4, summary=False, strict=True)

    untouched, _ = small_loop(lambda *_: contextlib.nullcontext(), between)
    made_without_us, made[:] = list(made), []
    left, hook = small_loop(watched, between)
    assert differences(left, untouched) == []
    assert made == made_without_us
    assert hook.profile.forward_flops == SMALL
    assert hook._watch._steps == 9
    assert hook.metrics()["compute/estimated_pct"] == 0


def test_a_hook_that_was_closed_keeps_no_optimizer_alive():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = FlopHook(model, optimizer, latency_steps=0, summary=False)
    model(next(batches())[0]).sum().backward()
    optimizer.step()
    hook.close()
    seen = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert hook.profile is not None
    assert seen() is None


def few_steps(model, optimizer, number=3):
    for _ in range(number):
        model(next(batches())[0]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("steps", [0, 1, 3, 9], ids=["unused", "counted", "measured", "booked"])
@pytest.mark.filterwarnings("ignore:FlopHook. (it was dropped|this one takes):UserWarning")
def test_a_hook_that_is_dropped_takes_its_wrappers_along(leftovers, steps):
    model, before = Net(), nn.Module.__reduce_ex__
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):  # a cell of a notebook that is run again
        hook = FlopHook(model, optimizer, warmup_steps=0, latency_steps=2, summary=False, strict=True)
        few_steps(model, optimizer, steps)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    assert hook._training.profiles.keys() == ({"train"} if steps else set())
    del hook
    gc.collect()
    assert leftovers(model) == []
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert nn.Module.__reduce_ex__ is before


def test_a_hook_that_nobody_keeps_is_told(leftovers):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(
        FlopCallbackWarning, match="dropped before a training call was seen, and counts nothing. Keep it"
    ):
        FlopHook(model, optimizer, summary=False)
    few_steps(model, optimizer)
    assert leftovers(model) == []


def test_a_hook_that_was_closed_is_dropped_in_silence(recwarn):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FlopHook(model, optimizer, summary=False) as hook:
        few_steps(model, optimizer)
    del hook
    gc.collect()
    assert not [each for each in recwarn if each.category is FlopCallbackWarning]


# --- Compiled models --------------------------------------------------------------------------------------------------


def compilations(make_hook):
    """Graphs that a loop of a compiled model compiles, and the hook."""
    import torch._dynamo.testing

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    torch.manual_seed(1)
    model = Net()
    hook, fast = make_hook(model, lambda: torch.compile(model, backend=counter))
    for images, labels in batches():
        F.cross_entropy(fast(images), labels).backward()
        hook.step_all()
    hook.close()
    return counter.frame_count, hook.profile, {name: tensor.clone() for name, tensor in model.state_dict().items()}


class Stepping:
    """An optimizer and, perhaps, a hook."""

    def __init__(self, model, hook=None, **options):
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.hook = hook and hook(self.optimizer)

    def step_all(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def close(self):
        if self.hook:
            self.hook.close()

    @property
    def profile(self):
        return self.hook and self.hook.profile


def hook_of(model):
    options = {"warmup_steps": 0, "latency_steps": 2, "summary": False, "strict": True}
    return lambda optimizer: FlopHook(model, optimizer, **options)


def test_a_compiled_model_is_one_row_and_is_compiled_as_often_as_without_us(differences):
    def without(model, compile_it):
        return Stepping(model), compile_it()

    def with_us(model, compile_it):
        fast = compile_it()
        return Stepping(model, hook_of(fast)), fast

    plain_count, _, plain_weights = compilations(without)
    count, profile, weights = compilations(with_us)
    assert count == plain_count > 0
    assert differences(weights, plain_weights) == []
    root = profile.modules[0]
    assert root.note == "compiled"
    assert root.forward_ms > 0
    assert [row.path for row in profile.modules if row.forward_ms is not None] == [""]
    assert profile.forward_flops > 0


def test_a_model_compiled_after_the_hook_trains_as_it_would_and_the_user_is_told(differences):
    def without(model, compile_it):
        return Stepping(model), compile_it()

    def with_us(model, compile_it):
        return Stepping(model, hook_of(model)), compile_it()

    plain_count, _, plain_weights = compilations(without)
    with pytest.warns(FlopCallbackWarning, match="with torch.compile what that returned"):
        count, profile, weights = compilations(with_us)
    assert profile is None
    assert count == plain_count
    assert differences(weights, plain_weights) == []
