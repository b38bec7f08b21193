# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "numpy"]
# ///
"""Make golden/rope.json: 400 random spellings of rotary positions, and what transformers reads. The tests never run it.

    uv run packages/scratch-core/tests/make_rope.py packages/scratch-core/tests/golden/rope.json

Each line is the fields of a config.json and either the inverse frequencies of the Llama that transformers builds from
it, or null where transformers refuses it or cannot compute.
"""

import json
import sys
from pathlib import Path

import numpy as np
import transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

COUNT, HEADS, HEAD_DIM = 400, 2, 8
rng = np.random.default_rng(20)


def pick(*values):
    return values[rng.integers(len(values))]


def parameters():
    """Return one dictionary of rope_parameters or rope_scaling, or null."""
    if rng.random() < 0.15:
        return pick(None, {})
    kind = pick("default", "default", "linear", "linear", "llama3", "llama3", "llama3", "dynamic", "yarn", None)
    found = {}
    if kind is not None:
        found |= pick({"rope_type": kind}, {"rope_type": kind}, {"type": kind}, {"rope_type": kind, "type": "linear"})
    optional = {
        "rope_theta": (pick(100.0, 10_000, 500_000.0, None), 0.5),
        "factor": (pick(0.5, 2, 4.0, 8.0), 0.9 if kind != "default" else 0.3),
        "low_freq_factor": (pick(1, 1.0, 2.0), 0.9 if kind == "llama3" else 0.1),
        "high_freq_factor": (pick(4.0, 4, 1.5), 0.9 if kind == "llama3" else 0.1),
        "original_max_position_embeddings": (pick(16, 64, None), 0.5 if kind == "llama3" else 0.1),
        "partial_rotary_factor": (pick(1.0, 0.5), 0.05),
    }
    return found | {name: value for name, (value, share) in optional.items() if rng.random() < share}


def spelling():
    """Return the fields of a config.json that concern rotary positions."""
    optional = {
        "rope_theta": (pick(100.0, 10_000, 250_000.0, 1e6, None), 0.5),
        "rope_parameters": (parameters(), 0.6),
        "rope_scaling": (parameters(), 0.6),
        "max_position_embeddings": (pick(32, 512), 0.7),
        "original_max_position_embeddings": (pick(24, 128), 0.1),
        "partial_rotary_factor": (pick(1.0, 0.5), 0.05),
    }
    return {name: value for name, (value, share) in optional.items() if rng.random() < share}


def frequencies(fields):
    """Return the inverse frequencies as transformers computes them, None if it does not."""
    shape = {"hidden_size": HEADS * HEAD_DIM, "num_attention_heads": HEADS}
    try:
        config = LlamaConfig.from_dict(json.loads(json.dumps(fields | shape)))
        found = LlamaRotaryEmbedding(config).inv_freq.double().tolist()
    except Exception:  # whatever transformers raises for a configuration that it refuses
        return None
    return [float(f"{value:.8g}") for value in found]


def main():
    transformers.logging.set_verbosity_error()
    drawn = [spelling() for _ in range(COUNT)]
    lines = [json.dumps({"fields": fields, "frequencies": frequencies(fields)}) for fields in drawn]
    Path(sys.argv[1]).write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
