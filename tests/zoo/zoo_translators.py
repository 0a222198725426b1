"""Architectures that read one text and write another."""

from __future__ import annotations

from zoo_names import t5, translator
from zoo_sizes import Architecture, long_text, to_continue, two_texts

ENCODER_DECODERS = {
    "t5": Architecture("T5ForConditionalGeneration", "T5Config", t5, two_texts),
    "t5-generate": Architecture(
        "T5ForConditionalGeneration", "T5Config", lambda s: t5(s, num_decoder_layers=s.layers), to_continue, "generate"
    ),
    "mt5": Architecture("MT5ForConditionalGeneration", "MT5Config", t5, two_texts),
    "umt5": Architecture("UMT5ForConditionalGeneration", "UMT5Config", t5, two_texts),
    "longt5": Architecture(
        "LongT5ForConditionalGeneration",
        "LongT5Config",
        lambda s: t5(s, encoder_attention_type="transient-global", local_radius=3, global_block_size=4),
        two_texts,
    ),
    "bart": Architecture("BartForConditionalGeneration", "BartConfig", translator, two_texts),
    "bart-generate": Architecture("BartForConditionalGeneration", "BartConfig", translator, to_continue, "generate"),
    "mbart": Architecture("MBartForConditionalGeneration", "MBartConfig", translator, two_texts),
    "pegasus": Architecture("PegasusForConditionalGeneration", "PegasusConfig", translator, two_texts),
    "pegasus-x": Architecture(
        "PegasusXForConditionalGeneration",
        "PegasusXConfig",
        lambda s: translator(s, block_size=4, num_global_tokens=3),
        two_texts,
    ),
    "led": Architecture(
        "LEDForConditionalGeneration",
        "LEDConfig",
        lambda s: translator(
            s, attention_window=4, max_encoder_position_embeddings=64, max_decoder_position_embeddings=64
        ),
        two_texts,
    ),
    "marian": Architecture(
        "MarianMTModel", "MarianConfig", lambda s: translator(s, decoder_vocab_size=s.vocabulary), two_texts
    ),
    "m2m-100": Architecture("M2M100ForConditionalGeneration", "M2M100Config", translator, two_texts),
    "blenderbot": Architecture("BlenderbotForConditionalGeneration", "BlenderbotConfig", translator, two_texts),
    "prophetnet": Architecture(
        "ProphetNetForConditionalGeneration",
        "ProphetNetConfig",
        lambda s: {
            "vocab_size": 97,
            "hidden_size": s.width,
            "num_encoder_layers": s.layers,
            "num_decoder_layers": 1,
            "num_encoder_attention_heads": s.heads,
            "num_decoder_attention_heads": s.heads,
            "encoder_ffn_dim": s.hidden,
            "decoder_ffn_dim": s.hidden,
            "max_position_embeddings": 64,
        },
        two_texts,
    ),
    "fsmt": Architecture(
        "FSMTForConditionalGeneration",
        "FSMTConfig",
        lambda s: translator(s, src_vocab_size=97, tgt_vocab_size=97, langs=["en", "de"]),
        two_texts,
    ),
    "bigbird-pegasus": Architecture(
        "BigBirdPegasusForConditionalGeneration",
        "BigBirdPegasusConfig",
        lambda s: translator(s, block_size=2, num_random_blocks=1),
        lambda s, c: {**two_texts(s, c), **long_text(s, c)},
    ),
}
