"""Generation: one compiled prefill reads the prompt, one compiled loop writes the tokens.

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

from scratch_core.errors import ConfigError, DataError
from scratch_core.generation.sampling import Sampling, sample

NO_EOS = -1


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "token_B", "finished_B", "tokens_BR", "seen_BV", "cache", "key"],
    meta_fields=[],
)
@dataclasses.dataclass
class Decoding:
    """The loop's state: ``step`` tokens are written to tokens_BR, the last of them is token_B."""

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

    input_ids int [B, T]; attention_mask [B, T] is 1 at real tokens (None: all), padding on either side.
    Temperature 0 is greedy; above 0 tokens are drawn with ``key`` (default: ``jax.random.key(0)``). A row
    that has written eos_token_id, or one of several, is filled with pad_token_id, and generation ends when all
    rows have. Raises DataError for a prompt that is empty, malformed, or too long for the model, and ConfigError
    for impossible settings.
    """
    settings = Sampling.create(temperature, top_k, top_p, min_p, repetition_penalty)
    run = _Run(model, input_ids, attention_mask, max_new_tokens, eos_token_id, pad_token_id, settings, key)
    run.advance(max_new_tokens)
    return np.concatenate([run.input_ids, run.written()], axis=1)


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
    """One generation under way: the prompt is read and the first token chosen when it is built."""

    def __init__(self, model, input_ids, attention_mask, max_new_tokens, eos, pad, settings, key):
        self.input_ids, mask_BT = _check(model, input_ids, attention_mask, max_new_tokens)
        T = self.input_ids.shape[1]
        P, R = bucket(T), bucket(max_new_tokens)
        prompt_BP = np.pad(self.input_ids, ((0, 0), (0, P - T)))
        mask_BP = np.pad(mask_BT, ((0, 0), (0, P - T)))
        self.graphdef, self.state = nnx.split(model)
        self.eos = _token_ids("eos_token_id", [NO_EOS] if eos is None else eos)
        (self.pad,) = _token_ids("pad_token_id", pad)
        self.settings = settings
        key = jax.random.key(0) if key is None else key
        self.decoding = prefill(self.graphdef, R, self.state, prompt_BP, mask_BP, self.eos, settings, key)

    def advance(self, limit: int) -> None:
        """Write tokens until there are ``limit``, or all rows are finished."""
        self.decoding = decode_loop(
            self.graphdef, self.state, self.decoding, np.int32(limit), self.eos, self.pad, self.settings
        )

    def written(self) -> np.ndarray:
        """Return the tokens so far, int32 [B, step]."""
        return np.asarray(self.decoding.tokens_BR)[:, : int(self.decoding.step)]


@partial(jax.jit, static_argnums=(0, 1))
def prefill(graphdef, room: int, state, prompt_BP, mask_BP, eos, settings: Sampling, key) -> Decoding:
    """Read the prompts and choose the first token; ``room`` is how many tokens may be written in all."""
    model = nnx.merge(graphdef, state)
    B = prompt_BP.shape[0]
    logits_B1V, cache = model.start(prompt_BP, mask_BP, room)
    V = logits_B1V.shape[-1]
    seen_BV = None
    if settings.repetition_penalty is not None:
        rows_B1 = jnp.arange(B)[:, None]
        seen_BV = jnp.zeros((B, V), bool).at[rows_B1, jnp.where(mask_BP == 1, prompt_BP, V)].set(True, mode="drop")
    token_B = sample(settings, logits_B1V[:, 0], seen_BV, jax.random.fold_in(key, 0))
    tokens_BR = jnp.zeros((B, room), jnp.int32).at[:, 0].set(token_B)
    return Decoding(jnp.int32(1), token_B, jnp.isin(token_B, eos), tokens_BR, seen_BV, cache, key)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode_loop(graphdef, state, decoding: Decoding, limit, eos, pad, settings: Sampling) -> Decoding:
    """Write one token after another until there are ``limit`` or every row is finished."""
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


def bucket(length: int) -> int:
    """Return the padded length: the next of 16, 32, 64, 128, then multiples of 128."""
    return next((size for size in (16, 32, 64) if length <= size), -(-length // 128) * 128)


def _token_ids(name: str, value: Any) -> np.ndarray:
    """Return one token or several as int32 [N], or raise ConfigError."""
    ids = np.atleast_1d(np.asarray(value))
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or not ids.size or abs(ids).max() >= 2**31:
        raise ConfigError(f"{name}={value!r} must be a token: an integer that fits int32")
    return ids.astype(np.int32)


def _check(model, input_ids, attention_mask, max_new_tokens) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask as int32 [B, T], or raise DataError."""
    try:
        ids = np.asarray(input_ids)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"input_ids must be an array [batch, length]: {error}") from error
    if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(
            f"input_ids must be integers [batch, length] with at least one token, found {ids.dtype} {ids.shape}"
        )
    vocab_size = model.config.vocab_size
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise DataError(f"input_ids must be in [0, vocab_size={vocab_size}), found {ids.min()} to {ids.max()}")
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
    if mask.shape != ids.shape:
        raise DataError(f"attention_mask {mask.shape} must have the shape of input_ids {ids.shape}")
    if not (mask == 1).any(axis=1).all():
        raise DataError("attention_mask must be 1 at one token or more of every row")
    if not 1 <= max_new_tokens < 2**31 // 128:
        raise DataError(f"max_new_tokens={max_new_tokens} must be at least 1 and less than {2**31 // 128}")
    longest, limit = int((mask == 1).sum(axis=1).max()), model.config.max_positions
    if limit is not None and longest + max_new_tokens > limit:
        raise DataError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} need {longest + max_new_tokens} "
            f"positions, the model has {limit}: shorten the prompt or write fewer tokens"
        )
    return ids.astype(np.int32), (mask == 1).astype(np.int32)
