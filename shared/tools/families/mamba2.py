"""Random Mamba-2s: groups, step limits, chunks that do not divide the length, biases."""

from families import pick, some

ARCHITECTURE = "Mamba2ForCausalLM"


def random_config(rng):
    """Return the fields of a small config.json."""
    expand, head_dim = pick(rng, 1, 2, 2, 3), pick(rng, 4, 8, 8)
    width = head_dim * pick(rng, 2, 3, 4)
    heads = expand * width // head_dim
    fields = {
        "vocab_size": pick(rng, 16, 64, 97),
        "hidden_size": width,
        "num_hidden_layers": pick(rng, 1, 2, 3),
        "num_heads": heads if rng.random() < 0.95 else heads + 1,
        "head_dim": head_dim,
        "expand": expand,
        "n_groups": pick(rng, 1, 1, heads, pick(rng, 2, 3)),
        "state_size": pick(rng, 4, 8, 11),
    }
    optional = {
        "conv_kernel": pick(rng, 2, 3, 4),
        "chunk_size": pick(rng, 4, 5, 16, 256),
        "layer_norm_epsilon": pick(rng, 1e-6, 1e-5, 1e-3),
        "use_bias": pick(rng, True, False),
        "use_conv_bias": pick(rng, True, False),
        "hidden_act": pick(rng, "silu", "silu", "swish", "gelu"),
        "residual_in_fp32": pick(rng, True, False),
        "time_step_limit": pick(rng, [0.0, 0.5], [0.01, 0.3], [0.0, float("inf")]),
        "time_step_rank": pick(rng, "auto", 4),
        "tie_word_embeddings": pick(rng, True, False),
        "bos_token_id": pick(rng, None, 0, 5),
        "eos_token_id": pick(rng, None, 2, 7, [2, 3]),
        "pad_token_id": pick(rng, None, 0, 1),
    }
    return fields | some(rng, optional)
