"""Models of the benchmarks, each with its multiply-adds on paper.

They are real architectures with random weights. Nothing is downloaded: the models of `transformers` are built from
their configurations, the others here and in `nasty`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
import truth
from cases import Case
from nasty import NASTY
from torch import nn

# Set before `transformers` is imported: nothing may be downloaded, and its advice on faster kernels is not wanted.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

__all__ = ["MODELS", "build", "small_llama"]


def build(name: str, *, small: bool = False) -> Case:
    """Build a case, with the same random weights every time.

    Args:
        name: key of `MODELS`.
        small: whether sizes are those for tests: small and awkward.
    """
    torch.manual_seed(0)
    case = MODELS[name](small)
    case.model.eval()
    return case


# Odd sizes in the small models, so that a swapped dimension shows.
def _small(small: bool, **sizes: Any) -> dict[str, Any]:
    return sizes if small else {}


def _tokens(config: Any, batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(3, config.vocab_size, (batch, tokens))


# --- Transformers on text -------------------------------------------------------------------------------------------


def bert(small: bool) -> Case:
    from transformers import BertConfig, BertModel

    sizes = _small(
        small, vocab_size=97, hidden_size=21, num_hidden_layers=2, num_attention_heads=3, intermediate_size=53
    )
    config = BertConfig(**sizes)
    batch, tokens = (2, 11) if small else (2, 128)
    inputs = {"input_ids": _tokens(config, batch, tokens)}
    return Case(BertModel(config), inputs, truth.bert(config, batch, tokens))


def gpt2(small: bool) -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        use_cache=False,
        **_small(small, vocab_size=97, n_embd=21, n_layer=2, n_head=3, n_positions=13, bos_token_id=1, eos_token_id=2),
    )
    batch, tokens = (2, 11) if small else (1, 256)
    inputs = {"input_ids": _tokens(config, batch, tokens)}
    return Case(GPT2LMHeadModel(config), inputs, truth.gpt2(config, batch, tokens))


def _llama(batch: int, tokens: int, **sizes: int) -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(use_cache=False, **sizes)
    inputs = {"input_ids": _tokens(config, batch, tokens)}
    return Case(LlamaForCausalLM(config), inputs, truth.llama(config, batch, tokens))


def llama(small: bool) -> Case:
    """Build a Llama with grouped queries: several query heads per key head."""
    if small:
        return _llama(
            2, 11, vocab_size=97, hidden_size=36, intermediate_size=53, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2,
        )  # fmt: skip
    return _llama(
        1, 256, vocab_size=32_000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=12,
        num_attention_heads=16, num_key_value_heads=4,
    )  # fmt: skip


def small_llama(small: bool) -> Case:
    """Build a deep and narrow Llama.

    It has little arithmetic per operator, so that the overhead of counting shows.
    """
    return _llama(
        1, 128, vocab_size=1000, hidden_size=256, intermediate_size=688, num_hidden_layers=2 if small else 24,
        num_attention_heads=8, num_key_value_heads=2,
    )  # fmt: skip


def mixtral(small: bool) -> Case:
    """Build a mixture of experts.

    The data decides which rows an expert gets; the number of all rows does not depend on it.
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 4000, "hidden_size": 512, "intermediate_size": 1792, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2,
    }  # fmt: skip
    sizes |= _small(
        small, vocab_size=97, hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=6,
        num_local_experts=5,
    )  # fmt: skip
    config = MixtralConfig(use_cache=False, **sizes)
    batch, tokens = (2, 11) if small else (1, 256)
    inputs = {"input_ids": _tokens(config, batch, tokens)}
    return Case(MixtralForCausalLM(config), inputs, truth.mixtral(config, batch, tokens))


def t5(small: bool) -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = _small(small, vocab_size=97, d_model=35, d_kv=11, d_ff=53, num_layers=2, num_decoder_layers=3, num_heads=3)
    config = T5Config(use_cache=False, **sizes)
    batch, tokens, target_tokens = (2, 11, 7) if small else (2, 128, 64)
    inputs = {
        "input_ids": _tokens(config, batch, tokens),
        "attention_mask": torch.ones(batch, tokens, dtype=torch.long),
        "decoder_input_ids": _tokens(config, batch, target_tokens),
    }
    return Case(T5ForConditionalGeneration(config), inputs, truth.t5(config, batch, tokens, target_tokens))


