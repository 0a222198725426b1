"""FlopTrainerCallback leaves each training as it was, to the bit, and counts it to the FLOP."""

from __future__ import annotations

import pytest
import torch
from hf_training import FORWARD, LENGTH, STEP, Net
from torch import nn

pytestmark = pytest.mark.models

# A Llama: words, width, width of its MLPs, layers, heads.
WORDS, WIDTH, INNER, LAYERS, HEADS = 11, 16, 24, 2, 2

# FLOPs by hand, for 2 examples of 3 words: one projection, one of an MLP, the attention of a layer, the head.
TOKENS = 2 * 3
PROJECTION = 2 * TOKENS * WIDTH * WIDTH
MLP = 2 * TOKENS * WIDTH * INNER
ATTENTION = 2 * (2 * 2 * 3 * 3 * WIDTH)  # queries by keys, and scores by values, of 2 examples
LAYER = 4 * PROJECTION + 3 * MLP
HEAD = 2 * TOKENS * WIDTH * WORDS
LLAMA_FORWARD = LAYERS * (LAYER + ATTENTION) + HEAD

# Two products for each of a linear layer, and five for the two of fused attention, which forms the scores again.
LLAMA_BACKWARD = 2 * (LAYERS * LAYER + HEAD) + LAYERS * ATTENTION * 5 // 2


