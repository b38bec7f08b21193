r"""Beam search: follow the W most probable continuations of a prompt at once, and return the best ones.

A continuation $y$ of $n$ tokens has the score

$$ s(y) = \frac{1}{n^\alpha} \sum_{t=1}^{n} \log p(y_t \mid x, y_{<t}) \tag{1} $$

The sum alone favours short continuations; the length penalty $\alpha$ corrects that. Wu et al. 2016
(https://arxiv.org/abs/1609.08144, section 7, eq. 14) divide by $((5 + n) / 6)^\alpha$. Here it is $n^\alpha$, as in
Hugging Face transformers, whose ``GenerationMixin`` (version 5) is the reference for everything below. For each token:

1. Every open beam is extended by every token of the vocabulary.
2. The C = W (1 + E) candidates with the largest sums are kept. E is the number of tokens that end a text: at most
   W E candidates have ended, so at least W open ones are left.
3. Of the first W candidates, those that have ended join the finished ones, of which the W best by eq. 1 are kept.
   After the last token all candidates have ended.
4. The first W candidates that have not ended are the next open beams. Each takes over the cache of the beam that it
   extends: an index into the rows of every leaf.
5. A row is done when it has W finished beams and no open beam can reach a better score than the worst of them. The
   score that an open beam can reach is an estimate: eq. 1 for its present sum at its present length or, with
   ``early_stopping="never"`` and a positive penalty, at the largest length. With ``early_stopping=True``, W finished
   beams are enough.

As in :mod:`scratch_core.generation.generate`, one compiled prefill reads each prompt once, and one compiled loop
writes all tokens.

Shapes: B batch, P prompt padded to its bucket, R room for new tokens, W open or finished beams, C candidates,
V vocabulary, M = B W rows of the cache.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scratch_core.errors import ConfigError
from scratch_core.generation.prompts import prefix, read_prompt, read_special_tokens


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["limit", "eos", "length_penalty", "full_is_done", "reaches_limit"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Rules:
    """When a continuation ends (after ``limit`` tokens, or at one of ``eos``), how it is scored, when a row is done.

    full_is_done: W finished beams are enough. reaches_limit: open beams are judged by their sum at the largest length.
    All are arrays, so that their values may change without a new compilation (the number of ``eos`` may not).
    """

    limit: np.int32
    eos: np.ndarray
    length_penalty: np.float32
    full_is_done: np.bool_
    reaches_limit: np.bool_


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "sum_BW", "open_BWR", "score_BW", "finished_BWR", "length_BW", "done_B", "cache"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Beams:
    """The loop's state after ``step`` tokens, with the best beams first.

    Open beams: tokens open_BWR and the sum of their log-probabilities sum_BW, -inf where there is no beam.
    Finished beams: tokens finished_BWR of length length_BW and their score_BW (eq. 1), -inf where there is no beam.
    Row b W + w of the cache is open beam w of row b.
    """

    step: jax.Array
    sum_BW: jax.Array
    open_BWR: jax.Array
    score_BW: jax.Array
    finished_BWR: jax.Array
    length_BW: jax.Array
    done_B: jax.Array
    cache: Any

    @classmethod
    def empty(cls, batch_size: int, num_beams: int, room: int, pad: jax.Array, cache: Any) -> "Beams":
        """Return one open beam for each row, without a token."""
        B, W = batch_size, num_beams
        none_BW, pads_BWR = jnp.full((B, W), -jnp.inf), jnp.full((B, W, room), pad, jnp.int32)
        length_BW, done_B = jnp.zeros((B, W), jnp.int32), jnp.zeros(B, bool)
        return cls(jnp.int32(0), none_BW.at[:, 0].set(0), pads_BWR, none_BW, pads_BWR, length_BW, done_B, cache)


def beam_search(
    model: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    num_return_sequences: int = 1,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return int32 ids [B, num_return_sequences, T + new] and float32 scores [B, num_return_sequences], best first.

    ids are the prompts as given (for an encoder-decoder, its start token), then the new tokens, filled up with
    pad_token_id to the longest text. A score is the sum of the new tokens' log-probabilities (natural logarithm),
    including the ending token's, divided by their number to the power of length_penalty. A length_penalty above 0
    favours longer texts. early_stopping says when a row with num_beams finished texts is done: at once (True), when the
    open beams score worse at their present length (False), or when they score worse even at the best length that they
    may reach ("never"). input_ids, attention_mask, eos_token_id, pad_token_id and the errors are those of
    :func:`scratch_core.generate`; impossible settings of the search raise ConfigError too.
    """
    conditions = {
        f"num_beams={num_beams} must be at least 1": num_beams >= 1,
        f"num_return_sequences={num_return_sequences} must be in [1, num_beams={num_beams}]": (
            1 <= num_return_sequences <= num_beams
        ),
        f"num_return_sequences={num_return_sequences} must be at most vocab_size={model.config.vocab_size}": (
            num_return_sequences <= model.config.vocab_size
        ),
        f"max_new_tokens={max_new_tokens} to the power of length_penalty={length_penalty} must be in [1e-30, 1e30]": (
            abs(length_penalty) * math.log10(max(max_new_tokens, 1)) <= 30
        ),
        f'early_stopping={early_stopping!r} must be True, False or "never"': (
            isinstance(early_stopping, bool) or early_stopping == "never"
        ),
    }
    if broken := [condition for condition, holds in conditions.items() if not holds]:
        raise ConfigError("; ".join(broken))
    ids_BT, prompt_BP, mask_BP, room = read_prompt(model, input_ids, attention_mask, max_new_tokens)
    eos, pad = read_special_tokens(eos_token_id, pad_token_id)
    rules = Rules(
        limit=np.int32(max_new_tokens),
        eos=eos,
        length_penalty=np.float32(length_penalty),
        full_is_done=np.bool_(early_stopping is True),
        reaches_limit=np.bool_(early_stopping == "never" and length_penalty > 0),
    )
    graphdef, state = nnx.split(model)
    beams = prefill(graphdef, num_beams, room, state, prompt_BP, mask_BP, pad, rules)
    beams = decode_loop(graphdef, state, beams, rules)
    best = slice(0, num_return_sequences)
    longest = int(beams.length_BW[:, best].max())
    new_ids = np.asarray(beams.finished_BWR)[:, best, :longest]
    before = np.asarray(prefix(model, ids_BT, None)[0])
    prefixes = np.repeat(before[:, None], num_return_sequences, axis=1)
    return np.concatenate([prefixes, new_ids], axis=2), np.asarray(beams.score_BW)[:, best]