def xlnet(small: bool) -> Case:
    from transformers import XLNetConfig, XLNetModel

    sizes = {"vocab_size": 8000, "d_model": 768, "n_layer": 6, "n_head": 12, "d_inner": 3072}
    sizes |= _small(small, vocab_size=97, d_model=42, n_layer=2, n_head=3, d_inner=53)
    config = XLNetConfig(use_mems_eval=False, **sizes)
    batch, tokens = (2, 11) if small else (2, 128)
    inputs = {"input_ids": _tokens(config, batch, tokens)}
    return Case(XLNetModel(config), inputs, truth.xlnet(config, batch, tokens))


def mamba(small: bool) -> Case:
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"vocab_size": 8000, "hidden_size": 512, "num_hidden_layers": 4}
    sizes |= _small(small, vocab_size=97, hidden_size=24, num_hidden_layers=2, state_size=5, time_step_rank=7)
    config = MambaConfig(use_cache=False, **sizes)
    batch, tokens = (2, 11) if small else (1, 64)
    inputs = {"input_ids": _tokens(config, batch, tokens)}
    return Case(MambaForCausalLM(config), inputs, truth.mamba(config, batch, tokens))


# --- Transformers on images, sound, and both ------------------------------------------------------------------------


def vit(small: bool) -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = _small(
        small, image_size=35, patch_size=5, hidden_size=21, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=53,
    )  # fmt: skip
    config = ViTConfig(num_labels=1000, **sizes)
    batch = 2 if small else 1
    images = torch.randn(batch, config.num_channels, config.image_size, config.image_size)
    return Case(ViTForImageClassification(config), {"pixel_values": images}, truth.vit(config, batch))


def clip(small: bool) -> Case:
    from transformers import CLIPConfig, CLIPModel

    vision = _small(
        small, image_size=35, patch_size=5, hidden_size=21, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=53,
    )  # fmt: skip
    text = _small(
        small, vocab_size=97, hidden_size=26, num_hidden_layers=3, num_attention_heads=2, intermediate_size=59,
        max_position_embeddings=13, eos_token_id=2, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=17 if small else 512)
    images, texts, tokens = (2, 3, 11) if small else (2, 5, 77)
    inputs = {
        "input_ids": _tokens(config.text_config, texts, tokens),
        "pixel_values": torch.randn(images, 3, config.vision_config.image_size, config.vision_config.image_size),
        "attention_mask": torch.ones(texts, tokens, dtype=torch.long),
    }
    return Case(CLIPModel(config), inputs, truth.clip(config, images, texts, tokens))


def swin(small: bool) -> Case:
    from transformers import SwinConfig, SwinForImageClassification

    sizes = _small(small, image_size=52, embed_dim=9, depths=(2, 1), num_heads=(3, 6), window_size=4)
    config = SwinConfig(num_labels=1000, **sizes)
    batch = 2 if small else 1
    images = torch.randn(batch, config.num_channels, config.image_size, config.image_size)
    return Case(SwinForImageClassification(config), {"pixel_values": images}, truth.swin(config, batch))


def whisper(small: bool) -> Case:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    base = {
        "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8,
        "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048,
    }  # fmt: skip
    base |= _small(
        small, d_model=42, encoder_layers=2, decoder_layers=3, encoder_attention_heads=3, decoder_attention_heads=3,
        encoder_ffn_dim=53, decoder_ffn_dim=59, vocab_size=97, max_source_positions=19, num_mel_bins=17,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    config = WhisperConfig(use_cache=False, **base)
    batch, target_tokens = (2, 11) if small else (1, 64)
    inputs = {
        "input_features": torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions),
        "decoder_input_ids": _tokens(config, batch, target_tokens),
    }
    return Case(WhisperForConditionalGeneration(config), inputs, truth.whisper(config, batch, target_tokens))


def wav2vec2(small: bool) -> Case:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    sizes = _small(
        small, hidden_size=30, num_hidden_layers=2, num_attention_heads=3, intermediate_size=53, conv_dim=(11, 13, 17),
        conv_kernel=(7, 5, 3), conv_stride=(5, 3, 2), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=3,
    )  # fmt: skip
    config = Wav2Vec2Config(**sizes)
    batch, samples = (2, 701) if small else (1, 32_000)
    return Case(
        Wav2Vec2Model(config),
        {"input_values": torch.randn(batch, samples)},
        truth.wav2vec2(config, batch, samples),
    )