HEAD_OF_NET = 2 * TOKENS * 7 * WORDS  # the second of the two layers of `Net`, from 7 hidden values


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=8, pad_token_id=None))


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({}, 6),
        ({"bf16": True}, 6),
        ({"gradient_accumulation_steps": 2, "max_steps": 3}, 3),
        ({"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}, 6),
        ({"eval_on_start": True, "logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 0.5}, 6),
        ({"optim": "adafactor", "auto_find_batch_size": True, "include_num_input_tokens_seen": "all"}, 6),
        ({"torch_compile": True, "torch_compile_backend": "aot_eager"}, 6),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_training_is_the_same_to_the_bit_and_counted_to_the_flop(train, make_callback, arguments, steps):
    plain = train(**arguments)
    torch._dynamo.reset()
    callback = make_callback(strict=True)
    left = train(callback, **arguments)

    assert left == plain
    assert left.told == []
    numbers = callback.metrics()
    assert numbers["flops/forward"] == FORWARD
    assert numbers["flops/train_step"] == STEP * 6 // steps
    assert numbers["compute/flops_total"] == 6 * STEP
    assert numbers["compute/steps_total"] == left.steps == steps
    assert numbers["compute/tokens_total"] == 6 * 2 * LENGTH
    assert numbers["compute/samples_total"] == 6 * 2
    assert numbers["compute/estimated_pct"] == 0


@pytest.mark.parametrize(
    ("arguments", "recomputed"),
    [
        ({}, 0),
        ({"bf16": True, "gradient_accumulation_steps": 2, "max_steps": 3}, 0),
        # Each layer runs again in backward, up to the last operator whose input backward needs: not the last product.
        ({"activation_checkpointing": True}, LAYERS * (LAYER + ATTENTION - MLP)),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_transformer_is_counted_to_the_flop(train, make_callback, arguments, recomputed):
    plain = train(model=llama, **arguments)
    callback = make_callback(strict=True)
    left = train(callback, model=llama, **arguments)

    assert left == plain
    assert left.told == []
    numbers = callback.metrics()
    assert numbers["flops/forward"] == LLAMA_FORWARD
    assert numbers.get("flops/recompute", 0) == recomputed
    assert numbers["compute/flops_total"] == 6 * (LLAMA_FORWARD + LLAMA_BACKWARD + recomputed)
    assert numbers["compute/estimated_pct"] == 0


def test_an_adapter_by_peft_is_counted_without_the_weights_that_are_frozen(train, make_callback):
    peft = pytest.importorskip("peft")
    rank = 3

    def adapted():
        return peft.get_peft_model(llama(), peft.LoraConfig(r=rank, target_modules=["q_proj", "v_proj"]))

    plain = train(model=adapted)
    callback = make_callback(strict=True)
    left = train(callback, model=adapted)

    assert left == plain
    half = 2 * TOKENS * WIDTH * rank  # of an adapter, which has two
    forward = LLAMA_FORWARD + LAYERS * 2 * 2 * half
    attention = ATTENTION * 5 // 2
    upper = 4 * PROJECTION + 2 * 4 * half + 3 * MLP + attention  # adapters for weights and inputs, others for inputs
    first = 2 * 3 * half + PROJECTION + 3 * MLP + attention  # nothing before it trains: no gradients of its input
    assert callback.metrics()["flops/forward"] == forward
    assert callback.metrics()["flops/backward"] == HEAD + upper + first


def test_rows_have_the_names_of_the_model(train, make_callback):
    callback = make_callback(strict=True)
    train(callback)
    rows = {row.path: row.flops for row in callback.profiles["train"].modules}
    assert rows == {"": FORWARD, "words": 0, "hidden": 2 * 6 * 5 * 7, "head": 2 * 6 * 7 * 11}


def test_tokens_of_all_forwards_count_and_padding_is_told_apart(train, make_callback):
    from transformers import Trainer

    class TwoForwards(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            first = model(**inputs)
            second = model(**{name: value[:, :2] for name, value in inputs.items()})
            return first["loss"] + second["loss"]

    callback = make_callback(strict=True)
    train(callback, trainer=TwoForwards)
    assert callback.metrics()["compute/tokens_total"] == 6 * 2 * (3 + 2)
    assert callback.metrics()["compute/samples_total"] == 6 * 2
    assert callback.metrics()["perf/padding_pct"] == pytest.approx(100 / 5)  # the last word of 3, none of the first 2


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_teacher_that_the_trainer_calls_counts(train, make_callback, order):
    from transformers import Trainer

    class Distilling(Trainer):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.teacher = Net().eval()

        def compute_loss(self, model, inputs, return_outputs=False, **_):
            def teach():
                with torch.no_grad():
                    return self.teacher(**inputs)["logits"]

            wanted = teach() if order == "before" else None
            output = model(**inputs)
            wanted = teach() if wanted is None else wanted
            return output["loss"] + nn.functional.mse_loss(output["logits"], wanted)

    plain = train(trainer=Distilling)
    callback = make_callback(strict=True)
    assert train(callback, trainer=Distilling) == plain
    assert callback.metrics()["flops/forward"] == FORWARD
    assert callback.metrics()["flops/without_grad"] == FORWARD
    assert callback.metrics()["compute/flops_total"] == 6 * (STEP + FORWARD)
    rows = {row.path: row for row in callback.profiles["train"].modules}
    assert [rows[name].step.without_grad for name in ("", "teacher", "teacher.head")] == [FORWARD, FORWARD, HEAD_OF_NET]
    assert [rows[name].step.total for name in ("hidden", "head")] == [3 * (FORWARD - HEAD_OF_NET), 3 * HEAD_OF_NET]
    assert rows[""].params == rows["teacher"].params  # not both together


class Product(torch.autograd.Function):
    """A linear layer without bias, such as a head whose products are fused with the loss."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.flatten(0, 1).T @ x.flatten(0, 1)


def test_an_autograd_function_of_a_teacher_is_without_grad(train, make_callback):
    from transformers import Trainer

    class Fused(nn.Linear):
        def forward(self, x):
            return Product.apply(x, self.weight)

    class Distilling(Trainer):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.teachers = [nn.Embedding(WORDS, WIDTH), Fused(WIDTH, WORDS)]

        def compute_loss(self, model, inputs, return_outputs=False, **_):
            words, head = self.teachers
            with torch.no_grad():
                wanted = head(words(inputs["input_ids"]))
            output = model(**inputs)
            return output["loss"] + nn.functional.mse_loss(output["logits"], wanted)

    plain = train(trainer=Distilling)
    callback = make_callback(strict=True)
    assert train(callback, trainer=Distilling) == plain
    assert callback.metrics()["flops/without_grad"] == HEAD
    assert callback.metrics()["compute/flops_total"] == 6 * (STEP + HEAD)
    rows = {row.path: row.step for row in callback.profiles["train"].modules}
    assert rows["teachers[1]"].without_grad == HEAD
    assert rows["teachers[0]"].total == 0
