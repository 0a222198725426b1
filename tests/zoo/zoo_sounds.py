"""Architectures that hear, or speak."""

from __future__ import annotations

import torch
from zoo_names import decoder, encoder, listener, mel, translator
from zoo_sizes import Architecture, text, token_ids, wave

SOUND = {
    "wav2vec2": Architecture("Wav2Vec2ForCTC", "Wav2Vec2Config", listener, wave),
    "hubert": Architecture("HubertModel", "HubertConfig", listener, wave),
    "wavlm": Architecture(
        "WavLMModel", "WavLMConfig", lambda s: listener(s, num_buckets=16, max_bucket_distance=32), wave
    ),
    "data2vec-audio": Architecture(
        "Data2VecAudioModel",
        "Data2VecAudioConfig",
        lambda s: listener(s, num_conv_pos_embeddings=2, conv_pos_kernel_size=5),
        wave,
    ),
    "unispeech-sat": Architecture("UniSpeechSatModel", "UniSpeechSatConfig", listener, wave),
    "wav2vec2-conformer": Architecture(
        "Wav2Vec2ConformerModel",
        "Wav2Vec2ConformerConfig",
        lambda s: listener(s, position_embeddings_type=s.pick("relative", "rotary"), conv_depthwise_kernel_size=5),
        wave,
    ),
    "wav2vec2-bert": Architecture(
        "Wav2Vec2BertModel",
        "Wav2Vec2BertConfig",
        lambda s: encoder(
            s, feature_projection_input_dim=10, conv_depthwise_kernel_size=5, mask_time_prob=0.0, layerdrop=0.0
        ),
        lambda s, c: {"input_features": torch.randn(s.batch, s.tokens, 10)},
    ),
    "sew": Architecture("SEWModel", "SEWConfig", lambda s: listener(s, squeeze_factor=2), wave),
    "sew-d": Architecture("SEWDModel", "SEWDConfig", lambda s: listener(s, squeeze_factor=2, position_buckets=4), wave),
    "audio-spectrogram": Architecture(
        "ASTModel",
        "ASTConfig",
        lambda s: encoder(
            s, max_length=40, num_mel_bins=24, patch_size=8, frequency_stride=8, time_stride=s.pick(5, 8)
        ),
        lambda s, c: {"input_values": torch.randn(s.batch, 40, 24)},
    ),
    "whisper": Architecture(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        lambda s: translator(s, num_mel_bins=10, max_source_positions=15, max_target_positions=32),
        lambda s, c: {**mel(s, "input_features", 10, 30), "decoder_input_ids": token_ids(s)},
    ),
    "whisper-generate": Architecture(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        lambda s: translator(
            s, num_mel_bins=10, max_source_positions=15, max_target_positions=32, begin_suppress_tokens=None
        ),
        lambda s, c: {**mel(s, "input_features", 10, 30), "max_new_tokens": 3, "do_sample": False},
        "generate",
    ),
    "speech-to-text": Architecture(
        "Speech2TextForConditionalGeneration",
        "Speech2TextConfig",
        lambda s: translator(
            s,
            input_feat_per_channel=10,
            conv_channels=12,
            conv_kernel_sizes=[3, 5],
            max_source_positions=64,
            max_target_positions=32,
        ),
        lambda s, c: {"input_features": torch.randn(s.batch, 37, 10), "decoder_input_ids": token_ids(s)},
    ),
    "moonshine": Architecture(
        "MoonshineForConditionalGeneration",
        "MoonshineConfig",
        lambda s: {
            **decoder(s, num_key_value_heads=s.heads),
            "encoder_num_hidden_layers": s.layers,
            "decoder_num_hidden_layers": 1,
            "encoder_num_attention_heads": s.heads,
            "decoder_num_attention_heads": s.heads,
            "encoder_num_key_value_heads": s.heads,
            "decoder_num_key_value_heads": s.heads,
        },
        lambda s, c: {"input_values": torch.randn(s.batch, 1600), "decoder_input_ids": token_ids(s)},
    ),
    "encodec": Architecture(
        "EncodecModel",
        "EncodecConfig",
        lambda s: {
            "hidden_size": 8,
            "num_filters": 2,
            "upsampling_ratios": [4, 2],
            "codebook_size": 16,
            "num_lstm_layers": s.pick(1, 2),
        },
        lambda s, c: {"input_values": torch.randn(s.batch, 1, 320)},
    ),
    "dac": Architecture(
        "DacModel",
        "DacConfig",
        lambda s: {
            "encoder_hidden_size": 4,
            "downsampling_ratios": [2, 4],
            "decoder_hidden_size": 16,
            "n_codebooks": 2,
            "codebook_size": 16,
            "upsampling_ratios": [4, 2],
        },
        lambda s, c: {"input_values": torch.randn(s.batch, 1, 320)},
    ),
    "mimi": Architecture(
        "MimiModel",
        "MimiConfig",
        lambda s: {
            **decoder(s, num_key_value_heads=s.heads),
            "num_filters": 4,
            "upsampling_ratios": [4, 2],
            "codebook_size": 16,
            "codebook_dim": 8,
            "vector_quantization_hidden_dimension": 8,
            "num_quantizers": 3,
            "upsample_groups": s.width,
            "sampling_rate": 400,
            "sliding_window": 8,
        },
        lambda s, c: {"input_values": torch.randn(s.batch, 1, 320)},
    ),
    "vits": Architecture(
        "VitsModel",
        "VitsConfig",
        lambda s: {
            "vocab_size": 97,
            "hidden_size": s.width,
            "num_hidden_layers": 1,
            "num_attention_heads": s.heads,
            "ffn_dim": s.hidden,
            "flow_size": s.width,
            "spectrogram_bins": 9,
            "upsample_initial_channel": 8,
            "upsample_rates": [2, 2],
            "upsample_kernel_sizes": [4, 4],
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3]],
            "duration_predictor_filter_channels": 8,
            "prior_encoder_num_flows": 2,
            "prior_encoder_num_wavenet_layers": 2,
            "posterior_encoder_num_wavenet_layers": 2,
        },
        text,
    ),
    "univnet": Architecture(
        "UnivNetModel",
        "UnivNetConfig",
        lambda s: {
            "model_in_channels": 4,
            "model_hidden_channels": 4,
            "num_mel_bins": 6,
            "kernel_predictor_hidden_channels": 4,
        },
        lambda s, c: {"input_features": torch.randn(s.batch, 5, 6)},
    ),
    "speecht5": Architecture(
        "SpeechT5ForSpeechToText",
        "SpeechT5Config",
        lambda s: {
            **listener(s),
            "encoder_layers": s.layers,
            "decoder_layers": 1,
            "encoder_attention_heads": s.heads,
            "decoder_attention_heads": s.heads,
            "encoder_ffn_dim": s.hidden,
            "decoder_ffn_dim": s.hidden,
            "encoder_layerdrop": 0.0,
            "decoder_layerdrop": 0.0,
        },
        lambda s, c: {**wave(s, c), "decoder_input_ids": token_ids(s)},
    ),
    "musicgen-decoder": Architecture(
        "MusicgenForCausalLM",
        "MusicgenDecoderConfig",
        lambda s: {**encoder(s), "ffn_dim": s.hidden, "num_codebooks": 2},
        lambda s, c: {"input_ids": token_ids(s).repeat(2, 1)},
    ),
    "parakeet-encoder": Architecture(
        "ParakeetEncoder",
        "ParakeetEncoderConfig",
        lambda s: encoder(s, subsampling_conv_channels=4, num_mel_bins=16, conv_kernel_size=5, layerdrop=0.0),
        lambda s, c: {"input_features": torch.randn(s.batch, 48, 16)},
    ),
}
