# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy", "safetensors", "torch", "transformers"]
# ///
"""Record the outputs of the reference implementation of Template: run with ``uv run tests/make_golden.py``.

For each variant it writes ``tests/golden/<name>/``: ``config.json`` and ``model.safetensors`` as the reference
saves them, with small random weights, and ``io.safetensors`` with the arrays that ``scratch_core.testing`` compares:
``input_ids``, ``attention_mask``, ``labels``, ``logits``, ``last_hidden_state``, ``loss``, ``grad.<key>``, and the
greedy tokens. The tests read these files and never run this script.
"""

import sys

if __name__ == "__main__":
    sys.exit("make_golden.py: build the reference model here, with a fixed seed, and save its outputs")
