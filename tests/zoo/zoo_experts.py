"""Architectures with parts that data chooses, and with states instead of attention."""

from __future__ import annotations

from zoo_names import decoder, encoder, latent, scan, t5, translator, with_experts
from zoo_sizes import Architecture, labelled_text, text, to_continue, two_texts

EXPERTS = {
    "mixtral": Architecture("MixtralForCausalLM", "MixtralConfig", with_experts, labelled_text),
    "mixtral-generate": Architecture("MixtralForCausalLM", "MixtralConfig", with_experts, to_continue, "generate"),
    "qwen2-moe": Architecture(
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig", lambda s: with_experts(s, shared_expert_intermediate_size=11), text
    ),
    "qwen3-moe": Architecture("Qwen3MoeForCausalLM", "Qwen3MoeConfig", with_experts, text),
    "olmoe": Architecture("OlmoeForCausalLM", "OlmoeConfig", with_experts, text),
    "phimoe": Architecture("PhimoeForCausalLM", "PhimoeConfig", with_experts, text),
    "jetmoe": Architecture("JetMoeForCausalLM", "JetMoeConfig", lambda s: with_experts(s, kv_channels=8), text),
    "deepseek-v2": Architecture("DeepseekV2ForCausalLM", "DeepseekV2Config", latent, text),
    "deepseek-v3": Architecture("DeepseekV3ForCausalLM", "DeepseekV3Config", latent, text),
    "gpt-oss": Architecture("GptOssForCausalLM", "GptOssConfig", lambda s: with_experts(s, sliding_window=4), text),
    "granitemoe": Architecture("GraniteMoeForCausalLM", "GraniteMoeConfig", with_experts, text),
    "dbrx": Architecture(
        "DbrxForCausalLM",
        "DbrxConfig",
        lambda s: {
            "vocab_size": 97,
            "d_model": s.width,
            "n_heads": s.heads,
            "n_layers": s.layers,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 3, "moe_top_k": 2, "hidden_size": s.width},
        },
        text,
    ),
    "ernie4-5-moe": Architecture(
        "Ernie4_5_MoeForCausalLM",
        "Ernie4_5_MoeConfig",
        lambda s: with_experts(s, moe_k=2, moe_layer_start_index=0),
        text,
    ),
    "glm4-moe": Architecture(
        "Glm4MoeForCausalLM",
        "Glm4MoeConfig",
        lambda s: with_experts(s, n_group=1, topk_group=1, first_k_dense_replace=1),
        text,
    ),
    "minimax": Architecture("MiniMaxForCausalLM", "MiniMaxConfig", lambda s: with_experts(s, block_size=4), text),
    "llama4": Architecture(
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        lambda s: with_experts(s, intermediate_size_mlp=s.hidden, attention_chunk_size=8),
        text,
    ),
    "switch-transformers": Architecture(
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        lambda s: t5(s, num_experts=3, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, expert_capacity=8),
        two_texts,
    ),
    "nllb-moe": Architecture(
        "NllbMoeForConditionalGeneration",
        "NllbMoeConfig",
        lambda s: translator(s, num_experts=4, encoder_sparse_step=1, decoder_sparse_step=1, expert_capacity=8),
        two_texts,
    ),
}

STATE_SPACES = {
    "mamba": Architecture(
        "MambaForCausalLM",
        "MambaConfig",
        lambda s: {
            "vocab_size": 97,
            "hidden_size": s.width,
            "num_hidden_layers": s.layers,
            "state_size": 5,
            "time_step_rank": 3,
        },
        text,
    ),
    "mamba-generate": Architecture(
        "MambaForCausalLM",
        "MambaConfig",
        lambda s: {
            "vocab_size": 97,
            "hidden_size": s.width,
            "num_hidden_layers": s.layers,
            "state_size": 5,
            "time_step_rank": 3,
        },
        to_continue,
        "generate",
    ),
    "mamba2": Architecture(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        lambda s: {
            "vocab_size": 97,
            "hidden_size": s.width,
            "num_hidden_layers": s.layers,
            "num_heads": 2 * s.heads,
            "head_dim": s.head_width,
            "state_size": 5,
            "n_groups": 2,
            "chunk_size": 4,
        },
        text,
    ),
    "falcon-mamba": Architecture(
        "FalconMambaForCausalLM",
        "FalconMambaConfig",
        lambda s: {
            "vocab_size": 97,
            "hidden_size": s.width,
            "num_hidden_layers": s.layers,
            "state_size": 5,
            "time_step_rank": 3,
        },
        text,
    ),
    "jamba": Architecture(
        "JambaForCausalLM",
        "JambaConfig",
        lambda s: with_experts(
            s,
            num_hidden_layers=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            mamba_d_state=5,
            mamba_dt_rank=3,
            use_mamba_kernels=False,
        ),
        text,
    ),
    "bamba": Architecture(
        "BambaForCausalLM", "BambaConfig", lambda s: scan(s, num_hidden_layers=2, attn_layer_indices=[1]), text
    ),
    "falcon-h1": Architecture(
        "FalconH1ForCausalLM", "FalconH1Config", lambda s: scan(s, mamba_d_ssm=2 * s.width), text
    ),
    "zamba2": Architecture(
        "Zamba2ForCausalLM",
        "Zamba2Config",
        lambda s: encoder(
            s,
            num_hidden_layers=2,
            layers_block_type=["mamba", "hybrid"],
            n_mamba_heads=2 * s.heads,
            mamba_d_state=5,
            chunk_size=4,
            adapter_rank=3,
            use_mamba_kernels=False,
        ),
        text,
    ),
    "granitemoehybrid": Architecture(
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        lambda s: scan(
            s,
            num_hidden_layers=2,
            layer_types=["mamba", "attention"],
            num_local_experts=3,
            num_experts_per_tok=2,
            shared_intermediate_size=s.hidden,
            intermediate_size=16,
        ),
        text,
    ),
    "recurrent-gemma": Architecture(
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        lambda s: decoder(s, num_hidden_layers=3, lru_width=s.width, attention_window_size=4),
        text,
    ),
    "rwkv": Architecture(
        "RwkvForCausalLM",
        "RwkvConfig",
        lambda s: {"vocab_size": 97, "hidden_size": s.width, "num_hidden_layers": s.layers + 1, "context_length": 32},
        text,
    ),
    "lfm2": Architecture(
        "Lfm2ForCausalLM",
        "Lfm2Config",
        lambda s: decoder(s, num_hidden_layers=2, layer_types=["conv", "full_attention"], block_multiple_of=4),
        text,
    ),
    "qwen3-next": Architecture(
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        lambda s: with_experts(
            s,
            num_hidden_layers=2,
            layer_types=["linear_attention", "full_attention"],
            linear_key_head_dim=4,
            linear_value_head_dim=6,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            shared_expert_intermediate_size=7,
        ),
        text,
    ),
    "xlstm": Architecture(
        "xLSTMForCausalLM",
        "xLSTMConfig",
        lambda s: {
            "vocab_size": 97,
            "hidden_size": 128,
            "embedding_dim": 128,
            "num_hidden_layers": s.layers,
            "num_heads": 2,
            "chunk_size": 4,
        },
        text,
    ),
}
