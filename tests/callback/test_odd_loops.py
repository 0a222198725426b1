"""Loops that do what the hook does not expect: they do what they would without us, and the count is right."""

from __future__ import annotations

import copy
import functools
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flopcallback import FlopCallbackWarning, FlopCountAnalysis, FlopHook, measure_latency
from flopcallback.loop.watch import MOST_CALLS
from flopcallback.measuring import hardware
from flopcallback.trackers import MemoryTracker

BATCH, WIDE, INNER, OUT, STEPS = 3, 5, 7, 2, 9
ENCODER, HEAD = 2 * BATCH * WIDE * INNER, 2 * BATCH * INNER * OUT


class Net(nn.Module):
    """Counts its calls where nobody puts them back: a call that is made again is a call more."""

    def __init__(self, calls=None):
        super().__init__()
        self.count = (lambda name: None) if calls is None else calls.append
        self.encoder = nn.Linear(WIDE, INNER)
        self.head = nn.Linear(INNER, OUT)

    def forward(self, x):
        self.count("Net")
        return self.head(torch.relu(self.encoder(x)))


def batches(steps=STEPS):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(BATCH, WIDE, generator=generator) for _ in range(steps)]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def hooked(*args, **options):
    return FlopHook(*args, **{"warmup_steps": 0, "latency_steps": 4, "summary": False, "strict": True, **options})


def train(model, optimizer, steps=STEPS):
    for x in batches(steps):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


# --- What the user puts on a model after the hook was made -----------------------------------------------------------


def doubled(module, calls):
    """Has the module give twice what it gave, as an adapter that is put around its forward would."""
    before = module.forward

    @functools.wraps(before)
    def forward(x):
        calls.append("doubled")
        return 2 * before(x)

    module.forward = forward
    return forward


def whole(model, x):
    return model(x)


def in_parts(model, x):
    return model.head(torch.relu(model.encoder(x)))


def outcome_of_wrapping(at, call, hooks):
    torch.manual_seed(11)
    calls = []
    model = Net(calls)
    optimizers = [sgd(model.encoder), sgd(model.head)]
    hooks = [hook(model, optimizer) for hook, optimizer in zip(hooks, optimizers, strict=False)]
    module = model.get_submodule(at)
    mine = doubled(module, calls)
    for x in batches():
        call(model, x).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for hook in hooks:
        hook.close()
    assert vars(module)["forward"] is mine
    copied = copy.deepcopy(module)
    assert vars(copied)["forward"] is mine
    return {"weights": model.state_dict(), "calls": calls}, hooks


@pytest.mark.parametrize("hooks", [1, 2])
@pytest.mark.parametrize(("at", "call"), [("", whole), ("head", whole), ("head", in_parts)])
def test_a_forward_that_the_user_wraps_later_runs_once_a_call_and_stays(differences, at, call, hooks):
    without, _ = outcome_of_wrapping(at, call, [])
    with_us, made = outcome_of_wrapping(at, call, [hooked, functools.partial(hooked, latency_steps=2)][:hooks])
    assert differences(with_us, without) == []
    assert [hook.profile.forward_flops for hook in made] == [ENCODER + HEAD] * hooks


def test_a_module_that_is_replaced_later_is_the_one_that_is_counted():
    model = Net()
    optimizer = sgd(model)
    with hooked(model, optimizer) as hook:
        model.head = nn.Linear(INNER, 11)
        train(model, optimizer, 1)
    head = next(row for row in hook.profile.modules if row.path == "head")
    assert (head.flops, head.params) == (2 * BATCH * INNER * 11, INNER * 11 + 11)


# --- Calls that are no training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 2], ids=["before the first step", "in the window"])
def test_a_trace_of_the_users_is_what_it_is_without_us_and_is_not_counted(steps):
    model = Net()
    graph = str(torch.jit.trace(model, torch.ones(1, WIDE)).inlined_graph)
    optimizer = sgd(model)
    with hooked(model, optimizer) as hook:
        train(model, optimizer, steps)
        traced = torch.jit.trace(model, torch.ones(1, WIDE))
        train(model, optimizer, STEPS)
    assert str(traced.inlined_graph).count("\n") == graph.count("\n")
    torch.testing.assert_close(traced(torch.ones(4, WIDE)), model(torch.ones(4, WIDE)))
    assert hook.profile.forward_flops == ENCODER + HEAD