@partial(jax.jit, static_argnums=(0, 1, 2))
def prefill(graphdef, num_beams: int, room: int, state, prompt_BP, mask_BP, pad, rules: Rules) -> Beams:
    """Read the prompts and choose the first token of every beam; ``room`` is the largest number of new tokens."""
    model = nnx.merge(graphdef, state)
    B, W = prompt_BP.shape[0], num_beams
    logits_B1V, cache = model.start(prompt_BP, mask_BP, room)
    logits_BWV = jnp.repeat(logits_B1V, W, axis=1)
    cache = _rows(cache, jnp.repeat(jnp.arange(B), W))
    return _extend(Beams.empty(B, W, room, pad, cache), logits_BWV, rules)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode_loop(graphdef, state, beams: Beams, rules: Rules) -> Beams:
    """Write one token after another until there are ``limit`` tokens or every row is done."""
    model = nnx.merge(graphdef, state)

    def unfinished(b: Beams) -> jax.Array:
        return (b.step < rules.limit) & ~b.done_B.all()

    def write(b: Beams) -> Beams:
        B, W, _ = b.open_BWR.shape
        token_BW = jax.lax.dynamic_index_in_dim(b.open_BWR, b.step - 1, axis=2, keepdims=False)
        logits, cache = model.decode(token_BW.reshape(B * W, 1), b.cache)
        return _extend(dataclasses.replace(b, cache=cache), logits.reshape(B, W, -1), rules)

    return jax.lax.while_loop(unfinished, write, beams)


def _extend(b: Beams, logits_BWV: jax.Array, rules: Rules) -> Beams:
    """Return the beams with one more token, for the logits of that token after each open beam."""
    B, W, V = logits_BWV.shape
    C = W * min(1 + rules.eos.size, V)
    n = b.step + 1
    sum_BWV = b.sum_BW[..., None] + jax.nn.log_softmax(logits_BWV.astype(jnp.float32), axis=-1)
    sum_BC, index_BC = jax.lax.top_k(sum_BWV.reshape(B, W * V), C)
    beam_BC, token_BC = index_BC // V, index_BC % V
    tokens_BCR = _of_each_row(b.open_BWR, beam_BC)
    tokens_BCR = jax.lax.dynamic_update_index_in_dim(tokens_BCR, token_BC, b.step, axis=2)
    ended_BC = jnp.isin(token_BC, rules.eos) | (n == rules.limit)

    joins_BC = ended_BC & (jnp.arange(C) < W) & ~b.done_B[:, None]
    score_BC = jnp.where(joins_BC, sum_BC / n.astype(jnp.float32) ** rules.length_penalty, -jnp.inf)  # eq. 1
    score_BW, best_BW = jax.lax.top_k(jnp.concatenate([b.score_BW, score_BC], axis=1), W)
    finished_BWR = _of_each_row(jnp.concatenate([b.finished_BWR, tokens_BCR], axis=1), best_BW)
    length_BC = jnp.full((B, C), n)
    length_BW = _of_each_row(jnp.concatenate([b.length_BW, length_BC], axis=1), best_BW)

    sum_BW, next_BW = jax.lax.top_k(jnp.where(ended_BC, -jnp.inf, sum_BC), W)
    row_BW = W * jnp.arange(B)[:, None] + _of_each_row(beam_BC, next_BW)
    cache = _rows(b.cache, row_BW.reshape(-1))

    reach = jnp.where(rules.reaches_limit, rules.limit, n).astype(jnp.float32)
    possible_B, worst_B = sum_BW[:, 0] / reach**rules.length_penalty, score_BW[:, -1]
    full_B = worst_B > -jnp.inf
    done_B = b.done_B | (possible_B <= worst_B) | (full_B & rules.full_is_done)
    open_BWR = _of_each_row(tokens_BCR, next_BW)
    return Beams(n, sum_BW, open_BWR, score_BW, finished_BWR, length_BW, done_B, cache)


def _of_each_row(array: jax.Array, index_BW: jax.Array) -> jax.Array:
    """Return array[b, index_BW[b, w]] for an array [B, ...]."""
    rows_B1 = jnp.arange(index_BW.shape[0])[:, None]
    return array[rows_B1, index_BW]


def _rows(cache: Any, row_M: jax.Array) -> Any:
    """Return the cache of these rows: every leaf has the batch as its first axis."""
    return jax.tree.map(lambda leaf: leaf.at[row_M].get(mode="promise_in_bounds"), cache)
