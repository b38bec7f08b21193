"""Random configurations of BERT."""

from typing import Any

import numpy as np

ARCHITECTURE = "BertForMaskedLM"


def random_config(rng: np.random.Generator) -> dict[str, Any]:
    """Return a small config.json, one in eight with an option that is refused."""
    num_heads = int(rng.integers(1, 6))
    fields = {
        "vocab_size": int(rng.integers(50, 200)),
        "hidden_size": num_heads * int(rng.integers(3, 17)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": num_heads,
        "intermediate_size": int(rng.integers(10, 90)),
        "hidden_act": str(rng.choice(["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"])),
        "max_position_embeddings": int(rng.integers(40, 100)),
        "type_vocab_size": int(rng.integers(1, 4)),
        "layer_norm_eps": float(rng.choice([1e-12, 1e-7, 1e-5, 1e-3])),
        "classifier_dropout": None if rng.random() < 0.5 else 0.2,
        "pad_token_id": None if rng.random() < 0.2 else 0,
    }
    if rng.random() < 0.125:
        fields |= [{"hidden_act": "mish"}, {"is_decoder": True}, {"tie_word_embeddings": False}][rng.integers(3)]
    return fields
