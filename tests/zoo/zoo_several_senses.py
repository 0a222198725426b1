"""Architectures that read and see at once, and those of series of numbers."""

from __future__ import annotations

import torch
from zoo_names import encoder, patches, patches_in_text, seen_and_to_come, sees_then_speaks, series, two_towers
from zoo_sizes import Architecture, image, image_and_text, text, token_ids

SEVERAL_SENSES = {
    "clip": Architecture("CLIPModel", "CLIPConfig", two_towers, image_and_text),
    "siglip": Architecture(
        "SiglipModel",
        "SiglipConfig",
        lambda s: two_towers(s, text_config=encoder(s, projection_size=s.width)),
        image_and_text,
    ),
    "altclip": Architecture(
        "AltCLIPModel", "AltCLIPConfig", lambda s: two_towers(s, text_config=encoder(s, project_dim=6)), image_and_text
    ),
    "chinese-clip": Architecture("ChineseCLIPModel", "ChineseCLIPConfig", two_towers, image_and_text),
    "blip": Architecture(
        "BlipForConditionalGeneration",
        "BlipConfig",
        lambda s: two_towers(s, text_config=encoder(s, encoder_hidden_size=s.width, bos_token_id=1, sep_token_id=2)),
        image_and_text,
    ),
    "clipseg": Architecture(
        "CLIPSegForImageSegmentation",
        "CLIPSegConfig",
        lambda s: two_towers(
            s,
            text_config=encoder(s, eos_token_id=2),
            vision_config=patches(s, num_hidden_layers=3),
            extract_layers=[0, 1],
            reduce_dim=4,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=7,
        ),
        image_and_text,
    ),
    "vilt": Architecture("ViltModel", "ViltConfig", patches, image_and_text),
    "flava": Architecture(
        "FlavaModel",
        "FlavaConfig",
        lambda s: {
            "hidden_size": s.width,
            "projection_dim": 6,
            "text_config": encoder(s),
            "image_config": patches(s),
            "multimodal_config": encoder(s),
        },
        image_and_text,
    ),
    "git": Architecture("GitForCausalLM", "GitConfig", lambda s: encoder(s, vision_config=patches(s)), image_and_text),
    "groupvit": Architecture(
        "GroupViTModel",
        "GroupViTConfig",
        lambda s: two_towers(
            s,
            vision_config=patches(s, depths=[1, 1], num_group_tokens=[4, 0], num_output_groups=[4, 0], patch_size=8),
            projection_intermediate_dim=5,
        ),
        image_and_text,
    ),
    "llava": Architecture(
        "LlavaForConditionalGeneration", "LlavaConfig", lambda s: sees_then_speaks(s, "llama"), patches_in_text
    ),
    "llava-generate": Architecture(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        lambda s: sees_then_speaks(s, "mistral"),
        lambda s, c: {**patches_in_text(s, c), "max_new_tokens": 3, "do_sample": False},
        "generate",
    ),
    "paligemma": Architecture(
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaConfig",
        lambda s: sees_then_speaks(
            s,
            "gemma",
            vision_config={"model_type": "siglip_vision_model", **patches(s, num_hidden_layers=2)},
            projection_dim=s.width,
            hidden_size=s.width,
        ),
        patches_in_text,
    ),
    "vision-encoder-decoder": Architecture(
        "VisionEncoderDecoderModel",
        "VisionEncoderDecoderConfig",
        lambda s: {
            "encoder": {"model_type": "vit", **patches(s)},
            "decoder": {
                "model_type": "gpt2",
                "vocab_size": 97,
                "n_embd": 8,
                "n_layer": 1,
                "n_head": 2,
                "add_cross_attention": True,
            },
        },
        lambda s, c: {**image(s, c), "decoder_input_ids": token_ids(s)},
    ),
    "lxmert": Architecture(
        "LxmertModel",
        "LxmertConfig",
        lambda s: encoder(s, l_layers=1, x_layers=1, r_layers=1, visual_feat_dim=7),
        lambda s, c: {
            **text(s, c),
            "visual_feats": torch.randn(s.batch, 5, 7),
            "visual_pos": torch.rand(s.batch, 5, 4),
        },
    ),
    "visual-bert": Architecture(
        "VisualBertModel",
        "VisualBertConfig",
        lambda s: encoder(s, visual_embedding_dim=7),
        lambda s, c: {**text(s, c), "visual_embeds": torch.randn(s.batch, 5, 7)},
    ),
    "layoutlmv3": Architecture(
        "LayoutLMv3Model",
        "LayoutLMv3Config",
        lambda s: patches(
            s,
            input_size=s.side,
            hidden_size=48,
            num_attention_heads=s.pick(2, 3),
            coordinate_size=8,
            shape_size=8,
            max_2d_position_embeddings=32,
        ),
        lambda s, c: {**image_and_text(s, c), "bbox": torch.zeros(s.batch, s.tokens, 4, dtype=torch.long)},
    ),
    "owlvit": Architecture(
        "OwlViTForObjectDetection", "OwlViTConfig", lambda s: two_towers(s, projection_dim=s.width), image_and_text
    ),
    "pix2struct-vision": Architecture(
        "Pix2StructVisionModel",
        "Pix2StructVisionConfig",
        lambda s: {
            "hidden_size": s.width,
            "patch_embed_hidden_size": 10,
            "d_ff": s.hidden,
            "d_kv": s.head_width,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "seq_len": 64,
        },
        lambda s, c: {"flattened_patches": torch.rand(s.batch, s.tokens, 12)},
    ),
    "clap-text": Architecture(
        "ClapTextModelWithProjection", "ClapTextConfig", lambda s: encoder(s, projection_dim=7), text
    ),
}

