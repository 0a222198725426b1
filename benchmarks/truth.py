"""Multiply-adds of models on paper, from their configurations.

No tensor and no counter is used. Matrix products, convolutions, attention and recurrent layers count: one multiply-add
per weight (or key, or value) that meets an element. Biases, norms, activations, softmax and residual sums are not
multiply-adds of these, and neither is arithmetic by broadcasting (rotary embeddings, the scan of a state space model).
"""

from __future__ import annotations

from math import ceil
from typing import Any

# --- Layers ---------------------------------------------------------------------------------------------------------


def linear(rows: int, ins: int, outs: int) -> int:
    """Count a dense layer on each of `rows` vectors."""
    return rows * ins * outs


def convolution(positions: int, ins: int, outs: int, taps: int, groups: int = 1) -> int:
    """Count a convolution.

    Args:
        positions: elements per channel of the output, or of the input of a transposed convolution.
        ins: channels in.
        outs: channels out.
        taps: kernel elements.
        groups: groups of channels.
    """
    return positions * outs * (ins // groups) * taps


def slide(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Return the number of positions of a kernel on a padded line."""
    return (size + 2 * padding - kernel) // stride + 1


def attend(queries: int, keys: int, width: int) -> int:
    """Count scores and weighted sums of all heads together.

    `width` is heads times head width. Masked pairs are included.
    """
    return 2 * queries * keys * width


def attention(queries: int, keys: int, width: int, inner: int | None = None) -> int:
    """Count the projections of queries, keys, values and result, and the attention."""
    inner = inner or width  # heads times head width, where that is not the model's width
    projections = 2 * linear(queries, width, inner) + 2 * linear(keys, width, inner)
    return projections + attend(queries, keys, inner)


def encoder_layer(tokens: int, width: int, hidden: int) -> int:
    """Count self-attention and two dense layers."""
    return attention(tokens, tokens, width) + 2 * linear(tokens, width, hidden)


def gates(rows: int, count: int, ins: int, recurrent: int, hidden: int) -> int:
    """Count the gates of a recurrent layer.

    They see the input and the previous output.
    """
    return rows * count * hidden * (ins + recurrent)


# --- Transformers on text -------------------------------------------------------------------------------------------


def bert(config: Any, batch: int, tokens: int) -> int:
    """Count encoder and pooler.

    The pooler reads the first token.
    """
    width = config.hidden_size
    layers = config.num_hidden_layers * encoder_layer(tokens, width, config.intermediate_size)
    return batch * (layers + linear(1, width, width))


def gpt2(config: Any, batch: int, tokens: int) -> int:
    """Count decoder and language model head."""
    width = config.n_embd
    layers = config.n_layer * encoder_layer(tokens, width, config.n_inner or 4 * width)  # GPT-2's default
    return batch * (layers + linear(tokens, width, config.vocab_size))


def _grouped_attention(config: Any, tokens: int) -> int:
    """Count attention with grouped queries.

    Each query head has its own queries and shares a key head.
    """
    width, head_width = config.hidden_size, config.hidden_size // config.num_attention_heads
    query_width = config.num_attention_heads * head_width
    key_width = config.num_key_value_heads * head_width
    projections = 2 * linear(tokens, width, query_width) + 2 * linear(tokens, width, key_width)
    return projections + attend(tokens, tokens, query_width)


def llama(config: Any, batch: int, tokens: int) -> int:
    """Count grouped queries, three dense layers per block, and the head."""
    dense = 3 * linear(tokens, config.hidden_size, config.intermediate_size)  # gate, up, down
    layers = config.num_hidden_layers * (_grouped_attention(config, tokens) + dense)
    return batch * (layers + linear(tokens, config.hidden_size, config.vocab_size))


def mixtral(config: Any, batch: int, tokens: int) -> int:
    """Count a Llama with experts.

    Every token goes through the router and the chosen experts, whichever they are.
    """
    width = config.hidden_size
    router = linear(tokens, width, config.num_local_experts)
    experts = 3 * linear(tokens * config.num_experts_per_tok, width, config.intermediate_size)
    layers = config.num_hidden_layers * (_grouped_attention(config, tokens) + router + experts)
    return batch * (layers + linear(tokens, width, config.vocab_size))


def t5(config: Any, batch: int, tokens: int, target_tokens: int) -> int:
    """Count encoder, decoder with cross-attention, and head.

    The heads need not add up to the width.
    """
    width, inner, hidden = config.d_model, config.num_heads * config.d_kv, config.d_ff
    encoder = attention(tokens, tokens, width, inner) + 2 * linear(tokens, width, hidden)
    decoder = (
        attention(target_tokens, target_tokens, width, inner)
        + attention(target_tokens, tokens, width, inner)
        + 2 * linear(target_tokens, width, hidden)
    )
    layers = config.num_layers * encoder + config.num_decoder_layers * decoder
    return batch * (layers + linear(target_tokens, width, config.vocab_size))


def xlnet(config: Any, batch: int, tokens: int) -> int:
    """Count einsums with keys by content and by relative position.

    There are twice as many positions as tokens.
    """
    width = config.d_model
    content = attention(tokens, tokens, width)
    # Positions add to the scores only; the weighted sum is that of the content.
    position = linear(2 * tokens, width, width) + tokens * 2 * tokens * width
    return batch * config.n_layer * (content + position + 2 * linear(tokens, width, config.d_inner))


def mamba(config: Any, batch: int, tokens: int) -> int:
    """Count a state space model.

    The scan itself is elementwise; reading a state out is a product.
    """
    width, inner, state = config.hidden_size, config.intermediate_size, config.state_size
    rank = config.time_step_rank
    layer = (
        linear(tokens, width, 2 * inner)
        # Padded by `kernel - 1` on both sides and cut afterwards, so more positions than tokens are computed.
        + convolution(tokens + config.conv_kernel - 1, inner, inner, config.conv_kernel, groups=inner)
        + linear(tokens, inner, rank + 2 * state)
        + linear(tokens, rank, inner)
        + tokens * inner * state
        + linear(tokens, inner, width)
    )
    return batch * (config.num_hidden_layers * layer + linear(tokens, width, config.vocab_size))


# --- Transformers on images, sound, and both ------------------------------------------------------------------------


def _patches(config: Any, width: int) -> tuple[int, int]:
    """Return the number of patches, and the multiply-adds of their embedding."""
    count = (config.image_size // config.patch_size) ** 2
    return count, convolution(count, config.num_channels, width, config.patch_size**2)


def vit(config: Any, batch: int) -> int:
    """Count patches and a class token, which is classified."""
    width = config.hidden_size
    patches, embedding = _patches(config, width)
    layers = config.num_hidden_layers * encoder_layer(patches + 1, width, config.intermediate_size)
    return batch * (embedding + layers + linear(1, width, config.num_labels))


def clip(config: Any, images: int, texts: int, tokens: int) -> int:
    """Count a vision and a text encoder with their projections.

    In the end every text meets every image.
    """
    vision, text, joint = config.vision_config, config.text_config, config.projection_dim
    patches, embedding = _patches(vision, vision.hidden_size)
    image = embedding + vision.num_hidden_layers * encoder_layer(
        patches + 1, vision.hidden_size, vision.intermediate_size
    )
    sentence = text.num_hidden_layers * encoder_layer(tokens, text.hidden_size, text.intermediate_size)
    return (
        images * (image + linear(1, vision.hidden_size, joint))
        + texts * (sentence + linear(1, text.hidden_size, joint))
        + linear(texts, joint, images)
    )


def swin(config: Any, batch: int) -> int:
    """Count attention within windows.

    The image is padded to whole windows; between stages four patches become one.
    """
    window, side, width = config.window_size, config.image_size // config.patch_size, config.embed_dim
    total = convolution(side**2, config.num_channels, width, config.patch_size**2)
    for stage, depth in enumerate(config.depths):
        # Four patches of the old width are concatenated, twice the new one, and reduced to the new one.
        if stage:
            side, width = ceil(side / 2), 2 * width
            total += linear(side**2, 2 * width, width)
        area = min(window, side) ** 2
        windows = ceil(side / min(window, side)) ** 2
        dense = 2 * linear(side**2, width, int(config.mlp_ratio * width))
        total += depth * (windows * attention(area, area, width) + dense)
    return batch * (total + linear(1, width, config.num_labels))


def whisper(config: Any, batch: int, target_tokens: int) -> int:
    """Count two convolutions over the spectrum, encoder, decoder and head.

    The second convolution has stride 2, and the decoder has cross-attention.
    """
    width, tokens = config.d_model, config.max_source_positions
    # The spectrum has two frames per token.
    total = convolution(2 * tokens, config.num_mel_bins, width, 3) + convolution(tokens, width, width, 3)
    total += config.encoder_layers * encoder_layer(tokens, width, config.encoder_ffn_dim)
    cross = attention(target_tokens, tokens, width)
    total += config.decoder_layers * (encoder_layer(target_tokens, width, config.decoder_ffn_dim) + cross)
    return batch * (total + linear(target_tokens, width, config.vocab_size))


def wav2vec2(config: Any, batch: int, samples: int) -> int:
    """Count convolutions over the raw wave, positions and encoder.

    The positions are a grouped convolution; an even kernel gives one position more.
    """
    total, ins, length = 0, 1, samples
    for outs, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        length = slide(length, kernel, stride)
        total += convolution(length, ins, outs, kernel)
        ins = outs
    width, kernel = config.hidden_size, config.num_conv_pos_embeddings
    positions = slide(length, kernel, padding=kernel // 2)
    total += linear(length, ins, width)
    total += convolution(positions, width, width, kernel, config.num_conv_pos_embedding_groups)
    return batch * (total + config.num_hidden_layers * encoder_layer(length, width, config.intermediate_size))


# --- Convolutional networks -----------------------------------------------------------------------------------------


def resnet(config: Any, batch: int, image_size: int) -> int:
    """Count bottlenecks.

    The first block of a stage halves the image (not in the first stage) and projects its shortcut.
    """
    side = slide(image_size, 7, 2, 3)
    total = convolution(side**2, config.num_channels, config.embedding_size, 49)  # 7x7
    side, ins = slide(side, 3, 2, 1), config.embedding_size
    for stage, (outs, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        squeezed = outs // 4
        for block in range(depth):
            stride = 2 if stage and not block else 1
            total += convolution(side**2, ins, squeezed, 1)
            side = slide(side, 3, stride, 1)
            total += convolution(side**2, squeezed, squeezed, 9) + convolution(side**2, squeezed, outs, 1)
            if ins != outs or stride > 1:
                total += convolution(side**2, ins, outs, 1)
            ins = outs
    return batch * (total + linear(1, ins, config.num_labels))


# Table 2 of Sandler et al., MobileNetV2, 2018: channels, blocks, stride of the first block.
_INVERTED_RESIDUALS = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


def mobilenet_v2(config: Any, batch: int, image_size: int) -> int:
    """Count the published network at depth multiplier 1.

    A block expands, filters each channel, and reduces.
    """
    side = ceil(image_size / 2)
    ins, total = 32, convolution(side**2, config.num_channels, 32, 9)
    for outs, blocks, first_stride in _INVERTED_RESIDUALS:
        for block in range(blocks):
            wide = ins if outs == 16 else 6 * ins  # the first block does not expand
            total += 0 if outs == 16 else convolution(side**2, ins, wide, 1)
            side = ceil(side / (1 if block else first_stride))
            total += convolution(side**2, wide, wide, 9, groups=wide) + convolution(side**2, wide, outs, 1)
            ins = outs
    total += convolution(side**2, ins, 1280, 1)
    return batch * (total + linear(1, 1280, config.num_labels))


def convnext(config: Any, batch: int, image_size: int) -> int:
    """Count blocks: a depthwise 7x7 convolution, then two dense layers per pixel.

    Between stages there are 2x2 convolutions of stride 2.
    """
    side, ins = image_size // config.patch_size, config.hidden_sizes[0]
    total = convolution(side**2, config.num_channels, ins, config.patch_size**2)
    for outs, depth in zip(config.hidden_sizes, config.depths, strict=True):
        if outs != ins:
            side //= 2
            total += convolution(side**2, ins, outs, 4)
            ins = outs
        total += depth * (convolution(side**2, outs, outs, 49, groups=outs) + 2 * linear(side**2, outs, 4 * outs))
    return batch * (total + linear(1, ins, config.num_labels))


def unet(config: Any, batch: int, image_size: int) -> int:
    """Count two convolutions per level, going down and up.

    A transposed convolution doubles the side; the skip connection doubles the input channels.
    """
    total, ins, sides = 0, config.ins, [image_size >> level for level in range(len(config.widths))]
    for outs, side in zip(config.widths, sides, strict=True):
        total += convolution(side**2, ins, outs, 9) + convolution(side**2, outs, outs, 9)
        ins = outs
    for level in reversed(range(len(config.widths) - 1)):
        outs, side = config.widths[level], sides[level]
        total += convolution(sides[level + 1] ** 2, ins, outs, 4)  # 2x2, at every position of the lower level
        total += convolution(side**2, 2 * outs, outs, 9) + convolution(side**2, outs, outs, 9)
        ins = outs
    return batch * (total + convolution(image_size**2, ins, config.classes, 1))


def decoder(config: Any, batch: int) -> int:
    """Count transposed convolutions from a code of one pixel.

    The first leads to 4x4, the others double the side; every input pixel meets the kernel.
    """
    total, side = 0, 1
    for ins, outs in zip((config.code, *config.widths), (*config.widths, config.outs), strict=True):
        total += convolution(side**2, ins, outs, 16)  # 4x4
        side = 4 if side == 1 else 2 * side
    return batch * total


# --- Recurrent networks, and PyTorch's own encoder ------------------------------------------------------------------


def lstm_language_model(config: Any, batch: int, tokens: int) -> int:
    """Count levels of four gates each, then the vocabulary.

    The output of a level may be projected.
    """
    rows, total, ins = batch * tokens, 0, config.width
    for _ in range(config.levels):
        outs = config.projection or config.hidden
        # The recurrent input is the projected output. Without a projection its width is 0, and so is the product.
        total += gates(rows, 4, ins, outs, config.hidden) + linear(rows, config.hidden, config.projection)
        ins = outs
    return total + linear(rows, ins, config.vocabulary)


def gru_tagger(config: Any, batch: int, tokens: int) -> int:
    """Count levels of three gates in both directions, then the tags.

    The next level sees both directions.
    """
    rows, total, ins = batch * tokens, 0, config.width
    for _ in range(config.levels):
        total += 2 * gates(rows, 3, ins, config.hidden, config.hidden)
        ins = 2 * config.hidden
    return total + linear(rows, ins, config.tags)


def encoder(config: Any, batch: int, tokens: int) -> int:
    """Count `nn.TransformerEncoder`."""
    return batch * config.layers * encoder_layer(tokens, config.width, config.hidden)
