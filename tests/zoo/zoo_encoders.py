"""Architectures that read text."""

from __future__ import annotations

from zoo_names import encoder
from zoo_sizes import Architecture, long_text, padded_text, text, token_ids

ENCODERS = {
    "bert": Architecture("BertForMaskedLM", "BertConfig", encoder, padded_text),
    "albert": Architecture("AlbertModel", "AlbertConfig", lambda s: encoder(s, embedding_size=7), text),
    "roberta": Architecture("RobertaForTokenClassification", "RobertaConfig", encoder, padded_text),
    "electra": Architecture("ElectraModel", "ElectraConfig", lambda s: encoder(s, embedding_size=11), text),
    "distilbert": Architecture(
        "DistilBertModel",
        "DistilBertConfig",
        lambda s: {"vocab_size": 97, "dim": s.width, "n_layers": s.layers, "n_heads": s.heads, "hidden_dim": s.hidden},
        padded_text,
    ),
    "deberta": Architecture(
        "DebertaModel",
        "DebertaConfig",
        lambda s: encoder(s, relative_attention=True, pos_att_type=["c2p", "p2c"]),
        text,
    ),
    "deberta-v2": Architecture(
        "DebertaV2Model",
        "DebertaV2Config",
        lambda s: encoder(
            s, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=6, conv_kernel_size=3
        ),
        padded_text,
    ),
    "mpnet": Architecture("MPNetModel", "MPNetConfig", encoder, text),
    "modernbert": Architecture(
        "ModernBertModel", "ModernBertConfig", lambda s: encoder(s, local_attention=4, pad_token_id=0), padded_text
    ),
    "nystromformer": Architecture(
        "NystromformerModel",
        "NystromformerConfig",
        lambda s: encoder(s, num_landmarks=4, segment_means_seq_len=s.tokens // 4 * 4 or 4),
        lambda s, config: {"input_ids": text(s, config)["input_ids"][:, : s.tokens // 4 * 4 or 3]},
    ),
    "fnet": Architecture("FNetModel", "FNetConfig", encoder, text),
    "funnel": Architecture(
        "FunnelModel",
        "FunnelConfig",
        lambda s: {
            "vocab_size": s.vocabulary,
            "block_sizes": [1, 2],
            "num_decoder_layers": 1,
            "d_model": s.width,
            "n_head": s.heads,
            "d_head": s.head_width,
            "d_inner": s.hidden,
        },
        text,
    ),
    "convbert": Architecture("ConvBertModel", "ConvBertConfig", lambda s: encoder(s, embedding_size=s.width), text),
    "squeezebert": Architecture(
        "SqueezeBertModel",
        "SqueezeBertConfig",
        lambda s: encoder(s, intermediate_size=4 * s.width, embedding_size=s.width),
        text,
    ),
    "mobilebert": Architecture(
        "MobileBertModel",
        "MobileBertConfig",
        lambda s: encoder(s, embedding_size=6, intra_bottleneck_size=s.width, true_hidden_size=s.width),
        text,
    ),
    "ibert": Architecture("IBertModel", "IBertConfig", encoder, text),
    "longformer": Architecture("LongformerModel", "LongformerConfig", lambda s: encoder(s, attention_window=4), text),
    "big-bird": Architecture(
        "BigBirdModel",
        "BigBirdConfig",
        lambda s: encoder(s, block_size=2, num_random_blocks=1),
        long_text,
    ),
    "canine": Architecture(
        "CanineModel",
        "CanineConfig",
        lambda s: encoder(s, local_transformer_stride=8, num_hash_buckets=64, num_hash_functions=2),
        text,
    ),
    "rembert": Architecture(
        "RemBertModel", "RemBertConfig", lambda s: encoder(s, input_embedding_size=7, output_embedding_size=11), text
    ),
    "roformer": Architecture("RoFormerModel", "RoFormerConfig", lambda s: encoder(s, embedding_size=s.width), text),
    "xlm": Architecture(
        "XLMModel",
        "XLMConfig",
        lambda s: {"vocab_size": 97, "emb_dim": s.width, "n_layers": s.layers, "n_heads": s.heads},
        text,
    ),
    "xlnet": Architecture(
        "XLNetModel",
        "XLNetConfig",
        lambda s: {
            "vocab_size": 97,
            "d_model": s.width,
            "n_layer": s.layers,
            "n_head": s.heads,
            "d_inner": s.hidden,
        },
        text,
    ),
    "esm": Architecture(
        "EsmModel", "EsmConfig", lambda s: encoder(s, pad_token_id=1, position_embedding_type="rotary"), text
    ),
    "nomic-bert": Architecture("NomicBertModel", "NomicBertConfig", encoder, text),
    "reformer": Architecture(
        "ReformerModel",
        "ReformerConfig",
        lambda s: {
            "vocab_size": 97,
            "hidden_size": s.width,
            "attention_head_size": s.head_width,
            "num_attention_heads": s.heads,
            "feed_forward_size": s.hidden,
            "attn_layers": ["local", "lsh"],
            "axial_pos_embds": False,
            "local_attn_chunk_length": 4,
            "lsh_attn_chunk_length": 4,
            "num_buckets": 2,
            "max_position_embeddings": 64,
        },
        lambda s, config: {"input_ids": token_ids(s, 8)},
    ),
    "perceiver": Architecture(
        "PerceiverForMaskedLM",
        "PerceiverConfig",
        lambda s: {
            "vocab_size": 97,
            "num_latents": 5,
            "d_latents": 2 * s.width,
            "d_model": s.width,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": s.heads,
            "num_cross_attention_heads": s.heads,
            "max_position_embeddings": 16,
        },
        lambda s, config: {"inputs": text(s, config)["input_ids"]},
    ),
}
