r"""A mixture of experts: E feed-forward layers, of which each token passes through a few.

A router gives each token a probability for each expert, $p(x) = \mathrm{softmax}(x W_r)$. The layer's output is a sum
of experts, weighted by gates, most of which are zero:

$$ y = \sum_{e=1}^{E} g_e(x)\, \mathrm{SwiGLU}_e(x) \tag{1} $$

The three ways to choose experts differ only in the gates.

* **Top-k** (Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, eqs. 3 and 5; Jiang et al. 2024,
  https://arxiv.org/abs/2401.04088, section 2.1): the k largest logits of a token, then the softmax of these.

  $$ g(x) = \mathrm{softmax}(\mathrm{TopK}(x W_r)) \tag{2} $$

* **Switch** (Fedus et al. 2021, https://arxiv.org/abs/2101.03961, eqs. 1 to 3): only the best expert, with its
  probability as the gate. An expert takes the first C tokens that choose it; the others skip the layer.

  $$ g_e(x) = p_e(x)\; [e = \arg\max_i p_i(x)], \qquad C = \frac{T}{E} \times \text{capacity factor} \tag{3} $$

* **Expert choice** (Zhou et al. 2022, https://arxiv.org/abs/2202.09368, eqs. 1 and 2): each expert takes the C tokens
  that give it the largest probability, so that a token may have many experts or none. All experts have the same load.
  A choice depends on later tokens too, so a causal model cannot generate with it.

  $$ G, I = \mathrm{TopK}(S^\top, C), \quad S = p(X), \qquad C = \frac{T}{E} \times \text{capacity factor} \tag{4} $$

Where tokens choose, a loss keeps the router from sending all tokens to one expert (Switch, eqs. 4 to 6). With $f_e$ the
fraction of tokens sent to expert e and $P_e$ its mean probability:

$$ L = E \sum_{e=1}^{E} f_e P_e \tag{5} $$

It is 1 where all experts have the same load. Expert choice needs no such loss.

Shapes: T tokens (of the whole batch), D model width, F feed-forward width, E experts, K experts of a token,
C capacity of an expert. Expert numbers are int32; E means that the choice was dropped.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from scratch_core.errors import ConfigError
from scratch_core.layers.expert_dispatch import dispatch, dispatch_on_mesh

EXPERT_INIT = nnx.initializers.lecun_normal(batch_axis=0)


class TokenChoice(NamedTuple):
    """The experts of each token, expert_TK int32 (E: dropped), and their gates, gate_TK float32."""

    expert_TK: jax.Array
    gate_TK: jax.Array

    def weights(self, num_experts: int) -> jax.Array:
        """Return the gates of eq. 1, weight_TE float32."""
        one_hot_TKE = jax.nn.one_hot(self.expert_TK, num_experts)
        return jnp.einsum("TK,TKE->TE", self.gate_TK, one_hot_TKE)


class ExpertChoice(NamedTuple):
    """The tokens of each expert, token_EC int32, and their gates, gate_EC float32."""

    token_EC: jax.Array
    gate_EC: jax.Array

    def weights(self, num_tokens: int) -> jax.Array:
        """Return the gates of eq. 1, weight_TE float32."""
        one_hot_ECT = jax.nn.one_hot(self.token_EC, num_tokens)
        return jnp.einsum("EC,ECT->TE", self.gate_EC, one_hot_ECT)


def _best_experts(probability_TE: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Return the ``k`` largest probabilities of each token, best_TK, and their experts, expert_TK int32.

    `jax.lax.top_k` gives the same values, but on a mesh XLA gathers its operand on every device, and its gradient is a
    scatter.
    """
    E = probability_TE.shape[-1]
    left_TE, experts = probability_TE, []
    for _ in range(k):
        experts.append(left_TE.argmax(axis=-1).astype(jnp.int32))
        left_TE = jnp.where(experts[-1][:, None] == jnp.arange(E), -1.0, left_TE)
    expert_TK = jnp.stack(experts, axis=1)
    best_TK = jnp.where(expert_TK[:, :, None] == jnp.arange(E), probability_TE[:, None], 0.0).sum(axis=-1)
    return best_TK, expert_TK


def top_k_routing(logits_TE: jax.Array, k: int) -> TokenChoice:
    """Route each token to its ``k`` best experts, with gates that sum to 1 (eq. 2); logits_TE of any float type."""
    probability_TE = jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1)
    best_TK, expert_TK = _best_experts(probability_TE, k)
    return TokenChoice(expert_TK, best_TK / best_TK.sum(axis=-1, keepdims=True))  # eq. 2: the common divisor cancels


def switch_routing(logits_TE: jax.Array, capacity: int) -> TokenChoice:
    """Route each token to its best expert, which takes its first ``capacity`` tokens (eq. 3; K is 1)."""
    probability_TE = jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1)
    gate_T1, expert_T1 = _best_experts(probability_TE, 1)
    E = logits_TE.shape[-1]
    chosen_TE = expert_T1 == jnp.arange(E)
    earlier_TE = jnp.cumsum(chosen_TE, axis=0) - chosen_TE
    fits_T1 = (chosen_TE & (earlier_TE < capacity)).any(axis=-1, keepdims=True)
    return TokenChoice(jnp.where(fits_T1, expert_T1, E), jnp.where(fits_T1, gate_T1, 0.0))