# --- Convolutional networks -----------------------------------------------------------------------------------------


def resnet50(small: bool) -> Case:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = _small(small, embedding_size=7, hidden_sizes=(20, 44), depths=(2, 3))
    config = ResNetConfig(num_labels=1000, **sizes)
    batch, side = (2, 61) if small else (1, 224)
    model = ResNetForImageClassification(config)
    return Case(model, {"pixel_values": torch.randn(batch, 3, side, side)}, truth.resnet(config, batch, side))


def mobilenet_v2(small: bool) -> Case:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(num_labels=1000)
    batch, side = (2, 61) if small else (1, 224)
    model = MobileNetV2ForImageClassification(config)
    return Case(model, {"pixel_values": torch.randn(batch, 3, side, side)}, truth.mobilenet_v2(config, batch, side))


def convnext(small: bool) -> Case:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    sizes = _small(small, hidden_sizes=(7, 11), depths=(1, 2))
    config = ConvNextConfig(num_labels=1000, num_stages=2 if small else 4, **sizes)
    batch, side = (2, 61) if small else (1, 224)
    model = ConvNextForImageClassification(config)
    return Case(model, {"pixel_values": torch.randn(batch, 3, side, side)}, truth.convnext(config, batch, side))


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net.

    Attributes:
        ins: channels in.
        widths: channels per level.
        classes: classes out.
    """

    ins: int
    widths: tuple[int, ...]
    classes: int


def _two_convolutions(ins: int, outs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source in (ins, outs):
        layers += [nn.Conv2d(source, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net of Ronneberger et al., 2015.

    Its convolutions are padded, so that sides are kept.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        ins, widths = config.ins, config.widths
        self.down = nn.ModuleList(_two_convolutions(*pair) for pair in pairwise((ins, *widths)))
        climbing = widths[::-1]
        pairs = list(pairwise(climbing))
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, outs, 2, stride=2) for below, outs in pairs)
        self.join = nn.ModuleList(_two_convolutions(2 * outs, outs) for _, outs in pairs)
        self.head = nn.Conv2d(widths[0], config.classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skips = []
        for level, block in enumerate(self.down):
            image = block(F.max_pool2d(image, 2) if level else image)
            skips.append(image)
        skips.pop()  # the lowest level has no skip connection
        for up, join in zip(self.up, self.join, strict=True):
            image = join(torch.cat([skips.pop(), up(image)], dim=1))
        return self.head(image)


def unet(small: bool) -> Case:
    config = UNetConfig(3, (5, 7, 11), 13) if small else UNetConfig(3, (32, 64, 128, 256, 512), 21)
    batch, side = (2, 36) if small else (1, 256)
    return Case(UNet(config), {"image": torch.randn(batch, 3, side, side)}, truth.unet(config, batch, side))


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder.

    Attributes:
        code: width of the code.
        widths: channels per level.
        outs: channels out.
    """

    code: int
    widths: tuple[int, ...]
    outs: int


class Decoder(nn.Sequential):
    """Generator of Radford et al., 2016.

    Transposed convolutions lead from a code to an image.
    """

    def __init__(self, config: DecoderConfig) -> None:
        layers: list[nn.Module] = [
            nn.Unflatten(1, (config.code, 1, 1)),
            nn.ConvTranspose2d(config.code, config.widths[0], 4),
        ]
        for ins, outs in zip(config.widths, (*config.widths[1:], config.outs), strict=True):
            layers += [nn.BatchNorm2d(ins), nn.ReLU(), nn.ConvTranspose2d(ins, outs, 4, stride=2, padding=1)]
        super().__init__(*layers, nn.Tanh())

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        return super().forward(code)


def decoder(small: bool) -> Case:
    config = DecoderConfig(11, (7, 5), 3) if small else DecoderConfig(100, (512, 256, 128, 64), 3)
    batch = 2 if small else 4
    return Case(Decoder(config), {"code": torch.randn(batch, config.code)}, truth.decoder(config, batch))


# --- Recurrent networks, and PyTorch's own encoder ------------------------------------------------------------------


