"""Random configurations of MPT, for the differential check against transformers.

transformers ignores ``alibi``, ``alibi_bias_max``, ``expansion_ratio``, ``qk_ln`` and ``logit_scale``. Our package
refuses each of them unless its value describes what transformers computes.
"""

import numpy as np

ARCHITECTURE = "MptForCausalLM"


def random_config(rng: np.random.Generator) -> dict:
    """Return the fields of a small config.json; about one in five has an option that is refused."""
    heads, head_dim = int(rng.integers(1, 14)), int(rng.integers(2, 9))
    attention = {
        "clip_qkv": None if rng.random() < 0.5 else float(rng.uniform(0.2, 2.0)),
        "softmax_scale": None if rng.random() < 0.5 else float(rng.uniform(0.1, 1.0)),
    }
    if rng.random() < 0.2:
        attention |= {str(rng.choice(["qk_ln", "alibi"])): bool(rng.random() < 0.5)}
    attention["alibi_bias_max"] = 16 if rng.random() < 0.1 else 8
    return {
        "vocab_size": int(rng.integers(50, 200)),
        "d_model": heads * head_dim,
        "n_layers": int(rng.integers(1, 4)),
        "n_heads": heads,
        "expansion_ratio": 2 if rng.random() < 0.05 else 4,
        "max_seq_len": int(rng.integers(48, 100)),
        "layer_norm_epsilon": float(rng.choice([1e-5, 1e-6, 1e-3])),
        "tie_word_embeddings": bool(rng.random() < 0.7),
        "attn_config": attention,
    }
