r"""Mixture-of-Depths: a transformer in which every other block processes only the tokens that a router chooses.

Source: Raposo et al. 2024, https://arxiv.org/abs/2404.02258, section 3. A block is a function $f$ of the tokens that it
processes; its result is added to the residual stream. A routed block scores each token $i$ of a text of $S$ tokens and
processes only the $C$ tokens with the highest scores. The other tokens skip the block, at no cost:

$$ r_i = w^\top x_i \tag{1} $$
$$ x_i' = x_i + \begin{cases}
   \sigma(r_i)\, f(\tilde X)_i & \text{if } r_i \text{ is among the } C \text{ largest} \\
   0 & \text{else} \end{cases} \tag{2} $$

$\tilde X$ holds only the chosen tokens: in a routed block, a token attends only to chosen tokens, each at its own
position in the text. The router gets a gradient because its score multiplies the result. (The paper multiplies by
$r_i$; here the factor is its sigmoid, which is bounded.)

Choosing from the whole text looks ahead: whether token $i$ is among the $C$ largest depends on later tokens. This works
in training and is impossible in generation. There, a small predictor $p$ decides for each token alone (section 3.5). It
learns what the router chose; no gradient flows into its inputs:

$$ \mathcal{L} = \mathrm{cross\ entropy} + \frac{1}{|R|} \sum_{\ell \in R} \sum_i
   \mathrm{BCE}\left(p(\mathrm{stop}(x_i)),\ [i \text{ was chosen}]\right) \tag{3} $$

So the model has two modes. In training mode (`model.train()`), routed blocks choose by eq. 2, and the loss is eq. 3. In
evaluation mode (`model.eval()`), and always with a cache, they process the tokens with $p > 0$, and the loss is the
cross entropy of the model as it generates.

Shapes: B batch, T positions, C chosen tokens, D model width, V vocabulary.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scratch_core import CausalLM
from scratch_core.layers import GatedMLP, GroupedQueryAttention, Linear, RMSNorm, positions_from_mask, tied_logits
from scratch_core.losses import causal_lm_loss

from scratch_mod import convert
from scratch_mod.config import MixtureOfDepthsConfig


class Block(nnx.Module):
    """One block of the plain transformer, as in Llama: grouped-query attention, then SwiGLU."""

    def __init__(self, config: MixtureOfDepthsConfig, *, dtype, rngs: nnx.Rngs):
        D, N, K, H = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        self.attention_norm = RMSNorm(D, epsilon=config.norm_epsilon)
        self.attention = GroupedQueryAttention(D, N, K, H, rope=config.rope, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = RMSNorm(D, epsilon=config.norm_epsilon)
        self.feed_forward = GatedMLP(D, config.d_ff, activation=jax.nn.silu, dtype=dtype, rngs=rngs)

    def update(self, x_BTD, positions_BT, cache=None):
        """Return f(X)_BTD, which is added to x_BTD, and the cache with the tokens appended whose position is not -1."""
        attended_BTD, cache = self.attention(self.attention_norm(x_BTD), positions_BT, cache)
        return attended_BTD + self.feed_forward(self.feed_forward_norm(x_BTD + attended_BTD)), cache

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        update_BTD, cache = self.update(x_BTD, positions_BT, cache)
        return x_BTD + update_BTD, cache


class Predictor(nnx.Module):
    """A small network that predicts, from each token alone, whether the router would choose it; in float32."""

    def __init__(self, config: MixtureOfDepthsConfig, *, rngs: nnx.Rngs):
        self.up = Linear(config.d_model, config.predictor_size, rngs=rngs)
        self.down = Linear(config.predictor_size, 1, rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Return p_BT, above 0 for a token to process; no gradient flows into x_BTD."""
        return self.down(jax.nn.silu(self.up(jax.lax.stop_gradient(x_BTD))))[..., 0]


