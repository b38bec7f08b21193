"""`scratch generate`: load a folder, read the prompt, write the text as it is generated."""

import sys
from typing import Any

from scratch_core import registry
from scratch_core.config import read_json
from scratch_core.data.tokenizers import load_tokenizer
from scratch_core.decoder import CausalLM
from scratch_core.errors import ConfigError
from scratch_core.tasks.causal_lm import stream_text
from scratch_core.weights import resolve


def generate(
    folder: str,
    prompt: str,
    max_new_tokens: int,
    seed: int,
    dtype: str | None,
    sampling: dict[str, Any],
    allow_nonfinite: bool = False,
) -> None:
    """Print ``prompt`` and its continuation to stdout, each piece of text as soon as it is certain."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed {seed} must be in 0 .. 2**32 - 1")
    path = resolve(folder)
    model_class = registry.find_class(read_json(path / "config.json"))
    if not issubclass(model_class, CausalLM):
        raise ConfigError(
            f"{folder} holds a {model_class.__name__} of the task {model_class.task}, which writes no text: "
            "name the folder of a causal language model"
        )
    model = model_class.from_pretrained(path, dtype=dtype, allow_nonfinite=allow_nonfinite)
    tokenizer = load_tokenizer(path)
    sys.stdout.write(prompt)
    for text in stream_text(model, tokenizer, prompt, max_new_tokens, seed, sampling):
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