def expert_choice_routing(logits_TE: jax.Array, capacity: int) -> ExpertChoice:
    """Let each expert take its ``capacity`` best tokens (eq. 4), which must not exceed T."""
    probability_TE = jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1)
    gate_EC, token_EC = jax.lax.top_k(probability_TE.T, capacity)
    return ExpertChoice(token_EC, gate_EC)


def expert_capacity(num_tokens: int, num_experts: int, capacity_factor: float) -> int:
    """Return C of eqs. 3 and 4, rounded up, at most all tokens. Raises ConfigError unless the factor is positive."""
    if capacity_factor <= 0:
        raise ConfigError(f"capacity_factor={capacity_factor} must be greater than 0")
    return min(num_tokens, math.ceil(num_tokens * capacity_factor / num_experts))


def load_balancing_loss(logits_TE: jax.Array, k: int = 1, mask_T: jax.Array | None = None) -> jax.Array:
    """Return the loss of eq. 5, a float32 scalar, where each token goes to its ``k`` best experts.

    mask_T is 1 at the tokens that count (None: all). f is the fraction of tokens whose k best experts include e: these
    fractions sum to k, and so the loss is k where all experts have the same load. With k = 1 it is Switch's.
    """
    probability_TE = jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1)
    E = logits_TE.shape[-1]
    sent_TE = jax.nn.one_hot(_best_experts(probability_TE, k)[1], E).sum(axis=1)
    weight_T1 = (jnp.ones(len(logits_TE)) if mask_T is None else mask_T.astype(jnp.float32))[:, None]
    tokens = jnp.maximum(weight_T1.sum(), 1)
    fraction_E = (weight_T1 * sent_TE).sum(axis=0) / tokens
    mean_probability_E = (weight_T1 * probability_TE).sum(axis=0) / tokens
    return E * (fraction_E * mean_probability_E).sum()  # eq. 5


class StackedKernel(nnx.Module):
    """The kernels of E linear layers without bias as one array, ``kernel`` [E, in, out]."""

    def __init__(self, num_experts: int, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(EXPERT_INIT(rngs.params(), (num_experts, in_features, out_features), jnp.float32))


class Experts(nnx.Module):
    """E gated feed-forward layers D -> F -> D, in ``dtype``, called with the routing of their tokens.

    :func:`scratch_core.parallel.use_mesh` sets ``mesh``; then each device of the axis ``expert`` computes its own
    experts.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        num_experts: int,
        *,
        activation: Callable[[jax.Array], jax.Array],
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.gate = StackedKernel(num_experts, d_model, d_ff, rngs=rngs)
        self.up = StackedKernel(num_experts, d_model, d_ff, rngs=rngs)
        self.down = StackedKernel(num_experts, d_ff, d_model, rngs=rngs)
        self.activation, self.dtype, self.num_experts = activation, dtype, num_experts
        self.mesh: Mesh | None = None

    def kernels(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return gate_EDF, up_EDF and down_EFD in ``dtype``."""
        gate, up, down = (part.kernel[...].astype(self.dtype) for part in (self.gate, self.up, self.down))
        return gate, up, down

    def dense(self, x_TD: jax.Array, weight_TE: jax.Array) -> jax.Array:
        """Return y_TD of eq. 1 as it is written, with every expert for every token. This is the form to read."""
        gate_EDF, up_EDF, down_EFD = self.kernels()
        x_TD = x_TD.astype(self.dtype)
        gate_TEF, up_TEF = jnp.einsum("TD,EDF->TEF", x_TD, gate_EDF), jnp.einsum("TD,EDF->TEF", x_TD, up_EDF)
        each_TED = jnp.einsum("TEF,EFD->TED", self.activation(gate_TEF) * up_TEF, down_EFD)
        return jnp.einsum("TE,TED->TD", weight_TE, each_TED).astype(self.dtype)  # eq. 1

    def __call__(self, x_BTD: jax.Array, routing: TokenChoice) -> jax.Array:
        """Return y_BTD of eq. 1, computing only the chosen experts.

        The tokens of ``routing`` are those of x_BTD, row after row.
        """
        rows = (*x_BTD.shape[:2], -1)
        expert_BTK, gate_BTK = routing.expert_TK.reshape(rows), routing.gate_TK.reshape(rows)
        arrays = (x_BTD.astype(self.dtype), expert_BTK, gate_BTK, *self.kernels())
        if self.mesh is None:
            return dispatch(*arrays, self.activation)
        return dispatch_on_mesh(*arrays, self.activation, self.mesh)

    def chosen(self, x_TD: jax.Array, routing: ExpertChoice) -> jax.Array:
        """Return y_TD of eq. 1 for expert choice. Each expert takes C tokens, so all products have the same shape."""
        gate_EDF, up_EDF, down_EFD = self.kernels()
        x_ECD = x_TD.astype(self.dtype)[routing.token_EC]
        gate_ECF, up_ECF = jnp.einsum("ECD,EDF->ECF", x_ECD, gate_EDF), jnp.einsum("ECD,EDF->ECF", x_ECD, up_EDF)
        each_ECD = jnp.einsum("ECF,EFD->ECD", self.activation(gate_ECF) * up_ECF, down_EFD)
        y_ECD = routing.gate_EC[:, :, None] * each_ECD
        return jnp.zeros(x_TD.shape).at[routing.token_EC].add(y_ECD).astype(self.dtype)