class RoutedBlock(Block):
    """A block that processes some tokens: in training mode those with the highest scores, else the predicted ones."""

    def __init__(self, config: MixtureOfDepthsConfig, *, dtype, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.router = Linear(config.d_model, 1, use_bias=False, rngs=rngs)  # float32: rounding should not decide
        self.predictor = Predictor(config, rngs=rngs)
        self.routed_tokens = config.routed_tokens
        self.deterministic = False

    def scores(self, x_BTD: jax.Array) -> jax.Array:
        """Return r_BT, float32."""
        return self.router(x_BTD)[..., 0]  # eq. 1

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with those of the T tokens appended that were processed (None without one)."""
        if not self.deterministic and cache is None:
            return self.choose_from_all(x_BTD, positions_BT)[0], None
        chosen_BT = (self.predictor(x_BTD) > 0) & (positions_BT >= 0)

        def process(cache):
            update_BTD, cache = self.update(x_BTD, jnp.where(chosen_BT, positions_BT, -1), cache)
            weight_BT1 = jnp.where(chosen_BT, jax.nn.sigmoid(self.scores(x_BTD)), 0)[..., None].astype(x_BTD.dtype)
            return x_BTD + weight_BT1 * update_BTD, cache

        if x_BTD.shape[1] > 1:  # of several tokens, nearly always at least one is chosen
            return process(cache)
        return jax.lax.cond(chosen_BT.any(), process, lambda cache: (x_BTD, cache), cache)

    def choose_from_all(self, x_BTD: jax.Array, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return y_BTD of eq. 2 and chosen_BT (bool). Whether a token is chosen depends on later tokens.

        The number of chosen tokens of a row depends only on its real tokens (position not -1), not on its padding.
        """
        B, T = positions_BT.shape
        counts = np.array([self.routed_tokens(length) for length in range(T + 1)])
        real_BT = positions_BT >= 0
        score_BT = jnp.where(real_BT, self.scores(x_BTD), -jnp.inf)
        score_BC, index_BC = jax.lax.top_k(score_BT, counts[T])
        rank_1C = jnp.arange(counts[T])[None]
        index_BC = jnp.where(rank_1C < jnp.asarray(counts)[real_BT.sum(axis=1)][:, None], index_BC, T)  # T: none

        take = partial(jnp.take_along_axis, axis=1, mode="clip")
        x_BCD = take(x_BTD, index_BC[..., None])
        positions_BC = jnp.where(index_BC < T, take(positions_BT, index_BC), -1)
        update_BCD, _ = self.update(x_BCD, positions_BC)
        weight_BC1 = jax.nn.sigmoid(score_BC)[..., None].astype(x_BTD.dtype)
        rows_B1 = jnp.arange(B)[:, None]
        y_BTD = x_BTD.at[rows_B1, index_BC].add(weight_BC1 * update_BCD, mode="drop")  # eq. 2
        chosen_BT = jnp.zeros((B, T), bool).at[rows_B1, index_BC].set(True, mode="drop")
        return y_BTD, chosen_BT


class MixtureOfDepths(CausalLM):
    """Mixture-of-Depths as a causal language model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = MixtureOfDepthsConfig
    architectures = ("MixtureOfDepthsForCausalLM",)
    rules = staticmethod(convert.rules)

    def __init__(self, config: MixtureOfDepthsConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(
            config.vocab_size, config.d_model, embedding_init=nnx.initializers.normal(0.02), dtype=dtype, rngs=rngs
        )
        blocks = [RoutedBlock if config.is_routed(layer) else Block for layer in range(config.num_layers)]
        self.layers = nnx.List([block(config, dtype=dtype, rngs=rngs) for block in blocks])
        self.norm = RMSNorm(config.d_model, epsilon=config.norm_epsilon)
        if not config.tie_embeddings:
            self.head = nnx.Linear(config.d_model, config.vocab_size, use_bias=False, dtype=dtype, rngs=rngs)
        self.deterministic = False

    def embed(self, input_ids: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return the embedded tokens, x_BTD; the layers apply rotary positions."""
        return self.embedding(input_ids)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return the head's logits_BTV, float32, for normalised x_BTD; a tied head uses the embedding matrix."""
        logits_BTV = tied_logits(self.embedding, x_BTD) if self.config.tie_embeddings else self.head(x_BTD)
        return logits_BTV.astype(jnp.float32)

    def loss(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of predicting each next token; in training mode with the predictors' loss (eq. 3).

        batch as for :func:`scratch_core.losses.causal_lm_loss`.
        """
        if self.deterministic:
            return super().loss(batch)
        penalties = []

        def forward(*inputs: Any) -> jax.Array:
            logits_BTV, penalty = self.route(*inputs)
            penalties.append(penalty)
            return logits_BTV

        total, weight = causal_lm_loss(forward, batch)
        return total + sum(penalties), weight

    def route(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, document_ids: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Return the logits_BTV of eq. 2 and the second term of eq. 3, a sum over the real tokens.

        Documents that share a row (see ``__call__``) do not attend to each other, but a routed block chooses its C
        tokens from all of them.
        """
        mask_BT = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        positions_BT = positions_from_mask(mask_BT, document_ids_BT=document_ids)
        x_BTD, penalty, routed = self.embed(input_ids, positions_BT), jnp.zeros(()), 0
        for layer in self.layers:
            if isinstance(layer, RoutedBlock):
                p_BT = layer.predictor(x_BTD)
                x_BTD, chosen_BT = layer.choose_from_all(x_BTD, positions_BT)
                bce_BT = jax.nn.softplus(p_BT) - chosen_BT * p_BT
                penalty, routed = penalty + jnp.where(positions_BT >= 0, bce_BT, 0).sum(), routed + 1
            else:
                x_BTD, _ = layer(x_BTD, positions_BT)
        return self.logits(self.norm(x_BTD)), penalty / max(1, routed)  # eq. 3
