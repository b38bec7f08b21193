"""Random configurations of Mixtral: every number of experts and of key/value heads, windows, tied heads.

Widths are multiples of 4, because torch's grouped products need rows of 16 bytes.
Some ask for what scratch-mixtral refuses: other activations, noise in the router, dropout.
"""

from typing import Any

import numpy as np

ARCHITECTURE = "MixtralForCausalLM"


def random_config(rng: np.random.Generator) -> dict[str, Any]:
    """Return the fields of a config.json, as transformers' MixtralConfig takes them."""
    kv_heads, group, head_dim = (int(rng.choice(sizes)) for sizes in ([1, 2, 3], [1, 2, 4], [4, 8, 12, 16]))
    heads, experts = kv_heads * group, int(rng.integers(1, 10))
    apart = rng.random() < 0.4  # head_dim is not hidden_size / num_attention_heads
    config: dict[str, Any] = {
        "vocab_size": int(rng.integers(30, 140)),
        "hidden_size": int(rng.choice([12, 20, 32, 44])) if apart else heads * head_dim,
        "intermediate_size": 4 * int(rng.integers(2, 15)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim if apart or rng.random() < 0.3 else None,
        "num_local_experts": experts,
        "num_experts_per_tok": int(rng.integers(1, min(experts, 4) + 1)),
        "max_position_embeddings": 256,
        "rms_norm_eps": float(rng.choice([1e-6, 1e-5, 1e-3])),
        "sliding_window": int(rng.integers(2, 12)) if rng.random() < 0.4 else None,
        "tie_word_embeddings": bool(rng.random() < 0.3),
        "output_router_logits": False,  # if True, transformers 5.23 fails to generate after a padded prompt
        "router_aux_loss_coef": float(rng.choice([0.001, 0.02, 0.5])),
        "rope_parameters": _rope(rng),
        "hidden_act": "silu",
    }
    refused = {"hidden_act": "gelu", "router_jitter_noise": 0.1, "attention_dropout": 0.1}
    if rng.random() < 0.15:
        name = str(rng.choice(list(refused)))
        config[name] = refused[name]
    optional = ("sliding_window", "rms_norm_eps", "tie_word_embeddings", "output_router_logits", "router_aux_loss_coef")
    optional += ("rope_parameters", "hidden_act", "max_position_embeddings")
    return {name: value for name, value in config.items() if name not in optional or rng.random() < 0.8}


def _rope(rng: np.random.Generator) -> dict[str, Any]:
    theta = float(rng.choice([1e4, 1e6]))
    if rng.random() < 0.8:
        return {"rope_type": "default", "rope_theta": theta}
    if rng.random() < 0.7:
        return {"rope_type": "linear", "factor": 2.0, "rope_theta": theta}
    return {"rope_type": "dynamic", "factor": 2.0, "rope_theta": theta}
