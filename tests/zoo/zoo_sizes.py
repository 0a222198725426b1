"""What every architecture of the zoo is drawn from: small random sizes by seed, and inputs of these sizes."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Sizes of one model and of its inputs, drawn at random; `pick` draws more where an architecture has more.

    A batch norm needs more than one sample. The head width is a multiple of four, since rotary positions of two
    dimensions cut it so; the image is 32 or 64 pixels wide, so that patches, and four halvings, come out even.
    """

    random: random.Random
    batch: int
    tokens: int
    heads: int
    head_width: int
    hidden: int
    layers: int
    vocabulary: int
    side: int

    @classmethod
    def draw(cls, name: str, seed: int) -> Sizes:
        """The sizes of the architecture `name`: every seed gives other ones, on every machine the same."""
        draw = random.Random(zlib.crc32(f"{name}:{seed}".encode()))
        return cls(
            random=draw,
            batch=draw.randint(2, 4),
            tokens=draw.randint(3, 13),
            heads=draw.choice((2, 4)),
            head_width=draw.choice((4, 8, 12)),
            hidden=draw.randint(5, 40),
            layers=draw.randint(1, 3),
            vocabulary=draw.randint(97, 131),
            side=draw.choice((32, 64)),
        )

    @property
    def width(self) -> int:
        """Heads times their width."""
        return self.heads * self.head_width

    def pick(self, *choices: Any) -> Any:
        """One of the choices, the same in every run of this seed."""
        return self.random.choice(choices)


@dataclass(frozen=True)
class Architecture:
    """A model of the zoo.

    Attributes:
        model: its class in `transformers`.
        config: the class of its configuration.
        overrides: from the sizes to what makes the configuration small.
        inputs: from the sizes and the finished configuration to keyword arguments of the call.
        call: the method that is counted; the model itself where empty.
    """

    model: str
    config: str
    overrides: Callable[[Sizes], Mapping[str, Any]]
    inputs: Callable[[Sizes, Any], Inputs]
    call: str = ""

    def build(self, sizes: Sizes) -> tuple[torch.nn.Module, Inputs]:
        """The model with random weights, and inputs; nothing is downloaded."""
        import transformers

        config = getattr(transformers, self.config)(**self.overrides(sizes))
        return getattr(transformers, self.model)(config), self.inputs(sizes, config)


# --- Inputs -----------------------------------------------------------------------------------------------------------


def token_ids(sizes: Sizes, tokens: int | None = None) -> torch.Tensor:
    """`[batch, tokens]`, past the ids that stand for padding, begin and end."""
    return torch.randint(5, 90, (sizes.batch, tokens or sizes.tokens))


def text(sizes: Sizes, config: Any) -> Inputs:
    """Tokens of a batch, unpadded."""
    return {"input_ids": token_ids(sizes)}


def padded_text(sizes: Sizes, config: Any) -> Inputs:
    """Tokens of a batch whose first row ends in padding, and the mask that says so."""
    mask = torch.ones(sizes.batch, sizes.tokens, dtype=torch.long)
    mask[0, sizes.tokens // 2 + 1 :] = 0
    return {"input_ids": token_ids(sizes), "attention_mask": mask}


def labelled_text(sizes: Sizes, config: Any) -> Inputs:
    """Tokens that are to be predicted, so that the loss is part of the forward."""
    ids = token_ids(sizes)
    return {"input_ids": ids, "labels": ids}


def to_continue(sizes: Sizes, config: Any) -> Inputs:
    """The arguments of `generate`: a prompt, and a few tokens more, the most probable each."""
    return {**text(sizes, config), "max_new_tokens": sizes.pick(2, 3), "do_sample": False, "pad_token_id": 0}


def with_cache(sizes: Sizes, config: Any) -> Inputs:
    """One token after a cache of several."""
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        keys, values = (torch.randn(sizes.batch, heads, sizes.tokens, width) for _ in "kv")
        cache.update(keys, values, layer)
    return {"input_ids": token_ids(sizes, 1), "past_key_values": cache}


def two_texts(sizes: Sizes, config: Any) -> Inputs:
    """A text, and the beginning of its translation."""
    return {"input_ids": token_ids(sizes), "decoder_input_ids": token_ids(sizes, sizes.pick(2, 5, 7))}


def long_text(sizes: Sizes, config: Any) -> Inputs:
    """As many tokens as sparse attention needs, lest it turn itself into the dense one."""
    return {"input_ids": token_ids(sizes, 22)}


def image(sizes: Sizes, config: Any) -> Inputs:
    """`[batch, 3, side, side]`."""
    return {"pixel_values": torch.randn(sizes.batch, 3, sizes.side, sizes.side)}


def image_and_text(sizes: Sizes, config: Any) -> Inputs:
    """A batch of images, and of texts."""
    return {**image(sizes, config), **text(sizes, config)}


def video(sizes: Sizes, config: Any) -> Inputs:
    """`[batch, frames, 3, side, side]`."""
    return {"pixel_values": torch.randn(sizes.batch, config.num_frames, 3, sizes.side, sizes.side)}


def wave(sizes: Sizes, config: Any) -> Inputs:
    """`[batch, samples]`."""
    return {"input_values": torch.randn(sizes.batch, sizes.pick(400, 507, 640))}
