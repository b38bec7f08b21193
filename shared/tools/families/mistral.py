"""Random configurations of Mistral, for the comparison with transformers: windows, null fields, what is refused."""

import numpy as np

ARCHITECTURE = "MistralForCausalLM"


def random_config(rng: np.random.Generator) -> dict:
    """Return a config.json of random small sizes; about one in eight has an option that is refused."""
    kv_heads, groups = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    heads, head_dim = kv_heads * groups, 2 * int(rng.integers(2, 9))
    fields = {
        "vocab_size": int(rng.integers(40, 200)),
        "hidden_size": heads * head_dim,
        "intermediate_size": int(rng.integers(8, 80)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": None,
        "sliding_window": rng.choice([None, 1, 2, 5, 16, 64]),
        "max_position_embeddings": 128,
        "rms_norm_eps": float(rng.choice([1e-6, 1e-5, 1e-3])),
        "tie_word_embeddings": bool(rng.integers(2)),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(rng.choice([100.0, 1e4, 1e6]))},
        "bos_token_id": rng.choice([None, 1]),
        "eos_token_id": rng.choice([None, 2]),
        "pad_token_id": rng.choice([None, 0]),
    }
    if rng.random() < 0.5:  # a head width of its own
        fields |= {"head_dim": 2 * int(rng.integers(2, 9)), "hidden_size": int(rng.integers(10, 64))}
    if rng.random() < 0.3:
        fields["rope_parameters"] |= {"rope_type": "linear", "factor": float(rng.choice([2.0, 8.0]))}
    if rng.random() < 0.2:
        del fields["sliding_window"]
    if rng.random() < 0.12:
        refused = (
            {"hidden_act": "gelu"},
            {"attention_dropout": 0.1},
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        )
        fields |= refused[rng.integers(len(refused))]
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in fields.items()}
