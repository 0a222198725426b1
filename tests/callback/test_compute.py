"""Compute so far in a plain loop: integers that are worked out by hand, for loops whose steps are not all alike."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from flopcallback import FlopHook
from flopcallback.trackers import MemoryTracker
from flopcallback.training.trainable import REFRESH

BATCH, WIDE, INNER, OUT = 3, 5, 7, 2
FIRST, SECOND = 2 * WIDE * INNER, 2 * INNER * OUT  # FLOPs of a forward, for each sample

# To the weights of both, and from the second back to the first.
PLAIN = FIRST + SECOND + (FIRST + SECOND) + SECOND
# The gradient of the outputs with respect to the inputs, through both; the gradient of that: to both weights, and from
# the first layer back to the second; then that of the outputs, to the weights of both and through both.
PENALTY = FIRST + SECOND + (FIRST + SECOND) + (FIRST + SECOND + FIRST) + (FIRST + SECOND) + (FIRST + SECOND)
FROZEN = FIRST + SECOND + SECOND  # the first layer is


@pytest.fixture
def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, OUT))


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


@pytest.fixture
def tracker():
    return MemoryTracker()


def hooked(model, optimizer=None, **options):
    defaults = {"warmup_steps": 1, "latency_steps": 2, "summary": False, "strict": True}
    return FlopHook(model, optimizer, **{**defaults, **options})


def batch(samples=BATCH, **options):
    return torch.ones(samples, WIDE, **options)


def step(model, optimizer, samples=BATCH):
    model(batch(samples)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def spent(hook):
    """FLOPs, samples, and percent that are estimated."""
    numbers = hook.metrics()
    return tuple(numbers.get(f"compute/{name}") for name in ("flops_total", "samples_total", "estimated_pct"))


def test_steps_that_are_all_alike_are_as_many_times_one(model, optimizer):
    with hooked(model, optimizer) as hook:
        for _ in range(10):
            step(model, optimizer)
    assert spent(hook) == (10 * BATCH * PLAIN, 10 * BATCH, 0)
    assert hook.metrics()["flops/train_step"] == BATCH * PLAIN


def test_a_training_of_one_step_is_exact(model, optimizer):
    with hooked(model, optimizer) as hook:
        step(model, optimizer)
    assert spent(hook) == (BATCH * PLAIN, BATCH, 0)


def test_what_an_autograd_graph_is_not_made_for_in_every_layer_is_not_there_either(model):
    """A layer whose nodes the tracer makes more of than there are, as of batch norm in training."""
    model.insert(1, nn.BatchNorm1d(INNER))
    optimizer = torch.optim.AdamW(model.parameters())
    with hooked(model, optimizer) as hook:
        for _ in range(5):
            step(model, optimizer)
    assert spent(hook) == (5 * BATCH * PLAIN, 5 * BATCH, 0)


def gan():
    pair = nn.ModuleDict({"generator": nn.Linear(WIDE, INNER), "critic": nn.Linear(INNER, OUT)})
    return pair, [torch.optim.SGD(part.parameters(), lr=0.01) for part in pair.values()]


# The critic works out its weight's gradient too, which is not asked for; then the generator its own.
FOR_GENERATOR = FIRST + SECOND + 2 * SECOND + FIRST
FOR_CRITIC = FIRST + SECOND + SECOND  # on what the generator makes, detached


def generator_part(pair, optimizer):
    pair["critic"](pair["generator"](batch())).sum().backward()
    optimizer.step()


def critic_part(pair, optimizer):
    pair["critic"](pair["generator"](batch()).detach()).sum().backward()
    optimizer.step()


def test_a_gan_that_trains_one_network_on_even_and_the_other_on_odd_batches():
    pair, (one, other) = gan()
    with hooked(pair, [one, other]) as hook:
        for number in range(20):
            with hook.step():
                (critic_part if number % 2 else generator_part)(pair, other if number % 2 else one)
    assert spent(hook) == (10 * BATCH * (FOR_GENERATOR + FOR_CRITIC), 20 * BATCH, 0)


def test_a_gan_that_trains_its_critic_five_times_as_often():
    pair, (one, other) = gan()
    with hooked(pair, [one, other]) as hook:
        for number in range(36):
            with hook.step():
                critic_part(pair, other)
                if number % 6 == 5:
                    generator_part(pair, one)
    assert spent(hook)[::2] == (BATCH * (36 * FOR_CRITIC + 6 * FOR_GENERATOR), 0)


def test_two_optimizers_each_step():
    pair, (one, other) = gan()
    with hooked(pair, [one, other]) as hook:
        for _ in range(10):
            generator_part(pair, one)
            critic_part(pair, other)
    assert spent(hook) == (10 * BATCH * (FOR_GENERATOR + FOR_CRITIC), 10 * BATCH, 0)


@pytest.mark.parametrize("first", [0, 5])
def test_a_penalty_on_gradients_every_16th_step(model, optimizer, first):
    steps = 70
    with hooked(model, optimizer) as hook:
        for number in range(steps):
            has_penalty = number % 16 == first
            x = batch(requires_grad=has_penalty)
            loss = model(x).sum()
            if has_penalty:
                (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
                loss = loss + gradient.pow(2).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    penalties = len(range(first, steps, 16))
    assert spent(hook) == (BATCH * (penalties * PENALTY + (steps - penalties) * PLAIN), steps * BATCH, 0)


def test_layers_that_are_frozen_and_thaw_and_are_frozen_again(model, optimizer):
    with hooked(model, optimizer) as hook:
        for number in range(30):
            model[0].requires_grad_(10 <= number < 20)
            step(model, optimizer)
    assert spent(hook) == (BATCH * (20 * FROZEN + 10 * PLAIN), 30 * BATCH, 0)


def test_a_layer_that_is_replaced_is_noticed(model, optimizer):
    with hooked(model, optimizer) as hook:
        for number in range(2 * REFRESH):
            if number == REFRESH:
                model[2] = nn.Linear(INNER, 11)
            step(model, optimizer)
    larger = FIRST + FIRST + 3 * 2 * INNER * 11
    assert spent(hook) == (REFRESH * BATCH * (PLAIN + larger), 2 * REFRESH * BATCH, 0)


def test_accumulation_and_a_last_window_that_no_optimizer_ends(model, optimizer):
    with hooked(model, optimizer) as hook:
        for number in range(4 * 6 + 2):
            model(batch()).sum().backward()
            if number % 4 == 3:
                optimizer.step()
        assert spent(hook) == (4 * 6 * BATCH * PLAIN, 4 * 6 * BATCH, 0)
    flops, samples, estimated = spent(hook)
    assert (flops, samples) == (26 * BATCH * PLAIN, 26 * BATCH)
    assert estimated <= 100 * 2 / 26 + 1e-9  # unless it was audited


def test_the_last_step_of_a_loop_that_nothing_ends(model):
    with hooked(model) as hook:
        for _ in range(6):
            model(batch()).sum().backward()
    flops, samples, _ = spent(hook)
    assert (flops, samples) == (6 * BATCH * PLAIN, 6 * BATCH)


def test_lengths_that_vary_are_each_exact(model, optimizer):
    lengths = [2, 3, 5, 7, 11, 3, 2, 13, 5, 2] * 3
    with hooked(model, optimizer) as hook:
        for length in lengths:
            step(model, optimizer, length)
    assert spent(hook) == (sum(lengths) * PLAIN, sum(lengths), 0)


def attention_cost(length):
    projections, products = 2 * length * WIDE * 3 * WIDE, 2 * 2 * length * length * WIDE
    out = 2 * length * WIDE * WIDE
    # Backward: to the weights and, from the projection behind it, to both sides of both products, and to the outputs.
    return projections + products + out + projections + 2 * products + 2 * out


class Attention(nn.Module):
    """Written out, so that every product is one to both engines."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDE, 3 * WIDE), nn.Linear(WIDE, WIDE)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out((q @ k.mT).softmax(-1) @ v)


