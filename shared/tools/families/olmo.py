"""Random configurations of OLMo: clipped queries, keys and values; and what is refused."""

import numpy as np

ARCHITECTURE = "OlmoForCausalLM"


def random_config(rng: np.random.Generator) -> dict:
    """Return a config.json of random small sizes; about one in eight has an option that is refused."""
    kv_heads, groups = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    heads = kv_heads * groups
    fields = {
        "vocab_size": int(rng.integers(40, 200)),
        "hidden_size": heads * 2 * int(rng.integers(2, 9)),
        "intermediate_size": int(rng.integers(8, 80)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([None, kv_heads]),
        "attention_bias": bool(rng.integers(2)),
        "clip_qkv": rng.choice([None, 0.5, 2.0]),
        "max_position_embeddings": 128,
        "tie_word_embeddings": bool(rng.integers(2)),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(rng.choice([100.0, 1e4, 5e5]))},
        "bos_token_id": rng.choice([None, 3]),
        "eos_token_id": rng.choice([None, 2]),
        "pad_token_id": rng.choice([None, 0]),
    }
    if rng.random() < 0.3:
        fields["rope_parameters"] |= {"rope_type": "linear", "factor": float(rng.choice([2.0, 8.0]))}
    if rng.random() < 0.12:
        refused = (
            {"hidden_act": "gelu"},
            {"attention_dropout": 0.1},
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        )
        fields |= refused[rng.integers(len(refused))]
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in fields.items()}
