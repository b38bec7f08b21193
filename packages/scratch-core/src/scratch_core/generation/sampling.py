r"""Choosing the next token from the logits: the likeliest, or a random one from a restricted distribution.

The steps and their order are those of Hugging Face transformers:

1. repetition penalty $\rho$ (Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1): logits of tokens
   already in the row are divided by $\rho$ where they are positive and multiplied by it where they are negative;
2. temperature $\tau$: $p_i \propto \exp(z_i / \tau)$;
3. top-k: only the k largest stay;
4. top-p (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751, section 3.1): the smallest set of most probable
   tokens whose mass reaches p stays;
5. min-p (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082, section 3): tokens with at least ``min_p`` times the
   largest probability stay.

Shapes: B batch, V vocabulary.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from scratch_core.errors import ConfigError


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_p", "min_p", "repetition_penalty"],
    meta_fields=["top_k"],
)
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. None leaves a step out; temperature None takes the likeliest token.

    Changing a number does not compile again; changing ``top_k``, or which steps are left out, does.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def create(
        cls,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
    ) -> "Sampling":
        """Return the settings after checking them. Raises ConfigError.

        Temperature 0 takes the likeliest token, which is in every top-k, top-p and min-p: these have no effect then.
        A top_p of 1 or more keeps all tokens, so the step is left out.
        """
        rules = {
            f"temperature={temperature} must be 0 (greedy) or more": temperature >= 0,
            f"top_k={top_k} must be at least 1": top_k is None or top_k >= 1,
            f"top_p={top_p} must be above 0": top_p is None or top_p > 0,
            f"min_p={min_p} must be in [0, 1]": min_p is None or 0 <= min_p <= 1,
            f"repetition_penalty={repetition_penalty} must be above 0": (
                repetition_penalty is None or repetition_penalty > 0
            ),
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ConfigError("; ".join(broken))
        if temperature == 0:
            return cls(repetition_penalty=repetition_penalty)
        if top_p is not None and np.float32(top_p) >= 1:
            top_p = None
        return cls(temperature, top_k, top_p, min_p, repetition_penalty)


def sample(settings: Sampling, logits_BV: jax.Array, seen_BV: jax.Array | None, key: jax.Array) -> jax.Array:
    """Return token_B, int32. ``seen_BV`` (bool) marks the tokens of each row so far, for the repetition penalty."""
    logits_BV = logits_BV.astype(jnp.float32)
    if settings.repetition_penalty is not None and seen_BV is not None:
        logits_BV = jnp.where(seen_BV, penalise(logits_BV, settings.repetition_penalty), logits_BV)
    if settings.temperature is None:
        return greedy(logits_BV)
    logits_BV = restrict(settings, logits_BV / settings.temperature)
    return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)


def greedy(logits_BV: jax.Array) -> jax.Array:
    """Return the first index of the largest logit, int32 [B]."""
    # On CPU jnp.argmax compares pair by pair; two plain reductions are many times faster.
    V = logits_BV.shape[1]
    best_BV = jnp.where(logits_BV == logits_BV.max(axis=-1, keepdims=True), jnp.arange(V, dtype=jnp.int32), V)
    return jnp.minimum(best_BV.min(axis=-1), V - 1)  # V - 1 if all are NaN


def penalise(logits_BV: jax.Array, penalty: float | jax.Array) -> jax.Array:
    """Return all logits with the repetition penalty."""
    return jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)


def restrict(settings: Sampling, logits_BV: jax.Array) -> jax.Array:
    """Return the logits with -inf for every token that top-k, top-p or min-p leaves out."""
    if settings.top_k is not None and settings.top_k < logits_BV.shape[1]:
        threshold_B = jax.lax.top_k(logits_BV, settings.top_k)[0].min(axis=-1)
        logits_BV = jnp.where(logits_BV >= threshold_B[:, None], logits_BV, -jnp.inf)
    if settings.top_p is not None:
        order_BV = jnp.argsort(-logits_BV, axis=-1)
        probability_BV = jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1)
        before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV  # mass of the more probable tokens
        rank_BV = jnp.argsort(order_BV, axis=-1)
        inside_BV = (before_BV < settings.top_p) | (settings.top_p >= 1)  # the float32 sum may reach 1 too early
        keep_BV = jnp.take_along_axis(inside_BV, rank_BV, axis=-1)
        logits_BV = jnp.where(keep_BV, logits_BV, -jnp.inf)
    if settings.min_p is not None:
        largest_B1 = logits_BV.max(axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= largest_B1 + jnp.log(settings.min_p), logits_BV, -jnp.inf)
    return logits_BV