def test_many_lengths_are_observed_or_estimated_closely():
    model = Attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 200, (300,), generator=generator).tolist()
    with hooked(model, optimizer) as hook:
        for length in lengths:
            model(torch.ones(1, length, WIDE)).sum().backward()
            optimizer.step()
    exact = sum(map(attention_cost, lengths))
    flops, samples, estimated = spent(hook)
    assert samples == 300
    assert 0 <= estimated < 100  # how many there is time to observe depends on the machine
    assert abs(flops - exact) <= min(0.01, estimated / 100) * exact


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_last_short_batch(model, optimizer, epochs):
    with hooked(model, optimizer) as hook:
        for _ in range(epochs):
            for samples in [BATCH] * 4 + [1]:
                step(model, optimizer, samples)
    total = epochs * (4 * BATCH + 1)
    assert spent(hook) == (total * PLAIN, total, 0)


def test_evaluation_is_never_in_it(model, optimizer):
    def evaluate():
        model.eval()
        with torch.no_grad():
            model(batch(11))
        model.train()

    with hooked(model, optimizer) as hook:
        evaluate()
        for _ in range(8):
            step(model, optimizer)
            evaluate()
        evaluate()
    assert spent(hook) == (8 * BATCH * PLAIN, 8 * BATCH, 0)


