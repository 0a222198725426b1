"""sentence-transformers: the callback of Hugging Face's Trainer; both columns of a pair count, and so does the loss."""

import os
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # all of it is made here

import torch
from check import check_trainer
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, PrinterCallback

WORDS, WIDTH, INNER, LAYERS, HEADS = 23, 16, 24, 2, 2
STEPS, PAIRS, QUESTION, ANSWER = 3, 4, 3, 5  # words of both columns


def tokenizer():
    words = ["<pad>", "<unk>", *(f"w{index}" for index in range(WORDS - 2))]
    model = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", unk_token="<unk>")


def encoder():
    config = BertConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=16,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        words = Transformer(folder)
    return SentenceTransformer(modules=[words, Pooling(WIDTH)], device="cpu")


def train(callbacks):
    model = encoder()
    data = {
        "question": [" ".join(f"w{(index + word) % 20}" for word in range(QUESTION)) for index in range(16)],
        "answer": [" ".join(f"w{(3 * index + word) % 20}" for word in range(ANSWER)) for index in range(16)],
    }
    with tempfile.TemporaryDirectory() as folder:
        args = SentenceTransformerTrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=PAIRS, report_to="none", save_strategy="no",
            use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        loss = MultipleNegativesRankingLoss(model)
        trainer = SentenceTransformerTrainer(
            model, args=args, train_dataset=Dataset.from_dict(data), loss=loss, callbacks=callbacks
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.state_dict().values()


def on_paper():
    """Return the FLOPs of a step."""
    linear = LAYERS * 2 * PAIRS * (QUESTION + ANSWER) * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
    attention = LAYERS * 2 * 2 * PAIRS * (QUESTION**2 + ANSWER**2) * WIDTH
    scores = 2 * PAIRS * PAIRS * WIDTH  # each question by each answer
    unused = 2 * 2 * PAIRS * WIDTH * WIDTH  # BERT's own pooling, whose result nothing asks for
    return 3 * linear + attention + attention * 5 // 2 + 3 * scores + unused


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True, warn_only=True)
    callback = check_trainer("sentence-transformers", train, STEPS * on_paper())
    assert callback.metrics()["compute/tokens_total"] == STEPS * PAIRS * (QUESTION + ANSWER)
    assert callback.metrics()["compute/samples_total"] == STEPS * PAIRS
