"""Architectures that see: images and videos."""

from __future__ import annotations

import torch
from zoo_names import patches, pyramid, stages, translator, windows
from zoo_sizes import Architecture, image, text, video

IMAGES = {
    "vit": Architecture("ViTForImageClassification", "ViTConfig", patches, image),
    "deit": Architecture("DeiTModel", "DeiTConfig", patches, image),
    "beit": Architecture("BeitModel", "BeitConfig", lambda s: patches(s, use_relative_position_bias=True), image),
    "vit-mae": Architecture(
        "ViTMAEForPreTraining",
        "ViTMAEConfig",
        lambda s: patches(
            s,
            decoder_num_attention_heads=2,
            decoder_hidden_size=8,
            decoder_num_hidden_layers=1,
            decoder_intermediate_size=11,
        ),
        image,
    ),
    "dinov2": Architecture(
        "Dinov2Model", "Dinov2Config", lambda s: patches(s, mlp_ratio=2, use_swiglu_ffn=s.pick(True, False)), image
    ),
    "dinov3": Architecture("DINOv3ViTModel", "DINOv3ViTConfig", lambda s: patches(s, num_register_tokens=2), image),
    "yolos": Architecture(
        "YolosForObjectDetection",
        "YolosConfig",
        lambda s: patches(s, image_size=[s.side, s.side], num_detection_tokens=5),
        image,
    ),
    "swin": Architecture("SwinModel", "SwinConfig", windows, image),
    "swinv2": Architecture("Swinv2Model", "Swinv2Config", windows, image),
    "swin2sr": Architecture(
        "Swin2SRForImageSuperResolution",
        "Swin2SRConfig",
        lambda s: windows(s, patch_size=1, image_size=16, num_heads=[2, 2], window_size=4),
        lambda s, c: {"pixel_values": torch.rand(s.batch, 3, 16, 16)},
    ),
    "donut-swin": Architecture("DonutSwinModel", "DonutSwinConfig", windows, image),
    "resnet": Architecture(
        "ResNetForImageClassification",
        "ResNetConfig",
        lambda s: stages(s, layer_type=s.pick("basic", "bottleneck")),
        image,
    ),
    "regnet": Architecture(
        "RegNetModel", "RegNetConfig", lambda s: stages(s, groups_width=4, layer_type=s.pick("x", "y")), image
    ),
    "bit": Architecture(
        "BitModel",
        "BitConfig",
        lambda s: stages(s, num_groups=2, layer_type=s.pick("preactivation", "bottleneck")),
        image,
    ),
    "convnext": Architecture("ConvNextModel", "ConvNextConfig", stages, image),
    "convnextv2": Architecture("ConvNextV2Model", "ConvNextV2Config", stages, image),
    "mobilenet-v1": Architecture(
        "MobileNetV1Model", "MobileNetV1Config", lambda s: {"depth_multiplier": 0.25, "image_size": s.side}, image
    ),
    "mobilenet-v2": Architecture(
        "MobileNetV2Model", "MobileNetV2Config", lambda s: {"depth_multiplier": 0.35, "image_size": s.side}, image
    ),
    "mobilevit": Architecture(
        "MobileViTModel",
        "MobileViTConfig",
        lambda s: {
            "hidden_sizes": [8, 12, 16],
            "neck_hidden_sizes": [4, 8, 8, 12, 12, 16, 16],
            "num_attention_heads": 2,
            "image_size": s.side,
        },
        image,
    ),
    "mobilevitv2": Architecture(
        "MobileViTV2Model",
        "MobileViTV2Config",
        lambda s: {"image_size": 64, "width_multiplier": 0.25},
        lambda s, c: {"pixel_values": torch.randn(s.batch, 3, 64, 64)},
    ),
    "efficientnet": Architecture(
        "EfficientNetModel",
        "EfficientNetConfig",
        lambda s: {"image_size": s.side, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
        image,
    ),
    "hgnet-v2": Architecture(
        "HGNetV2ForImageClassification",
        "HGNetV2Config",
        lambda s: {
            "embedding_size": 8,
            "stem_channels": [3, 4, 6],
            "stage_in_channels": [6, 8, 8, 8],
            "stage_mid_channels": [4, 4, 4, 4],
            "stage_out_channels": [8, 8, 8, 8],
            "hidden_sizes": [8, 8, 8, 8],
            "stage_numb_of_layers": [2, 2, 2, 2],
        },
        image,
    ),
    "poolformer": Architecture("PoolFormerModel", "PoolFormerConfig", lambda s: stages(s, mlp_ratio=2.0), image),
    "pvt": Architecture("PvtModel", "PvtConfig", lambda s: pyramid(s, sequence_reduction_ratios=[4, 2, 1, 1]), image),
    "pvt-v2": Architecture(
        "PvtV2Model", "PvtV2Config", lambda s: pyramid(s, linear_attention=s.pick(True, False)), image
    ),
    "segformer": Architecture(
        "SegformerForSemanticSegmentation", "SegformerConfig", lambda s: pyramid(s, decoder_hidden_size=7), image
    ),
    "glpn": Architecture("GLPNForDepthEstimation", "GLPNConfig", lambda s: pyramid(s, decoder_hidden_size=8), image),
    "levit": Architecture(
        "LevitModel",
        "LevitConfig",
        lambda s: {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [1, 2, 3],
            "depths": [1, 1, 1],
            "key_dim": [4, 4, 4],
        },
        lambda s, c: {"pixel_values": torch.randn(2, 3, 64, 64)},
    ),
    "cvt": Architecture(
        "CvtModel", "CvtConfig", lambda s: {"embed_dim": [8, 12, 16], "num_heads": [1, 3, 2], "depth": [1, 2, 3]}, image
    ),
    "focalnet": Architecture(
        "FocalNetModel",
        "FocalNetConfig",
        lambda s: {
            "image_size": s.side,
            "embed_dim": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 2],
            "focal_levels": [2, 1],
            "focal_windows": [3, 3],
        },
        image,
    ),
    "hiera": Architecture(
        "HieraModel",
        "HieraConfig",
        lambda s: {
            "image_size": [64, 64],
            "embed_dim": 8,
            "depths": [1, 1, 1],
            "num_heads": [1, 2, 4],
            "num_query_pool": 2,
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, True, False],
        },
        lambda s, c: {"pixel_values": torch.randn(1, 3, 64, 64)},
    ),
    "swiftformer": Architecture(
        "SwiftFormerModel",
        "SwiftFormerConfig",
        lambda s: {"image_size": s.side, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 12, 16]},
        image,
    ),
    "dpt": Architecture(
        "DPTForDepthEstimation",
        "DPTConfig",
        lambda s: patches(
            s,
            patch_size=16,
            image_size=64,
            num_hidden_layers=4,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[4, 6, 8, 8],
            fusion_hidden_size=6,
        ),
        lambda s, c: {"pixel_values": torch.randn(1, 3, 64, 64)},
    ),
    "sam-vision": Architecture(
        "SamVisionModel",
        "SamVisionConfig",
        lambda s: patches(s, output_channels=7, window_size=3, global_attn_indexes=[0], patch_size=8, mlp_dim=s.hidden),
        image,
    ),
    "superpoint": Architecture(
        "SuperPointForKeypointDetection",
        "SuperPointConfig",
        lambda s: {"encoder_hidden_sizes": [4, 4, 8, 8], "decoder_hidden_size": 8, "descriptor_decoder_dim": 8},
        image,
    ),
    "detr": Architecture(
        "DetrForObjectDetection",
        "DetrConfig",
        lambda s: translator(
            s,
            d_model=16,
            num_queries=5,
            use_timm_backbone=False,
            backbone=None,
            backbone_config={"model_type": "resnet", **stages(s), "out_features": ["stage4"]},
        ),
        image,
    ),
    "rt-detr-resnet": Architecture("RTDetrResNetBackbone", "RTDetrResNetConfig", lambda s: stages(s), image),
    "upernet": Architecture(
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        lambda s: {
            "hidden_size": 6,
            "auxiliary_in_channels": 24,
            "auxiliary_channels": 5,
            "backbone_config": {
                "model_type": "convnext",
                **stages(s),
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
        },
        lambda s, c: {"pixel_values": torch.randn(2, 3, 64, 64)},
    ),
    "imagegpt": Architecture(
        "ImageGPTForCausalImageModeling",
        "ImageGPTConfig",
        lambda s: {"vocab_size": 97, "n_embd": s.width, "n_layer": s.layers, "n_head": s.heads, "n_positions": 64},
        text,
    ),
    "mgp-str": Architecture(
        "MgpstrForSceneTextRecognition",
        "MgpstrConfig",
        lambda s: {
            "image_size": [32, 64],
            "patch_size": 8,
            "hidden_size": s.width,
            "num_hidden_layers": 1,
            "num_attention_heads": s.heads,
            "max_token_length": 5,
            "num_character_labels": 7,
            "num_bpe_labels": 11,
            "num_wordpiece_labels": 13,
        },
        lambda s, c: {"pixel_values": torch.randn(s.batch, 3, 32, 64)},
    ),
    "timesformer": Architecture("TimesformerModel", "TimesformerConfig", lambda s: patches(s, num_frames=3), video),
    "vivit": Architecture(
        "VivitModel", "VivitConfig", lambda s: patches(s, num_frames=4, tubelet_size=[2, 16, 16]), video
    ),
    "videomae": Architecture(
        "VideoMAEModel", "VideoMAEConfig", lambda s: patches(s, num_frames=4, tubelet_size=2), video
    ),
}