class Checkpointed(nn.Module):
    """What is made again is the first layer: the sigmoid keeps what it returned."""

    def __init__(self, *, use_reentrant):
        super().__init__()
        self.use_reentrant = use_reentrant
        self.first, self.second = nn.Sequential(nn.Linear(WIDE, INNER), nn.Sigmoid()), nn.Linear(INNER, OUT)

    def forward(self, x):
        return self.second(checkpoint(self.first, x, use_reentrant=self.use_reentrant))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_under_activation_checkpointing_is_spent(use_reentrant):
    model = Checkpointed(use_reentrant=use_reentrant)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with hooked(model, optimizer) as hook:
        for _ in range(8):
            model(batch(requires_grad=True)).sum().backward()
            optimizer.step()
    # The inputs require grad, without which reentrant checkpointing has none: a product more in the backward.
    assert spent(hook) == (8 * BATCH * (PLAIN + FIRST + FIRST), 8 * BATCH, 0)


def test_what_the_user_says_a_step_costs_stands_in_its_place(model, optimizer):
    with hooked(model, optimizer, flops_fn=lambda x: 1009 * len(x)) as hook:
        for samples in (3, 3, 4):
            step(model, optimizer, samples)
    assert spent(hook) == (1009 * 10, 10, 0)


def test_it_is_asked_for_each_micro_batch(model, optimizer):
    with hooked(model, optimizer, flops_fn=lambda x: 1009 * len(x)) as hook:
        for _ in range(2):
            for samples in (3, 3, 4):
                model(batch(samples)).sum().backward()
            optimizer.step()
    assert spent(hook) == (1009 * 20, 20, 0)


def test_samples_and_tokens_by_the_users_functions(model, optimizer):
    with hooked(model, optimizer, batch_size_fn=lambda x: 2 * len(x), tokens_fn=torch.numel) as hook:
        for _ in range(4):
            step(model, optimizer)
    assert hook.metrics()["compute/samples_total"] == 4 * 2 * BATCH
    assert hook.metrics()["compute/tokens_total"] == 4 * BATCH * WIDE


def test_where_tokens_are_not_known_they_are_absent(model, optimizer):
    with hooked(model, optimizer) as hook:
        step(model, optimizer)
    assert not any("tokens" in name for name in hook.metrics())


def test_samples_that_inputs_do_not_agree_on_are_absent():
    class Two(nn.Linear):
        def forward(self, x, y):
            return super().forward(x).sum() + y.sum()

    model = Two(WIDE, OUT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with hooked(model, optimizer) as hook:
        for _ in range(3):
            model(batch(), torch.ones(BATCH + 1)).backward()
            optimizer.step()
    assert spent(hook) == (3 * BATCH * 2 * 2 * WIDE * OUT, None, 0)


def test_batches_of_several_tasks_with_the_same_shapes_have_tokens_of_their_own():
    class Tasks(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, OUT)

        def forward(self, input_ids=None, labels=None):
            return self.embed(labels if input_ids is None else input_ids).sum()

    model = Tasks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    ids = torch.zeros(BATCH, WIDE, dtype=torch.long)
    with hooked(model, optimizer) as hook:
        for name in ("input_ids", "labels", "input_ids", "labels"):
            model(**{name: ids}).backward()
            optimizer.step()
    assert "compute/tokens_total" not in hook.metrics()  # of two of the batches they are not known


@pytest.mark.models
def test_a_transformer_called_by_keywords_has_its_tokens():
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=17, hidden_size=8, intermediate_size=11, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters())
    with hooked(model, optimizer) as hook:
        for length in (5, 5, 7, 5, 7):
            ids = torch.zeros(BATCH, length, dtype=torch.long)
            encoding = transformers.BatchEncoding({"input_ids": ids, "labels": ids})
            assert isinstance(encoding, Mapping)
            model(**encoding).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    layer = 4 * 8 * 8 + 3 * 8 * 11  # query, key, value, output; gate, up, down
    linear = 2 * (2 * layer + 8 * 17) * 3  # forward, and twice as much backward: embeddings are trained as well
    tokens = BATCH * (3 * 5 + 2 * 7)
    # Both products of attention, in two layers; the fused backward makes the first one again.
    attention = [2 * 2 * BATCH * length * length * 8 for length in (5, 5, 7, 5, 7)]
    numbers = hook.metrics()
    assert numbers["compute/tokens_total"] == tokens
    assert numbers["compute/samples_total"] == 5 * BATCH
    assert numbers["compute/estimated_pct"] == 0
    assert numbers["compute/flops_total"] - tokens * linear in (
        2 * 2 * sum(attention) // 2 * 3,
        sum(attention) * 2 // 2 * 7,
    )