@pytest.mark.parametrize("engine", ["trace", "dispatch"])
def test_counts_and_measurements_on_demand_are_not_the_hooks(engine):
    model = Net()
    # The tracer does not go through sparse tensors; they are not part of the model's work.
    extra = {"y": torch.ones(2, 2).to_sparse()} if engine == "dispatch" else {}
    called = (lambda x, y=None: model(x)) if extra else model
    optimizer = sgd(model)
    with hooked(model, optimizer) as hook:
        FlopCountAnalysis(called, (torch.ones(1, WIDE), *extra.values())).total()
        measure_latency(model, torch.ones(1, WIDE), latency_steps=1)
        train(model, optimizer)
    assert hook.profile.forward_flops == ENCODER + HEAD
    assert hook.profile.batch_size == BATCH


# --- Several hooks ----------------------------------------------------------------------------------------------------

STEP = 2 * ENCODER + 3 * HEAD  # the inputs need no gradient
REPLACED = "takes the place of an earlier one .* Close a hook before you make the next, or give each another optimizer"


@pytest.mark.parametrize("part", [None, "head"], ids=["of the same model", "of a part of it"])
@pytest.mark.parametrize("before", [0, 1, 2, 7], ids=lambda steps: f"after {steps} steps")
def test_a_second_hook_on_an_optimizer_takes_the_place_of_the_first(part, before, differences, leftovers):
    alone = Net()
    twin = copy.deepcopy(alone)
    optimizer = sgd(alone)
    for steps in (before, STEPS):
        train(alone, optimizer, steps)
    optimizer, tracker = sgd(twin), MemoryTracker()
    with hooked(twin, optimizer, to=tracker) as first:
        train(twin, optimizer, before)
        with pytest.warns(FlopCallbackWarning, match=REPLACED) as told:
            second = hooked(twin if part is None else twin.head, optimizer)
        assert len(told) == 1
        assert tracker.closed
        train(twin, optimizer)
        assert len(optimizer._optimizer_step_post_hooks) == 1
    second.close()
    assert first.metrics().get("compute/flops_total", 0) == before * STEP
    if before:
        assert dict(pair for _, row in tracker.scalars for pair in row.items())["compute/flops_total"] == before * STEP
    # The backward of a step goes on through the encoder, also where only the head has a hook.
    forward, step = (ENCODER + HEAD, STEP) if part is None else (HEAD, STEP - ENCODER)
    assert second.profile.forward_flops == forward
    assert second.metrics()["compute/flops_total"] == STEPS * step
    assert second.metrics()["compute/estimated_pct"] == 0
    assert differences(dict(twin.state_dict()), dict(alone.state_dict())) == []
    assert leftovers(twin) == []


def test_two_hooks_on_one_model_with_an_optimizer_each_have_all_steps():
    model = Net()
    optimizers = [sgd(model.encoder), sgd(model.head)]
    hooks = [hooked(model, optimizer) for optimizer in optimizers]
    for x in batches():
        model(x).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for hook in hooks:
        hook.close()
    for numbers in (hook.metrics() for hook in hooks):
        assert (numbers["compute/steps_total"], numbers["compute/samples_total"]) == (STEPS, STEPS * BATCH)
        assert numbers["compute/flops_total"] == STEPS * STEP
        assert numbers["compute/estimated_pct"] == 0


def test_a_hook_that_cannot_be_made_leaves_the_first_at_work():
    model = Net()
    optimizer = sgd(model)
    with hooked(model, optimizer) as hook:
        for options in ({"latency_steps": -1}, {"to": object()}):
            with pytest.raises((TypeError, ValueError)):
                hooked(model, optimizer, **options)
        train(model, optimizer)
    assert hook.metrics()["compute/flops_total"] == STEPS * STEP


