"""The names that families of architectures gave to their sizes."""

from __future__ import annotations

from typing import Any

import torch
from zoo_sizes import Inputs, Sizes, image, token_ids


def encoder(s: Sizes, **more: Any) -> dict[str, Any]:
    """The names that BERT gave to the sizes, and most encoders since."""
    return {
        "vocab_size": s.vocabulary,
        "hidden_size": s.width,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "intermediate_size": s.hidden,
        "max_position_embeddings": 64,
        **more,
    }


def decoder(s: Sizes, **more: Any) -> dict[str, Any]:
    """The names that Llama gave to the sizes, and most decoders since; fewer heads of keys than of queries."""
    return {**encoder(s), "num_key_value_heads": s.pick(1, 2), "head_dim": s.head_width, "pad_token_id": 0, **more}


def with_experts(s: Sizes, **more: Any) -> dict[str, Any]:
    """A decoder each of whose tokens goes to two of a few experts; everybody has other names for them.

    Grouped products take rows of whole 16 bytes, whence hidden sizes in eights.
    """
    count, hidden = s.pick(3, 4), 8 * s.pick(1, 2, 3)
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    sizes = {**dict.fromkeys(names, count), "intermediate_size": hidden, "moe_intermediate_size": hidden + 8}
    return decoder(s, **{**sizes, "num_experts_per_tok": 2, **more})


def translator(s: Sizes, **more: Any) -> dict[str, Any]:
    """The names that BART gave to the sizes."""
    return {
        "vocab_size": s.vocabulary,
        "d_model": s.width,
        "encoder_layers": s.layers,
        "decoder_layers": s.pick(1, 2),
        "encoder_attention_heads": s.heads,
        "decoder_attention_heads": s.heads,
        "encoder_ffn_dim": s.hidden,
        "decoder_ffn_dim": s.hidden + 3,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "decoder_start_token_id": 2,
        **more,
    }


def t5(s: Sizes, **more: Any) -> dict[str, Any]:
    """The names that T5 gave to the sizes."""
    return {
        "vocab_size": s.vocabulary,
        "d_model": s.width,
        "d_kv": s.head_width + 2,
        "d_ff": s.hidden,
        "num_layers": s.layers,
        "num_decoder_layers": s.pick(1, 2),
        "num_heads": s.heads,
        "decoder_start_token_id": 0,
        **more,
    }


def gpt(s: Sizes, **more: Any) -> dict[str, Any]:
    """The names that GPT-2 gave to the sizes."""
    return {
        "vocab_size": s.vocabulary,
        "n_embd": s.width,
        "n_layer": s.layers,
        "n_head": s.heads,
        "n_inner": s.hidden,
        "n_positions": 64,
        **more,
    }


def latent(s: Sizes, **more: Any) -> dict[str, Any]:
    """Attention on compressed keys and values, over experts, as DeepSeek's."""
    return with_experts(
        s,
        kv_lora_rank=6,
        q_lora_rank=10,
        qk_rope_head_dim=8,
        qk_nope_head_dim=4,
        v_head_dim=6,
        head_dim=8,
        num_key_value_heads=s.heads,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        **more,
    )


def scan(s: Sizes, **more: Any) -> dict[str, Any]:
    """Selective state spaces with heads, as Mamba 2's: twice the width, in heads."""
    return decoder(
        s,
        mamba_n_heads=2 * s.heads,
        mamba_d_head=s.head_width,
        mamba_n_groups=1,
        mamba_d_state=5,
        mamba_d_conv=3,
        mamba_chunk_size=4,
        mamba_expand=2,
        **more,
    )


def patches(s: Sizes, **more: Any) -> dict[str, Any]:
    """The names that ViT gave to the sizes."""
    return {**encoder(s), "image_size": s.side, "patch_size": s.pick(8, 16), **more}


def stages(s: Sizes, **more: Any) -> dict[str, Any]:
    """Four stages of blocks, wider from one to the next."""
    widths = [8, 16, 24, 32]
    return {
        "embedding_size": 8,
        "hidden_sizes": widths,
        "depths": [1, s.pick(1, 2), 1, s.pick(1, 2)],
        "image_size": s.side,
        **more,
    }


def pyramid(s: Sizes, **more: Any) -> dict[str, Any]:
    """Four stages with attention on fewer keys than queries."""
    return stages(s, num_attention_heads=[1, 2, 2, 4], sr_ratios=[4, 2, 1, 1], mlp_ratios=[2, 2, 2, 2], **more)


def windows(s: Sizes, **more: Any) -> dict[str, Any]:
    """Attention within windows, to which the image is padded where they do not divide it."""
    depths = [1, s.pick(1, 2)]
    sizes = {"image_size": s.side, "patch_size": 4, "embed_dim": 8, "depths": depths, "num_heads": [2, 4]}
    return {**sizes, "window_size": s.pick(3, 4), **more}


def listener(s: Sizes, **more: Any) -> dict[str, Any]:
    """The names that wav2vec 2 gave to the sizes; groups of its convolution for positions divide the width."""
    return {
        **encoder(s),
        "conv_dim": [8, 12],
        "conv_kernel": [5, s.pick(2, 3)],
        "conv_stride": [s.pick(3, 4), 2],
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": s.pick(4, 6),
        "num_conv_pos_embedding_groups": 2,
        "mask_time_prob": 0.0,
        "layerdrop": 0.0,
        **more,
    }


def mel(s: Sizes, name: str, bins: int, frames: int) -> Inputs:
    """A spectrum `[batch, bins, frames]`."""
    return {name: torch.randn(s.batch, bins, frames)}


def two_towers(s: Sizes, **more: Any) -> dict[str, Any]:
    """A configuration for texts and one for images, projected to the same width."""
    sides = {"text_config": encoder(s, eos_token_id=2), "vision_config": patches(s)}
    return {**sides, "projection_dim": 6, **more}


def sees_then_speaks(s: Sizes, speaker: str, **more: Any) -> dict[str, Any]:
    """A vision tower whose patches stand in a decoder's text, in place of token 96."""
    sides = {
        "vision_config": {"model_type": "clip_vision_model", **patches(s, num_hidden_layers=2)},
        "text_config": {"model_type": speaker, **decoder(s, vocab_size=97)},
    }
    return {**sides, "image_token_index": 96, "image_token_id": 96, **more}


def patches_in_text(s: Sizes, config: Any) -> Inputs:
    """A text with as many places for patches as an image has."""
    count = (s.side // config.vision_config.patch_size) ** 2
    places = torch.full((s.batch, count), 96)
    return {**image(s, config), "input_ids": torch.cat([token_ids(s, 3), places, token_ids(s, 2)], dim=1)}


def series(s: Sizes, **more: Any) -> dict[str, Any]:
    """Numbers by the hour, with two features of the time."""
    sizes = {"prediction_length": 6, "context_length": 12, "lags_sequence": [1, 2, 3], "num_time_features": 2}
    return {**translator(s), **sizes, **more}


def seen_and_to_come(s: Sizes, config: Any) -> Inputs:
    """Values and their times, of the past and of the future."""
    past, future = config.context_length + max(config.lags_sequence), config.prediction_length
    return {
        "past_values": torch.rand(s.batch, past),
        "past_time_features": torch.randn(s.batch, past, 2),
        "past_observed_mask": torch.ones(s.batch, past),
        "future_values": torch.rand(s.batch, future),
        "future_time_features": torch.randn(s.batch, future, 2),
    }
