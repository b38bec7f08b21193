"""Random configurations of GPT-Neo, for the differential check against transformers.

Scores are not divided by sqrt(d), so that with random weights the softmax can be steep and rounding errors large: with
seed 0, a logit of number 15 differs by 9.5e-5. Compared with float64, transformers is off by 1.0e-4 there, this project
by 2.5e-5.

Its forward pass counts padding on the left as positions, unless it gets ``position_ids`` that count only real tokens.
"""

import numpy as np

ARCHITECTURE = "GPTNeoForCausalLM"


def random_config(rng: np.random.Generator) -> dict:
    """Return the fields of a small config.json; about one in ten has an option that is refused."""
    heads, head_dim, layers = int(rng.integers(1, 7)), int(rng.integers(3, 17)), int(rng.integers(1, 5))
    kinds = [str(kind) for kind in rng.choice(["global", "local"], size=layers)]
    return {
        "vocab_size": int(rng.integers(50, 200)),
        "hidden_size": heads * head_dim,
        "num_layers": layers,
        "num_heads": heads,
        "attention_types": [[["global", "local"], layers // 2]] if layers % 2 == 0 else [[kinds, 1]],
        "window_size": int(rng.integers(1, 30)),
        "max_position_embeddings": int(rng.integers(48, 100)),
        "intermediate_size": None if rng.random() < 0.5 else int(rng.integers(8, 90)),
        "activation_function": "relu" if rng.random() < 0.1 else str(rng.choice(["gelu_new", "gelu_pytorch_tanh"])),
        "layer_norm_epsilon": float(rng.choice([1e-5, 1e-6, 1e-3])),
        "tie_word_embeddings": bool(rng.random() < 0.7),
        "attention_dropout": float(rng.choice([0.0, 0.1])),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
