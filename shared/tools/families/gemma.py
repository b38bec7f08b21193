"""Random small configurations of Gemma for the differential check, some of which ours must refuse."""

ARCHITECTURE = "GemmaForCausalLM"


def random_config(rng) -> dict:
    """Return the fields of a config.json; ``rng`` is a numpy Generator."""
    heads = int(rng.choice([1, 2, 3, 4, 6]))
    fields = {
        "vocab_size": int(rng.integers(40, 200)),
        "hidden_size": heads * int(rng.integers(3, 20)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": int(rng.choice([n for n in range(1, heads + 1) if heads % n == 0])),
        "head_dim": 2 * int(rng.integers(2, 14)),
        "intermediate_size": int(rng.integers(5, 100)),
        "rms_norm_eps": float(rng.choice([1e-6, 1e-5, 1e-3])),
        "max_position_embeddings": int(rng.integers(64, 300)),
        "hidden_act": str(rng.choice(["gelu_pytorch_tanh", "gelu"])),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(rng.choice([1e4, 5e5, 777.0]))},
        "pad_token_id": [None, 0, 3][rng.integers(3)],
        "eos_token_id": [None, 1, 7, [1, 3]][rng.integers(4)],
        "bos_token_id": [None, 2, 5][rng.integers(3)],
    }
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "rms_norm_eps", "rope_parameters"):
        if rng.random() < 0.2:
            del fields[name]
    if "rope_parameters" in fields and rng.random() < 0.2:
        fields["rope_parameters"] |= {"rope_type": "linear", "factor": float(rng.choice([2.0, 3.5]))}
    if rng.random() < 0.2:
        fields |= [{"attention_bias": True}, {"hidden_act": "silu"}, {"tie_word_embeddings": False}][rng.integers(3)]
    return fields
