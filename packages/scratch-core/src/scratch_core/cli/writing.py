"""`scratch generate`: load a folder, read the prompt, write the text as it comes."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

import scratch_core
from scratch_core.data import Tokenizer, load_tokenizer
from scratch_core.errors import ConfigError, DataError
from scratch_core.weights import resolve


def generate(
    folder: str, prompt: str, max_new_tokens: int, seed: int, dtype: str | None, sampling: dict[str, Any]
) -> None:
    """Print ``prompt`` and its continuation to stdout, each piece of text as soon as it is certain."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed {seed} must be in 0 .. 2**32 - 1")
    path = resolve(folder)
    model = scratch_core.load(path, dtype=dtype)
    if not hasattr(model, "init_cache"):
        raise ConfigError(
            f"{folder} holds a {type(model).__name__}, which writes no text: generate needs a causal model"
        )
    tokenizer = load_tokenizer(path)
    sys.stdout.write(prompt)
    for text in stream_text(model, tokenizer, prompt, max_new_tokens, seed, sampling):
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def stream_text(
    model: Any, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, seed: int, sampling: dict[str, Any]
) -> Iterator[str]:
    """Yield the continuation of ``prompt``, which stands after bos where there is one; ends at any eos.

    Raises DataError for a prompt that is empty where there is no bos, or too long for the model.
    """
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = np.array([*bos, *tokenizer.encode(prompt)], np.int32)
    if not ids.size:
        raise DataError("the prompt is empty and the tokenizer has no bos: give a --prompt")
    ends = end_tokens(model.config, tokenizer)
    if sampling.get("temperature") == 0:
        sampling = {name: value for name, value in sampling.items() if name in ("temperature", "repetition_penalty")}
    pieces = scratch_core.stream(model, ids[None], max_new_tokens=max_new_tokens, key=jax.random.key(seed), **sampling)
    decoder = tokenizer.stream()
    for token in until(ends, (int(token) for piece in pieces for token in piece[0])):
        yield decoder.push(token)
    yield decoder.finish()


def end_tokens(config: Any, tokenizer: Tokenizer) -> set[int]:
    """Return the tokens that end a text: the config's eos_token_id (one or several) and the tokenizer's own."""
    eos = getattr(config, "eos_token_id", None)
    named = set(eos) if isinstance(eos, Iterable) else {eos}
    return {int(token) for token in named | {tokenizer.eos_id} if token is not None}


def until(ends: set[int], tokens: Iterable[int]) -> Iterator[int]:
    """Yield ``tokens`` up to the first that is in ``ends``, which is left out."""
    for token in tokens:
        if token in ends:
            return
        yield token
