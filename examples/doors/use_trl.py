"""trl: the callback of Hugging Face's Trainer, in SFT, LoRA, DPO and GRPO; a reference model has rows of its own."""

import copy
import os
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # all of it is made here

import datasets
import torch
import trl
from check import check_trainer
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback

WORDS, WIDTH, INNER, LAYERS, HEADS, RANK = 29, 16, 24, 2, 2, 3
STEPS, PROMPT, COMPLETION = 3, 3, 5
LENGTH = PROMPT + COMPLETION


def llama():
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tokenizer():
    words = ["<pad>", "<eos>", "<unk>", *(f"w{index}" for index in range(WORDS - 3))]
    model = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def sentence(first, words):
    return " ".join(f"w{index}" for index in range(first, first + words))


# The end of the text is a word, too.
TEXTS = {"text": [sentence(0, LENGTH - 1)] * 8}
PAIRS = {
    "prompt": [sentence(0, PROMPT)] * 8,
    "chosen": [" " + sentence(5, COMPLETION - 1)] * 8,
    "rejected": [" " + sentence(11, COMPLETION - 1)] * 8,
}
PROMPTS = {"prompt": [sentence(0, PROMPT)] * 8}


def trained(kind, config, data, batch, callbacks, *args, **more):
    """Train, and return the weights that are left."""
    with tempfile.TemporaryDirectory() as folder:
        common = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "bf16": False}
        steps = {"max_steps": STEPS, "per_device_train_batch_size": batch, "activation_checkpointing": False}
        trainer = kind(
            *args,
            args=config(output_dir=folder, dataloader_pin_memory=False, **common, **steps, **more.pop("options", {})),
            train_dataset=datasets.Dataset.from_dict(data),
            processing_class=tokenizer(),
            callbacks=callbacks,
            **more,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.model.state_dict().values()


def sft(callbacks):
    return trained(trl.SFTTrainer, trl.SFTConfig, TEXTS, 2, callbacks, llama())


def lora(callbacks):
    adapters = LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return trained(trl.SFTTrainer, trl.SFTConfig, TEXTS, 2, callbacks, llama(), peft_config=adapters)


def dpo(callbacks):
    model = llama()
    return trained(trl.DPOTrainer, trl.DPOConfig, PAIRS, 2, callbacks, model, copy.deepcopy(model))


def grpo(callbacks):
    def reward(completion_ids, **_):
        return [float(sum(words) % 7) for words in completion_ids]

    options = {"num_generations": 2, "max_completion_length": COMPLETION, "beta": 0.1}
    options["generation_kwargs"] = {"min_new_tokens": COMPLETION}
    with tempfile.TemporaryDirectory() as folder:  # the reference is read from where the model was
        llama().save_pretrained(folder)
        model = LlamaForCausalLM.from_pretrained(folder)
        return trained(trl.GRPOTrainer, trl.GRPOConfig, PROMPTS, 4, callbacks, model, reward, options=options)


# --- On paper ---------------------------------------------------------------------------------------------------------


def projection(words, wide=WIDTH, out=WIDTH):
    return 2 * words * wide * out


def layer(words):
    return 4 * projection(words) + 3 * projection(words, WIDTH, INNER)


def attention(sequences, queries, keys):
    return 2 * 2 * sequences * queries * keys * WIDTH  # queries by keys, and scores by values


def head(words):
    return projection(words, WIDTH, WORDS)


def forward(sequences):
    """Return the FLOPs of a forward, with the logits of all words that have a next one."""
    return LAYERS * (layer(sequences * LENGTH) + attention(sequences, LENGTH, LENGTH)) + head(sequences * (LENGTH - 1))


def backward(sequences):
    """Return the FLOPs of a backward.

    Attention has five products for the two of its forward, and trl's head three for one: both compute scores again.
    """
    layers = LAYERS * (2 * layer(sequences * LENGTH) + attention(sequences, LENGTH, LENGTH) * 5 // 2)
    return layers + 3 * head(sequences * (LENGTH - 1))


def adapted(sequences):
    """Return the FLOPs of a step with adapters.

    Frozen weights have no gradients, and nothing before the first adapters has.
    """
    words = sequences * LENGTH
    half = projection(words, WIDTH, RANK)  # of an adapter, which has two; a layer has two adapters
    again = 3 * projection(words, WIDTH, INNER) + attention(sequences, LENGTH, LENGTH) * 5 // 2
    first = 2 * 3 * half + projection(words) + again
    others = 2 * 4 * half + 4 * projection(words) + again
    layers = first + (LAYERS - 1) * others
    return forward(sequences) + LAYERS * 4 * half + layers + 2 * head(sequences * (LENGTH - 1))


def generation(sequences):
    """Return the FLOPs of generating: the prompt at once, then word by word, with keys and values kept."""
    total = LAYERS * (layer(sequences * PROMPT) + attention(sequences, PROMPT, PROMPT)) + head(sequences)
    for keys in range(PROMPT + 1, LENGTH):
        total += LAYERS * (layer(sequences) + attention(sequences, 1, keys)) + head(sequences)
    return total


def without_grad(callback):
    """Return the FLOPs without grad in a step, of all and of the reference model."""
    rows = {row.path: row.step for row in callback.profiles["train"].modules}
    return rows[""].without_grad, rows["ref_model"].without_grad


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True, warn_only=True)
    callback = check_trainer("trl SFT", sft, STEPS * (forward(2) + backward(2)))
    assert callback.metrics()["compute/tokens_total"] == STEPS * 2 * LENGTH
    check_trainer("trl SFT with LoRA", lora, STEPS * adapted(2))
    callback = check_trainer("trl DPO", dpo, STEPS * (2 * forward(4) + backward(4)))
    assert without_grad(callback) == (forward(4), forward(4))
    callback = check_trainer("trl GRPO", grpo, STEPS * (generation(4) + 2 * forward(4) + backward(4)))
    assert without_grad(callback) == (generation(4) + forward(4), forward(4))