def test_a_closure_that_is_called_again_and_again_sees_its_samples_once(model):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-6, max_iter=4, tolerance_grad=0, tolerance_change=0)
    calls = 0

    with hooked(model, optimizer) as hook:
        for _ in range(6):

            def closure():
                nonlocal calls
                calls += 1
                optimizer.zero_grad()
                loss = model(batch()).pow(2).sum()
                loss.backward()
                return loss

            optimizer.step(closure)
    _, samples, estimated = spent(hook)
    assert calls == 6 * 4
    assert samples == 6 * BATCH
    step_flops = hook.profile.step
    assert step_flops.forward + step_flops.backward == 4 * BATCH * PLAIN
    # Scalar products of gradients and steps, as long as all parameters together: a multiply-add for each element.
    assert step_flops.optimizer % (2 * sum(parameter.numel() for parameter in model.parameters())) == 0
    assert estimated > 0  # these products grow with the history: audits do not agree


def test_a_scaler_that_skips_a_step_loses_nothing(model, optimizer):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    skipped = 0
    with hooked(model, optimizer) as hook:
        for number in range(20):
            loss = model(batch()).sum()
            if number in (5, 11):
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            skipped += scaler.get_scale() < before
    assert skipped == 2
    flops, samples, estimated = spent(hook)
    assert (flops, samples) == (20 * BATCH * PLAIN, 20 * BATCH)
    assert estimated <= 100 * 4 / 20


class Fragile(nn.Sequential):
    """Raises where its second layer would begin, if it is told to."""

    fails = False

    def forward(self, x):
        hidden = self[1](self[0](x))
        if self.fails:
            raise MemoryError
        return self[2](hidden)


@pytest.mark.parametrize("failing", [1, 2, 7])
def test_a_call_that_raises_is_no_batch_and_the_loop_goes_on(failing):
    model = Fragile(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, OUT))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with hooked(model, optimizer) as hook:
        for number in range(12):
            model.fails = number == failing
            with contextlib.suppress(MemoryError):
                step(model, optimizer)
    assert spent(hook) == (11 * BATCH * PLAIN, 11 * BATCH, 0)


@pytest.mark.parametrize("failing", [1, 2, 7])
def test_a_marked_step_that_raises_is_left_out(model, optimizer, failing):
    with hooked(model, optimizer) as hook:
        for number in range(12):
            with contextlib.suppress(KeyError), hook.step():
                loss = model(batch()).sum()
                if number == failing:
                    raise KeyError
                loss.backward()
                optimizer.step()
    assert spent(hook) == (11 * BATCH * PLAIN, 11 * BATCH, 0)


def test_metrics_are_as_they_are_now(model, optimizer):
    with hooked(model, optimizer, prefix="net/") as hook:
        for number in range(1, 6):
            step(model, optimizer)
            assert hook.metrics()["net/compute/samples_total"] == number * BATCH
            if number > 1:
                assert hook.metrics()["net/compute/flops_total"] == number * BATCH * PLAIN


def logged(tracker, name="compute/flops_total"):
    return {step: values[name] for step, values in tracker.scalars if name in values}


def test_numbers_are_logged_every_so_many_steps_and_at_the_end(model, optimizer, tracker):
    with hooked(model, optimizer, to=tracker, log_every_n_steps=4) as hook:
        for _ in range(10):
            step(model, optimizer)
    # Steps count from 0: the 4th one is step 3.
    assert logged(tracker) == {3: 4 * BATCH * PLAIN, 7: 8 * BATCH * PLAIN, 9: 10 * BATCH * PLAIN}
    assert logged(tracker, "compute/samples_total") == {3: 4 * BATCH, 7: 8 * BATCH, 9: 10 * BATCH}
    assert set(logged(tracker, "perf/step_time_ms")) == {3, 7, 9}
    assert hook.profile.training["compute/flops_total"] == 10 * BATCH * PLAIN


