"""Random Llamas: grouped heads, decoupled head widths, and every spelling of rotary positions."""

from families import pick, some

ARCHITECTURE = "LlamaForCausalLM"


def random_config(rng):
    """Return the fields of a small config.json."""
    heads = pick(rng, 1, 2, 3, 4, 6)
    fields = {
        "vocab_size": pick(rng, 11, 64, 97, 130),
        "hidden_size": heads * pick(rng, 8, 8, 8, 10, 12, 16, 16, 7),
        "intermediate_size": pick(rng, 1, 24, 37, 64),
        "num_hidden_layers": pick(rng, 1, 2, 3),
        "num_attention_heads": heads,
    }
    optional = {
        "num_key_value_heads": pick(rng, None, 1, heads, heads, pick(rng, 1, 2, 3)),
        "head_dim": pick(rng, None, None, 4, 8, 8, 12, 12, 9),
        "hidden_act": pick(rng, "silu", "silu", "silu", "swish", "gelu"),
        "max_position_embeddings": pick(rng, 40, 64, 512),
        "rms_norm_eps": pick(rng, 1e-6, 1e-5, 1e-3),
        "tie_word_embeddings": pick(rng, True, False),
        "attention_bias": pick(rng, True, False),
        "mlp_bias": pick(rng, True, False),
        "attention_dropout": pick(rng, 0.0, 0.1),
        "pretraining_tp": pick(rng, 1, 1, 2),
        "bos_token_id": pick(rng, None, 1, 5),
        "eos_token_id": pick(rng, None, 2, 7, [2, 3]),
        "pad_token_id": pick(rng, None, 0, 3),
    }
    return fields | some(rng, optional) | random_rope(rng)


def random_rope(rng):
    """Return the fields of rotary positions in one of their spellings; the newer may lack fields of the older."""
    theta = {"rope_theta": pick(rng, 100.0, 10_000, 500_000.0)}
    llama3 = {"rope_type": "llama3", "factor": pick(rng, 2.0, 8), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    original = some(rng, {"original_max_position_embeddings": pick(rng, 16, 32)}, 0.8)
    scaling = pick(
        rng,
        None,
        {},
        {"rope_type": "default"},
        {"type": "linear", "factor": pick(rng, 2.0, 4)},
        {"rope_type": "linear", "factor": 3.0},
        llama3 | original,
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0},
    )
    if rng.random() < 0.4:
        return some(rng, theta) | some(rng, {"rope_scaling": scaling}, 0.8)
    inside = scaling if scaling is None else scaling | some(rng, theta)
    return some(rng, theta) | {"rope_parameters": inside}
