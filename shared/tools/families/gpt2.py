"""Random configurations of GPT-2, for the differential check against transformers.

Its forward pass counts padding on the left as positions, unless it gets ``position_ids`` that count only real tokens.
"""

import numpy as np

ARCHITECTURE = "GPT2LMHeadModel"


def random_config(rng: np.random.Generator) -> dict:
    """Return the fields of a small config.json; about one in ten has an option that is refused."""
    heads, head_dim = int(rng.integers(1, 7)), int(rng.integers(3, 17))
    fields = {
        "vocab_size": int(rng.integers(50, 200)),
        "n_embd": heads * head_dim,
        "n_layer": int(rng.integers(1, 4)),
        "n_head": heads,
        "n_positions": int(rng.integers(48, 100)),
        "n_inner": None if rng.random() < 0.5 else int(rng.integers(8, 90)),
        "activation_function": str(rng.choice(["gelu_new", "gelu_pytorch_tanh", "gelu"])),
        "layer_norm_epsilon": float(rng.choice([1e-5, 1e-6, 1e-3])),
        "scale_attn_weights": bool(rng.random() < 0.7),
        "scale_attn_by_inverse_layer_idx": bool(rng.random() < 0.4),
        "reorder_and_upcast_attn": bool(rng.random() < 0.3),
        "tie_word_embeddings": bool(rng.random() < 0.7),
        "attn_pdrop": float(rng.choice([0.0, 0.1])),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if rng.random() < 0.1:
        fields |= [{"activation_function": "silu"}, {"add_cross_attention": True}][int(rng.integers(2))]
    return fields