def test_by_default_every_50_steps(model, optimizer, tracker):
    with hooked(model, optimizer, to=tracker) as hook:
        for _ in range(120):
            step(model, optimizer)
    assert list(logged(tracker)) == [49, 99, 119]
    assert spent(hook)[0] == 120 * BATCH * PLAIN


def test_what_goes_on_from_a_state_has_the_same_integers(model, optimizer):
    with hooked(model, optimizer) as hook:
        for _ in range(5):
            step(model, optimizer)
        state = hook.state_dict()
    with hooked(model, optimizer) as later:
        later.load_state_dict(state)
        for _ in range(3):
            step(model, optimizer)
    assert spent(later) == (8 * BATCH * PLAIN, 8 * BATCH, 0)


def test_a_compiled_model_is_exact(model, capsys):
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with hooked(compiled, optimizer, summary=True) as hook:
        for _ in range(8):
            step(compiled, optimizer)
    assert spent(hook) == (8 * BATCH * PLAIN, 8 * BATCH, 0)
    assert "estimated" not in capsys.readouterr().out


def test_nothing_is_said_of_estimates_where_there_are_none(model, optimizer, capsys):
    with hooked(model, optimizer, summary=True):
        for _ in range(8):
            step(model, optimizer)
    assert "estimated" not in capsys.readouterr().out


def trained(*, with_hook):
    """What is left of a loop whose kinds of steps come late, and in which many are observed."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(WIDE, INNER), nn.BatchNorm1d(INNER), nn.Dropout(0.3), nn.Linear(INNER, OUT))
    optimizer = torch.optim.AdamW(model.parameters())
    with hooked(model, optimizer) if with_hook else contextlib.nullcontext() as hook:
        for number in range(40):
            model[0].requires_grad_(number > 20)
            x = torch.randn(2 + number % 5, WIDE, requires_grad=number % 8 == 3)
            loss = F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long))
            if x.requires_grad:
                loss = loss + torch.autograd.grad(loss, x, create_graph=True)[0].pow(2).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model, optimizer, hook, torch.get_rng_state()


def test_steps_that_are_observed_late_change_no_bit_and_leave_nothing(differences, leftovers):
    bare, hooked_ = trained(with_hook=False), trained(with_hook=True)
    assert differences(bare[0].state_dict(), hooked_[0].state_dict()) == []
    assert differences(bare[1].state_dict(), hooked_[1].state_dict()) == []
    assert torch.equal(bare[3], hooked_[3])
    assert leftovers(hooked_[0]) == []
    assert not hooked_[1]._optimizer_step_post_hooks
    assert "step" not in vars(hooked_[1])
    assert hooked_[2].metrics()["compute/samples_total"] == 8 * (2 + 3 + 4 + 5 + 6)


def test_a_step_that_goes_into_a_cuda_graph_is_not_waited_for(monkeypatch):
    from flopcallback.training.batch_sizes import BatchSizes
    from flopcallback.training.failures import Failures
    from flopcallback.training.meter import ComputeMeter

    is_capturing, waits = iter([True, False]), []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: next(is_capturing))
    monkeypatch.setattr(torch.accelerator, "synchronize", waits.append)
    meter = ComputeMeter(nn.Linear(2, 2), BatchSizes(None, None, len, Failures()))
    meter._device = torch.device("cuda", 1)
    meter._synchronize()
    assert waits == []
    meter._synchronize()
    assert waits == [torch.device("cuda", 1)]


def test_no_step_between_two_logs_waits_for_the_device(model, optimizer, monkeypatch):
    from flopcallback.training.meter import ComputeMeter

    waits, steps = [], []
    monkeypatch.setattr(ComputeMeter, "_synchronize", lambda meter: waits.append(len(steps)))
    for module in (torch.cuda, torch.accelerator):
        monkeypatch.setattr(module, "synchronize", lambda *_: pytest.fail("it waited"))
    with hooked(model, optimizer, log_every_n_steps=25) as hook:
        for number in range(100):
            steps.append(number)
            step(model, optimizer)
        after_window = [at for at in waits if at > 5]
    assert {25, 50, 75, 100} <= set(after_window)
    assert len(after_window) - 4 <= hook.metrics()["compute/audited_steps"]  # an audit is left out of throughput
