"""Architectures that go on with a text."""

from __future__ import annotations

from zoo_names import decoder, encoder, gpt
from zoo_sizes import Architecture, labelled_text, padded_text, text, to_continue, with_cache

DECODERS = {
    "gpt2": Architecture("GPT2LMHeadModel", "GPT2Config", gpt, labelled_text),
    "gpt2-generate": Architecture("GPT2LMHeadModel", "GPT2Config", gpt, to_continue, "generate"),
    "openai": Architecture("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", gpt, text),
    "ctrl": Architecture("CTRLLMHeadModel", "CTRLConfig", lambda s: gpt(s, dff=s.hidden), text),
    "gpt-neo": Architecture(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        lambda s: {
            "vocab_size": 97,
            "hidden_size": s.width,
            "num_layers": 2,
            "num_heads": s.heads,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 64,
        },
        text,
    ),
    "gpt-neox": Architecture("GPTNeoXForCausalLM", "GPTNeoXConfig", encoder, padded_text),
    "gptj": Architecture("GPTJForCausalLM", "GPTJConfig", lambda s: gpt(s, rotary_dim=4), text),
    "codegen": Architecture(
        "CodeGenForCausalLM", "CodeGenConfig", lambda s: gpt(s, n_head=4, n_embd=4 * s.head_width, rotary_dim=4), text
    ),
    "gpt-bigcode": Architecture("GPTBigCodeForCausalLM", "GPTBigCodeConfig", gpt, text),
    "opt": Architecture(
        "OPTForCausalLM",
        "OPTConfig",
        lambda s: encoder(s, ffn_dim=s.hidden, word_embed_proj_dim=s.width + 1, pad_token_id=1),
        padded_text,
    ),
    "bloom": Architecture(
        "BloomForCausalLM",
        "BloomConfig",
        lambda s: {"vocab_size": 97, "hidden_size": s.width, "n_layer": s.layers, "n_head": s.heads},
        padded_text,
    ),
    "llama": Architecture("LlamaForCausalLM", "LlamaConfig", decoder, labelled_text),
    "llama-cache": Architecture("LlamaForCausalLM", "LlamaConfig", decoder, with_cache),
    "llama-generate": Architecture("LlamaForCausalLM", "LlamaConfig", decoder, to_continue, "generate"),
    "mistral": Architecture("MistralForCausalLM", "MistralConfig", lambda s: decoder(s, sliding_window=4), padded_text),
    "gemma": Architecture("GemmaForCausalLM", "GemmaConfig", decoder, text),
    "gemma2": Architecture("Gemma2ForCausalLM", "Gemma2Config", lambda s: decoder(s, sliding_window=4), text),
    "gemma3": Architecture(
        "Gemma3ForCausalLM", "Gemma3TextConfig", lambda s: decoder(s, sliding_window=4), to_continue, "generate"
    ),
    "qwen2": Architecture("Qwen2ForCausalLM", "Qwen2Config", decoder, with_cache),
    "qwen3": Architecture("Qwen3ForCausalLM", "Qwen3Config", decoder, text),
    "phi": Architecture("PhiForCausalLM", "PhiConfig", lambda s: decoder(s, partial_rotary_factor=0.5), text),
    "phi3": Architecture("Phi3ForCausalLM", "Phi3Config", decoder, text),
    "falcon": Architecture("FalconForCausalLM", "FalconConfig", encoder, text),
    "mpt": Architecture(
        "MptForCausalLM",
        "MptConfig",
        lambda s: {
            "vocab_size": 97,
            "d_model": s.width,
            "n_layers": s.layers,
            "n_heads": s.pick(2, 4) and s.heads,
            "expansion_ratio": 2,
            "max_seq_len": 64,
        },
        text,
    ),
    "stablelm": Architecture(
        "StableLmForCausalLM", "StableLmConfig", lambda s: decoder(s, partial_rotary_factor=0.5), text
    ),
    "starcoder2": Architecture("Starcoder2ForCausalLM", "Starcoder2Config", decoder, text),
    "olmo": Architecture("OlmoForCausalLM", "OlmoConfig", decoder, text),
    "olmo2": Architecture("Olmo2ForCausalLM", "Olmo2Config", decoder, text),
    "cohere": Architecture("CohereForCausalLM", "CohereConfig", decoder, text),
    "granite": Architecture("GraniteForCausalLM", "GraniteConfig", decoder, text),
    "biogpt": Architecture("BioGptForCausalLM", "BioGptConfig", encoder, text),
    "xglm": Architecture(
        "XGLMForCausalLM",
        "XGLMConfig",
        lambda s: {
            "vocab_size": 97,
            "d_model": s.width,
            "num_layers": s.layers,
            "attention_heads": s.heads,
            "ffn_dim": s.hidden,
        },
        text,
    ),
    "persimmon": Architecture("PersimmonForCausalLM", "PersimmonConfig", decoder, text),
    "nemotron": Architecture("NemotronForCausalLM", "NemotronConfig", decoder, text),
    "glm": Architecture("GlmForCausalLM", "GlmConfig", decoder, text),
    "diffllama": Architecture(
        "DiffLlamaForCausalLM", "DiffLlamaConfig", lambda s: decoder(s, num_key_value_heads=2), text
    ),
    "doge": Architecture("DogeForCausalLM", "DogeConfig", lambda s: decoder(s, keep_window_size=8), text),
    "smollm3": Architecture("SmolLM3ForCausalLM", "SmolLM3Config", decoder, text),
    "helium": Architecture("HeliumForCausalLM", "HeliumConfig", decoder, text),
    "exaone4": Architecture("Exaone4ForCausalLM", "Exaone4Config", lambda s: decoder(s, sliding_window=4), text),
}
