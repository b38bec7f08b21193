"""Generation: one compiled prefill reads the prompt, and one compiled loop writes the tokens.

The prompt is padded on the right to a bucket length, and the room for new tokens to another, so that all
prompts within a bucket share the two compiled programs. Every row keeps its own length: left- and
right-padded rows give the tokens that each row gives alone.

Shapes: B batch, T prompt, P prompt padded to its bucket, R room for new tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scratch_core.errors import ConfigError
from scratch_core.generation.prompts import prefix, read_prompt, read_special_tokens
from scratch_core.generation.sampling import Sampling, sample


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "token_B", "finished_B", "tokens_BR", "seen_BV", "cache", "key"],
    meta_fields=[],
)
@dataclasses.dataclass
class Decoding:
    """The loop's state: ``step`` tokens are written to tokens_BR, and the last of them is token_B."""

    step: jax.Array
    token_B: jax.Array
    finished_B: jax.Array
    tokens_BR: jax.Array
    seen_BV: jax.Array | None
    cache: Any
    key: jax.Array


def generate(
    model: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    key: jax.Array | None = None,
) -> np.ndarray:
    """Return int32 ids [B, T + new]: the prompts as given, then the new tokens.

    An encoder-decoder writes after its start token: its ids are [B, 1 + new], and the prompt is the source.
    input_ids int [B, T]; attention_mask [B, T] is 1 at real tokens (None: all), padding on either side.
    Temperature 0 is greedy; above 0 tokens are drawn with ``key`` (default: ``jax.random.key(0)``). A row
    that has written eos_token_id, or one of several, is filled with pad_token_id, and generation ends when all
    rows have. Raises DataError for a prompt that is empty, malformed, or too long for the model, and ConfigError
    for impossible settings.
    """
    settings = Sampling.create(temperature, top_k, top_p, min_p, repetition_penalty)
    run = _Run(model, input_ids, attention_mask, max_new_tokens, eos_token_id, pad_token_id, settings, key)
    run.advance(max_new_tokens)
    return np.concatenate([run.prefix, run.written()], axis=1)


def stream(
    model: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    key: jax.Array | None = None,
    every: int = 1,
) -> Iterator[np.ndarray]:
    """Yield int32 ids [B, n] as they are written, ``every`` tokens at a time: what :func:`generate` returns at once.

    The same two compiled programs do the work. Arguments and errors as for :func:`generate`; errors are
    raised at the first ``next``.
    """
    if every < 1:
        raise ConfigError(f"every={every} must be at least 1 token")
    settings = Sampling.create(temperature, top_k, top_p, min_p, repetition_penalty)
    run = _Run(model, input_ids, attention_mask, max_new_tokens, eos_token_id, pad_token_id, settings, key)
    yield run.written()
    shown = run.written().shape[1]
    while shown < max_new_tokens:
        run.advance(min(shown + every, max_new_tokens))
        new = run.written()[:, shown:]
        if not new.size:
            return
        yield new
        shown += new.shape[1]


class _Run:
    """One generation in progress. Building it reads the prompt and chooses the first token."""

    def __init__(self, model, input_ids, attention_mask, max_new_tokens, eos, pad, settings, key):
        ids_BT, prompt_BP, mask_BP, room = read_prompt(model, input_ids, attention_mask, max_new_tokens)
        self.prefix = np.asarray(prefix(model, ids_BT, None)[0])
        self.eos, self.pad = read_special_tokens(eos, pad)
        self.graphdef, self.state = nnx.split(model)
        self.settings = settings
        key = jax.random.key(0) if key is None else key
        self.decoding = prefill(self.graphdef, room, self.state, prompt_BP, mask_BP, self.eos, settings, key)

    def advance(self, limit: int) -> None:
        """Write tokens until there are ``limit`` of them or all rows are finished."""
        self.decoding = decode_loop(
            self.graphdef, self.state, self.decoding, np.int32(limit), self.eos, self.pad, self.settings
        )

    def written(self) -> np.ndarray:
        """Return the tokens so far, int32 [B, step]."""
        return np.asarray(self.decoding.tokens_BR)[:, : int(self.decoding.step)]


@partial(jax.jit, static_argnums=(0, 1))
def prefill(graphdef, room: int, state, prompt_BP, mask_BP, eos, settings: Sampling, key) -> Decoding:
    """Read the prompts and choose the first token; ``room`` is the largest number of new tokens."""
    model = nnx.merge(graphdef, state)
    B = prompt_BP.shape[0]
    logits_B1V, cache = model.start(prompt_BP, mask_BP, room)
    V = logits_B1V.shape[-1]
    seen_BV = None
    if settings.repetition_penalty is not None:
        rows_B1 = jnp.arange(B)[:, None]
        before, real = prefix(model, prompt_BP, mask_BP)
        seen_BV = jnp.zeros((B, V), bool).at[rows_B1, jnp.where(real == 1, before, V)].set(True, mode="drop")
    token_B = sample(settings, logits_B1V[:, 0], seen_BV, jax.random.fold_in(key, 0))
    tokens_BR = jnp.zeros((B, room), jnp.int32).at[:, 0].set(token_B)
    return Decoding(jnp.int32(1), token_B, jnp.isin(token_B, eos), tokens_BR, seen_BV, cache, key)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode_loop(graphdef, state, decoding: Decoding, limit, eos, pad, settings: Sampling) -> Decoding:
    """Write one token after another until there are ``limit`` tokens or every row is finished."""
    model = nnx.merge(graphdef, state)

    def unfinished(d: Decoding) -> jax.Array:
        return (d.step < limit) & ~d.finished_B.all()

    def write(d: Decoding) -> Decoding:
        seen_BV = d.seen_BV
        if seen_BV is not None:
            seen_BV = seen_BV.at[jnp.arange(d.token_B.size), d.token_B].set(True)
        logits_B1V, cache = model.decode(d.token_B[:, None], d.cache)
        token_B = sample(settings, logits_B1V[:, 0], seen_BV, jax.random.fold_in(d.key, d.step))
        token_B = jnp.where(d.finished_B, pad, token_B)
        tokens_BR = jax.lax.dynamic_update_index_in_dim(d.tokens_BR, token_B, d.step, axis=1)
        return Decoding(d.step + 1, token_B, d.finished_B | jnp.isin(token_B, eos), tokens_BR, seen_BV, cache, d.key)

    return jax.lax.while_loop(unfinished, write, decoding)