SERIES = {
    "decision-transformer": Architecture(
        "DecisionTransformerModel",
        "DecisionTransformerConfig",
        lambda s: {
            "state_dim": 5,
            "act_dim": 3,
            "hidden_size": s.width,
            "n_layer": s.layers,
            "n_head": s.heads,
            "max_ep_len": 32,
        },
        lambda s, c: {
            "states": torch.randn(s.batch, s.tokens, 5),
            "actions": torch.randn(s.batch, s.tokens, 3),
            "returns_to_go": torch.randn(s.batch, s.tokens, 1),
            "rewards": torch.randn(s.batch, s.tokens, 1),
            "timesteps": torch.arange(s.tokens).repeat(s.batch, 1),
        },
    ),
    "patchtst": Architecture(
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        lambda s: {
            "num_input_channels": 2,
            "context_length": 32,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": s.width,
            "num_attention_heads": s.heads,
            "ffn_dim": s.hidden,
            "num_hidden_layers": s.layers,
            "prediction_length": 5,
        },
        lambda s, c: {"past_values": torch.randn(s.batch, 32, 2)},
    ),
    "patchtsmixer": Architecture(
        "PatchTSMixerForPrediction",
        "PatchTSMixerConfig",
        lambda s: {
            "num_input_channels": 2,
            "context_length": 32,
            "patch_length": 8,
            "d_model": s.width,
            "num_layers": s.layers,
            "prediction_length": 5,
        },
        lambda s, c: {"past_values": torch.randn(s.batch, 32, 2)},
    ),
    "time-series-transformer": Architecture(
        "TimeSeriesTransformerForPrediction", "TimeSeriesTransformerConfig", series, seen_and_to_come
    ),
    "informer": Architecture("InformerForPrediction", "InformerConfig", series, seen_and_to_come),
    "autoformer": Architecture(
        "AutoformerForPrediction",
        "AutoformerConfig",
        lambda s: series(s, label_length=4, moving_average=5),
        seen_and_to_come,
    ),
    "timesfm": Architecture(
        "TimesFmModel",
        "TimesFmConfig",
        lambda s: {
            "patch_length": 4,
            "context_length": 16,
            "horizon_length": 4,
            "num_hidden_layers": s.layers,
            "hidden_size": s.width,
            "intermediate_size": s.hidden,
            "head_dim": s.head_width,
            "num_attention_heads": s.heads,
        },
        lambda s, c: {
            "past_values": torch.randn(s.batch, 16),
            "past_values_padding": torch.zeros(s.batch, 16, dtype=torch.long),
            "freq": torch.zeros(s.batch, 1, dtype=torch.long),
        },
    ),
}