@dataclass(frozen=True)
class LSTMConfig:
    """Sizes of an LSTM language model.

    Attributes:
        vocabulary: tokens.
        width: width of the embedding.
        hidden: width of the state.
        projection: width of a level's output; with 0 it is `hidden`.
        levels: number of levels.
    """

    vocabulary: int
    width: int
    hidden: int
    projection: int
    levels: int


class LSTMLanguageModel(nn.Module):
    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.lstm = nn.LSTM(config.width, config.hidden, config.levels, batch_first=True, proj_size=config.projection)
        self.head = nn.Linear(config.projection or config.hidden, config.vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])


def _lstm(config: LSTMConfig, batch: int, tokens: int) -> Case:
    inputs = {"tokens": torch.randint(0, config.vocabulary, (batch, tokens))}
    return Case(LSTMLanguageModel(config), inputs, truth.lstm_language_model(config, batch, tokens))


def lstm_language_model(small: bool) -> Case:
    return _lstm(LSTMConfig(97, 17, 19, 0, 3), 3, 11) if small else _lstm(LSTMConfig(10_000, 1024, 1024, 0, 2), 4, 64)


def projected_lstm(small: bool) -> Case:
    """Build an LSTM with projection, as in Sak et al., 2014."""
    return _lstm(LSTMConfig(97, 17, 19, 13, 3), 3, 11) if small else _lstm(LSTMConfig(10_000, 512, 2048, 512, 2), 4, 64)


@dataclass(frozen=True)
class GRUConfig:
    """Sizes of a bidirectional GRU tagger.

    Attributes:
        width: width of the inputs.
        hidden: width of the state of each direction.
        levels: number of levels.
        tags: number of tags.
    """

    width: int
    hidden: int
    levels: int
    tags: int


class GRUTagger(nn.Module):
    def __init__(self, config: GRUConfig) -> None:
        super().__init__()
        self.gru = nn.GRU(config.width, config.hidden, config.levels, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * config.hidden, config.tags)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(frames)[0])


def gru_tagger(small: bool) -> Case:
    config = GRUConfig(17, 19, 3, 11) if small else GRUConfig(256, 384, 3, 50)
    batch, tokens = (3, 13) if small else (4, 100)
    return Case(
        GRUTagger(config), {"frames": torch.randn(batch, tokens, config.width)}, truth.gru_tagger(config, batch, tokens)
    )


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a transformer encoder.

    Attributes:
        width: width of a token.
        heads: attention heads.
        hidden: width between the two dense layers.
        layers: number of layers.
    """

    width: int
    heads: int
    hidden: int
    layers: int


def _encoder(small: bool, *, grad: bool) -> Case:
    config = EncoderConfig(22, 2, 53, 2) if small else EncoderConfig(512, 8, 2048, 6)
    batch, tokens = (2, 11) if small else (2, 128)
    layer = nn.TransformerEncoderLayer(config.width, config.heads, config.hidden, batch_first=True)
    model = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
    inputs = {"src": torch.randn(batch, tokens, config.width)}
    return Case(model, inputs, truth.encoder(config, batch, tokens), grad=grad)


def encoder_with_grad(small: bool) -> Case:
    return _encoder(small, grad=True)


def encoder_no_grad(small: bool) -> Case:
    """Build an encoder that runs without grad.

    PyTorch then runs a whole layer (with an even number of heads) as one operator.
    """
    return _encoder(small, grad=False)


MODELS: Mapping[str, Callable[[bool], Case]] = {
    "BERT": bert,
    "GPT-2": gpt2,
    "Llama, grouped queries": llama,
    "ViT-B": vit,
    "Whisper": whisper,
    "ResNet-50": resnet50,
    "LSTM language model": lstm_language_model,
    "LSTM with projection": projected_lstm,
    "encoder, grad": encoder_with_grad,
    "encoder, no_grad": encoder_no_grad,
    "U-Net": unet,
    "MobileNetV2": mobilenet_v2,
    "Llama, 24 layers of 256": small_llama,
    "Mixtral": mixtral,
    "T5": t5,
    "XLNet": xlnet,
    "Mamba": mamba,
    "CLIP": clip,
    "Swin": swin,
    "wav2vec 2.0": wav2vec2,
    "ConvNeXt": convnext,
    "GRU tagger": gru_tagger,
    "transposed decoder": decoder,
    **NASTY,
}
