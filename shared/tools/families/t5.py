"""Random configurations of T5 v1.0 and v1.1."""

from typing import Any

import numpy as np

ARCHITECTURE = "T5ForConditionalGeneration"


def random_config(rng: np.random.Generator) -> dict[str, Any]:
    """Return a small config.json, one in ten with an activation that is refused."""
    kinds = ["relu", "gated-gelu", "gated-silu", "gated-relu", "gelu_new", "gelu"]
    return {
        "vocab_size": int(rng.integers(50, 200)),
        "d_model": int(rng.integers(2, 9)) * 8,
        "d_kv": int(rng.integers(3, 17)),
        "num_heads": int(rng.integers(1, 6)),
        "num_layers": int(rng.integers(1, 4)),
        "num_decoder_layers": int(rng.integers(1, 4)),
        "d_ff": int(rng.integers(10, 90)),
        "feed_forward_proj": "mish" if rng.random() < 0.1 else str(rng.choice(kinds)),
        "relative_attention_num_buckets": int(rng.choice([4, 8, 16, 32])),
        "relative_attention_max_distance": int(rng.choice([20, 32, 50, 128])),
        "layer_norm_epsilon": float(rng.choice([1e-6, 1e-5])),
        "dropout_rate": 0.1,
        "tie_word_embeddings": bool(rng.random() < 0.5),
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