def test_models_that_share_an_optimizer_and_no_module_have_a_hook_each():
    one, two = Net(), Net()
    optimizer = torch.optim.SGD([*one.parameters(), *two.parameters()], lr=0.01)
    with hooked(one, optimizer) as of_one, hooked(two, optimizer) as of_two:
        for x in batches():
            (one(x) + two(x)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for hook in (of_one, of_two):
        assert hook.metrics()["compute/flops_total"] == STEPS * STEP


def test_each_network_of_a_gan_has_a_hook_where_each_has_an_optimizer():
    generator, critic = nn.Linear(INNER, WIDE), Net()
    first, second = sgd(generator), sgd(critic)
    with hooked(generator, first) as of_generator, hooked(critic, second) as of_critic:
        for _ in range(STEPS):
            made = generator(torch.ones(BATCH, INNER))
            critic(made.detach()).sum().backward()
            second.step()
            second.zero_grad()
            (-critic(made).sum()).backward()
            first.step()
            first.zero_grad()
            second.zero_grad()
    assert of_generator.profile.forward_flops == 2 * BATCH * INNER * WIDE
    assert of_critic.profile.forward_flops == ENCODER + HEAD


def test_a_hook_that_was_closed_or_dropped_is_replaced_in_silence(recwarn):
    model = Net()
    optimizer = sgd(model)
    with hooked(model, optimizer):
        train(model, optimizer, 1)
    dropped = hooked(model, optimizer)
    train(model, optimizer, 1)
    del dropped
    gc.collect()
    with hooked(model, optimizer) as hook:
        train(model, optimizer)
    assert not [each for each in recwarn if each.category is FlopCallbackWarning]
    assert hook.metrics()["compute/flops_total"] == STEPS * STEP


def test_copies_of_a_hook_are_no_hooks_to_be_replaced(recwarn):
    model = Net()
    optimizer = sgd(model)
    with hooked(model, optimizer) as hook:
        train(model, optimizer)
    twin = copy.deepcopy(hook)
    with hooked(model, optimizer):
        train(model, optimizer)
    twin.close()
    assert not [each for each in recwarn if each.category is FlopCallbackWarning]


# --- Around -----------------------------------------------------------------------------------------------------------


def test_a_peak_that_is_measured_is_counted_by_nobody():
    hardware._measured_once.cache_clear()
    model = Net()
    with FlopCounterMode(display=False) as counter, hooked(model, sgd(model), peak_flops="measure") as hook:
        model(batches()[0])
    assert hook.profile.peak_flops_per_s > 0
    assert counter.get_total_flops() == ENCODER + HEAD


def test_a_model_under_a_transform_of_torch_func_is_called_once():
    calls = []
    model = Net(calls)
    optimizer = sgd(model)

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    with warnings.catch_warnings(), hooked(model, optimizer) as hook:
        for x in batches():
            parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
            for name, grad in torch.func.grad(loss)(parameters, x).items():
                model.get_parameter(name).grad = grad
            optimizer.step()
    assert len(calls) == STEPS
    assert hook.profile.forward_flops == ENCODER + HEAD
    assert "torch.func" in hook.profile.config["flops.engine_reason"]


# --- Where a call ends ------------------------------------------------------------------------------------------------


def test_a_call_is_cut_where_an_optimizer_stays_idle(leftovers):
    model, idle = Net(), nn.Linear(2, 2)
    optimizers = [sgd(model), sgd(idle)]
    with hooked(model, optimizers) as hook:
        train(model, optimizers[0], 2 * MOST_CALLS)
        assert hook.profile.forward_flops == MOST_CALLS * (ENCODER + HEAD)
        for _ in range(6):
            train(model, optimizers[0], 1)
            optimizers[1].step()
    assert leftovers(model) == []


def test_what_the_model_gave_is_the_loops_alone():
    model = Net()
    with hooked(model, [sgd(model), sgd(nn.Linear(2, 2))]):
        result = model(batches()[0])
        seen = weakref.ref(result)
        del result
        assert seen() is None


def test_the_same_optimizer_twice_is_one():
    model = Net()
    optimizer = sgd(model)
    with hooked(model, [optimizer, optimizer]) as hook:
        train(model, optimizer)
    assert hook.profile.forward_flops == ENCODER + HEAD
    assert hook.profile.latency.steps == 4


def test_a_marked_step_that_raises_ends_the_call():
    model = Net()
    optimizer = sgd(model)
    with hooked(model) as hook:
        with pytest.raises(ZeroDivisionError), hook.step():
            model(batches()[0]).numel() // 0
        for x in batches():
            with hook.step():
                model(x).square().sum().backward()
                optimizer.step()
    assert hook.profile.forward_flops == ENCODER + HEAD


def test_a_result_that_is_a_view_and_is_written_to_still_tells_of_its_backward():
    class View(Net):
        def forward(self, x):
            return super().forward(x)[:, :1]

    model = View()
    optimizer = sgd(model)
    with hooked(model, optimizer) as hook:
        for step, x in enumerate(batches()):
            model(x).mul_(2).sum().backward()
            if step % 2:
                optimizer.step()
    assert hook.profile.forward_flops == ENCODER + HEAD


def test_who_asks_for_numbers_before_the_backward_does_not_part_later_calls():
    model = Net()
    optimizer = sgd(model)
    with hooked(model, optimizer) as hook:
        for step, x in enumerate(batches()):
            loss = (model(x) * model(-x)).sum()
            if not step:
                assert hook.metrics()["flops/forward"] == 2 * (ENCODER + HEAD)
            loss.backward()
            optimizer.step()
    assert hook.profile.latency.steps == 4


# --- A hook that nobody closed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.filterwarnings("ignore:FlopHook. it was dropped:UserWarning")
def test_a_model_with_a_hook_that_was_forgotten_can_go(steps):
    model = Net()
    optimizer = sgd(model)
    hook = hooked(model, optimizer)
    train(model, optimizer, steps)
    seen = weakref.ref(model)
    del model, optimizer, hook
    gc.collect()
    assert seen() is None
    assert "__reduce_ex__" not in vars(nn.Module)


# --- Ends of steps ----------------------------------------------------------------------------------------------------

STEP = 2 * (ENCODER + HEAD) + HEAD  # the batch needs no gradient


class UpdatesWithProducts(torch.optim.SGD):
    """Calls the hooks twice, its own and those of `SGD.step`, and works on after the first."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for weight in (each.detach() for each in group["params"] if each.ndim == 2):
                weight @ weight.T
        return loss


@pytest.mark.parametrize("observe", ["auto", "always"])
def test_a_step_of_an_optimizer_within_its_own_does_not_end_the_step(observe):
    model = Net()
    sgd(model)  # puts hooks on `SGD.step`
    tracker = MemoryTracker()
    optimizer = UpdatesWithProducts(model.parameters())
    with hooked(model, optimizer, to=tracker, observe=observe) as hook:
        train(model, optimizer)
    update = 2 * (INNER * WIDE * INNER + OUT * INNER * OUT)
    assert hook.metrics()["compute/flops_total"] == STEPS * (STEP + update)
    assert hook.metrics()["compute/estimated_pct"] == 0
    assert max(step for step, _ in tracker.scalars) < STEPS


@pytest.mark.parametrize("observe", ["auto", "always"])
def test_updates_inside_the_backward_end_the_step_when_the_backward_is_over(observe):
    model = Net()
    optimizers = {weight: torch.optim.SGD([weight], lr=0.01) for weight in model.parameters()}

    def update(weight):
        optimizers[weight].step()
        optimizers[weight].zero_grad()

    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(update)
    with hooked(model, list(optimizers.values()), observe=observe) as hook:
        for x in batches():
            model(x).square().sum().backward()
    assert hook.metrics()["compute/flops_total"] == STEPS * STEP
    assert hook.metrics()["compute/estimated_pct"] == 0
    assert hook.metrics()["compute/steps_total"] == STEPS
    assert not torch.autograd._profiler_enabled()


def test_a_step_whose_call_raised_leaves_its_records_to_no_other_step():
    class Refuses(Net):
        def forward(self, x):
            inner = self.encoder(x)
            if len(x) != BATCH:
                raise ValueError("batch")
            return self.head(inner)

    model = Refuses()
    optimizer = sgd(model)
    with hooked(model, optimizer) as hook:
        for index, x in enumerate(batches(60)):
            try:
                loss = model(x if index % 3 else x[1:]).square().sum()
            except ValueError:
                continue
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert hook.metrics()["compute/flops_total"] == 40 * STEP
    assert hook.metrics()["compute/estimated_pct"] == 0


def test_an_evaluation_within_some_steps_makes_a_kind_of_its_own():
    model = Net()
    optimizer = sgd(model)
    with hooked(model, optimizer) as hook:
        for index, x in enumerate(batches(60)):
            loss = model(x).square().sum()
            if index % 3 == 0:
                model.eval()
                with torch.no_grad():
                    model(x)
                model.train()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert hook.metrics()["compute/flops_total"] == 60 * STEP + 20 * (ENCODER + HEAD)
    assert hook.metrics()["compute/estimated_pct"] == 0


# --- What is known of a step ------------------------------------------------------------------------------------------


def test_work_of_the_loop_around_the_model_is_part_of_the_first_step():
    model, queue = nn.Linear(WIDE, INNER), torch.zeros(0, INNER)
    optimizer = sgd(model)
    with hooked(model, optimizer, observe="always") as hook:
        for x in batches():
            encoded = model(x)
            queue = torch.cat([queue, encoded.detach()])
            (encoded @ queue.T).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    products = 2 * 2 * BATCH * INNER * BATCH * (STEPS * (STEPS + 1) // 2)
    assert hook.metrics()["compute/flops_total"] == STEPS * 2 * ENCODER + products
    assert hook.metrics()["compute/estimated_pct"] == 0


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDE, WIDE)

    def forward(self, x, depth):
        for _ in range(depth):
            x = self.layer(x)
        return x


@pytest.mark.parametrize("observe", ["auto", "always"])
def test_a_depth_of_many_values_is_observed_or_estimated(observe):
    model = Deep()
    optimizer = sgd(model)
    depths = [1 + 7 * index % 40 for index in range(120)]
    with hooked(model, optimizer, observe=observe) as hook:
        for depth in depths:
            model(torch.ones(BATCH, WIDE), depth).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    layer = 2 * BATCH * WIDE * WIDE
    numbers, want = hook.metrics(), sum(3 * layer * depth - layer for depth in depths)
    assert abs(numbers["compute/flops_total"] / want - 1) <= min(numbers["compute/estimated_pct"] / 100, 0.1)


def test_steps_of_which_only_the_first_was_observed_are_not_free():
    model = Net()
    optimizer = sgd(model)
    with hooked(model, optimizer) as hook:
        train(model, optimizer, 1)
        with torch.profiler.profile(), torch.profiler.record_function("mine"):
            for x in batches():
                model(torch.cat([x, x])).square().sum().backward()
                optimizer.step()
    numbers = hook.metrics()
    assert numbers["compute/flops_total"] == (1 + 2 * STEPS) * STEP  # in proportion to the batch
    assert numbers["compute/estimated_pct"] == pytest.approx(100 * 2 * STEPS / (1 + 2 * STEPS))


@pytest.mark.filterwarnings("ignore:FlopHook. no training call:UserWarning")
def test_a_total_without_a_count_is_not_called_exact():
    from torch.utils.checkpoint import checkpoint

    model = Net()
    optimizer = sgd(model)
    with hooked(model, optimizer) as hook:
        for x in batches():
            checkpoint(model, x.requires_grad_(), use_reentrant=True).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert hook.metrics()["compute/estimated_pct"] == 100
