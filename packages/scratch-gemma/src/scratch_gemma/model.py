r"""Gemma and Gemma 2: decoders with GeGLU, wide heads, and norms that multiply by one plus a weight.

Sources: Gemma Team 2024, https://arxiv.org/abs/2403.08295 (section 2) and https://arxiv.org/abs/2408.00118
(section 2); details that the reports leave out follow Google's published code. Both models scale the embedding.
The weight of their norms starts at $w = 0$:

$$ x_0 = \sqrt{D}\, E[\mathrm{token}] \tag{1} $$
$$ \mathrm{Norm}(x) = \frac{x}{\sqrt{\overline{x^2} + \epsilon}} \odot (1 + w) \tag{2} $$

A block of Gemma is Llama's with GeGLU, the gated feed-forward layer with $f = \mathrm{gelu}$ (its tanh form):

$$ h = x + \mathrm{Attention}(\mathrm{Norm}(x)), \qquad y = h + \mathrm{GeGLU}(\mathrm{Norm}(h)) \tag{3} $$

A block of Gemma 2 also normalises what each of its layers returns:

$$ h = x + \mathrm{Norm}(\mathrm{Attention}(\mathrm{Norm}(x))), \qquad
   y = h + \mathrm{Norm}(\mathrm{GeGLU}(\mathrm{Norm}(h))) \tag{4} $$

Gemma 2 bounds its attention scores (cap 50) and its logits (cap 30), and divides its scores by the square root of a
constant $s$ of the configuration. $m$ is the mask: it allows a window in layers 0, 2, 4, ..., and all earlier positions
in the other layers:

$$ \mathrm{cap}_c(x) = c \tanh(x / c) \tag{5} $$
$$ y = \mathrm{softmax}\left(\mathrm{cap}_{50}(q k^\top / \sqrt{s}) + m\right) v \tag{6} $$
$$ \mathrm{logits} = \mathrm{cap}_{30}(\mathrm{Norm}(y_L)\, E^\top) \tag{7} $$

Shapes: B batch, T query positions, S key positions, D model width, N query heads, K key/value heads,
G query heads per key/value head, H head width, V vocabulary.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core import CausalLM
from scratch_core.layers import GatedMLP, GroupedQueryAttention, KeyValueCache, Linear, causal_mask, tied_logits
from scratch_core.layers.attention import BLOCKED

from scratch_gemma import convert
from scratch_gemma.config import Gemma2Config, GemmaConfig

tanh_gelu = partial(jax.nn.gelu, approximate=True)


class RMSNorm(nnx.Module):
    """Eq. 2 over the last axis of any array of width D; the result has the input's dtype."""

    def __init__(self, d_model: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.zeros(d_model))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x normalised; computed in float32 and rounded last (Llama's norm rounds before it multiplies)."""
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * (1 + self.scale[...].astype(jnp.float32))).astype(x.dtype)  # eq. 2


class Block(nnx.Module):
    """One layer of Gemma: attention, then feed-forward, each on a normalised input and added to the stream."""

    def __init__(self, config: GemmaConfig, *, dtype, rngs: nnx.Rngs):
        D, norm = config.d_model, partial(RMSNorm, config.d_model, epsilon=config.norm_epsilon)
        self.attention_norm, self.feed_forward_norm = norm(), norm()
        self.attention = GroupedQueryAttention(
            D, config.num_heads, config.num_kv_heads, config.head_dim, rope=config.rope, dtype=dtype, rngs=rngs
        )
        self.feed_forward = GatedMLP(D, config.d_ff, activation=tanh_gelu, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        attended_BTD, cache = self.attention(self.attention_norm(x_BTD), positions_BT, cache)
        x_BTD = x_BTD + attended_BTD
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD)), cache  # eq. 3


class Gemma(CausalLM):
    """Gemma as a causal language model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = GemmaConfig
    architectures = ("GemmaForCausalLM",)
    buffers = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    rules = staticmethod(convert.gemma_rules)

    def __init__(self, config: GemmaConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.embedding = _embedding(config, dtype, rngs)
        self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.d_model, epsilon=config.norm_epsilon)

    def embed(self, input_ids: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return the scaled embedding of the tokens, x_BTD; the layers apply rotary positions."""
        return embed_scaled(self.embedding, input_ids)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return logits_BTV, float32, for normalised x_BTD; the head uses the embedding matrix."""
        return tied_logits(self.embedding, x_BTD).astype(jnp.float32)


def _embedding(config: GemmaConfig | Gemma2Config, dtype: Any, rngs: nnx.Rngs) -> nnx.Embed:
    init = nnx.initializers.normal(0.02)
    return nnx.Embed(config.vocab_size, config.d_model, embedding_init=init, dtype=dtype, rngs=rngs)


def embed_scaled(embedding: nnx.Embed, input_ids: jax.Array) -> jax.Array:
    r"""Return x_BTD of eq. 1. $\sqrt{D}$ is rounded to the embedding's dtype first, as in the models' training."""
    x_BTD = embedding(input_ids)
    return x_BTD * jnp.asarray(x_BTD.shape[-1] ** 0.5, x_BTD.dtype)  # eq. 1


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Return x bounded by ``cap`` (eq. 5), in its dtype; None: x itself."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class Gemma2Attention(nnx.Module):
    """Causal grouped-query attention with capped scores, and an optional key/value cache.

    A query attends to the last ``window`` positions, its own included (None: to all earlier ones). Projections run in
    ``dtype``; scores, cap and softmax in float32.
    """

    def __init__(self, config: Gemma2Config, window: int | None, *, dtype, rngs: nnx.Rngs):
        D, N, K, H = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        project = partial(Linear, use_bias=False, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value = project(D, (N, H)), project(D, (K, H)), project(D, (K, H))
        self.out = project((N, H), D)
        self.scale, self.cap = config.query_pre_attn_scalar**-0.5, config.attention_cap
        self.rope, self.window, self.dtype = config.rope, window, dtype

    def empty_cache(self, batch_size: int, capacity: int) -> KeyValueCache:
        """Return an empty cache for ``capacity`` positions, or for the window if that is shorter."""
        _, K, H = self.key.kernel.shape
        return KeyValueCache.empty(batch_size, capacity, K, H, self.dtype, window=self.window)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD in ``dtype`` and the cache with these T tokens appended (None without one)."""
        query_BTNH = self.rope(self.query(x_BTD), positions_BT)
        key_BSKH = self.rope(self.key(x_BTD), positions_BT)
        value_BSKH, key_positions_BS = self.value(x_BTD), positions_BT
        if cache is not None:
            key_BSKH, value_BSKH, key_positions_BS, cache = cache.append(key_BSKH, value_BSKH, positions_BT)
        mask_BTS = causal_mask(positions_BT, key_positions_BS, self.window)

        B, T, N, H = query_BTNH.shape
        K = key_BSKH.shape[2]
        query_BTKGH = query_BTNH.reshape(B, T, K, N // K, H)  # n = k * G + g
        scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", query_BTKGH, key_BSKH, preferred_element_type=jnp.float32)
        scores_BKGTS = soft_cap(scores_BKGTS * self.scale, self.cap)
        # The mask comes after the cap, which would make BLOCKED small.
        scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, BLOCKED)
        weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(value_BSKH.dtype)
        y_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, value_BSKH)  # eq. 6
        return self.out(y_BTKGH.reshape(B, T, N, H)), cache


class Gemma2Block(nnx.Module):
    """One layer of Gemma 2: attention, then feed-forward, each normalised before and after."""

    def __init__(self, config: Gemma2Config, layer: int, *, dtype, rngs: nnx.Rngs):
        norm = partial(RMSNorm, config.d_model, epsilon=config.norm_epsilon)
        self.attention_norm, self.attention_post_norm = norm(), norm()
        self.feed_forward_norm, self.feed_forward_post_norm = norm(), norm()
        window = None if layer % 2 else config.window  # layer 0 has the window
        self.attention = Gemma2Attention(config, window, dtype=dtype, rngs=rngs)
        self.feed_forward = GatedMLP(config.d_model, config.d_ff, activation=tanh_gelu, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        attended_BTD, cache = self.attention(self.attention_norm(x_BTD), positions_BT, cache)
        x_BTD = x_BTD + self.attention_post_norm(attended_BTD)
        forwarded_BTD = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + self.feed_forward_post_norm(forwarded_BTD), cache  # eq. 4


class Gemma2(CausalLM):
    """Gemma 2 as a causal language model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = Gemma2Config
    architectures = ("Gemma2ForCausalLM",)
    buffers = Gemma.buffers
    rules = staticmethod(convert.gemma2_rules)

    def __init__(self, config: Gemma2Config, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.embedding = _embedding(config, dtype, rngs)
        self.layers = nnx.List([Gemma2Block(config, i, dtype=dtype, rngs=rngs) for i in range(config.num_layers)])
        self.norm = RMSNorm(config.d_model, epsilon=config.norm_epsilon)

    def embed(self, input_ids: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return the scaled embedding of the tokens, x_BTD; the layers apply rotary positions."""
        return embed_scaled(self.embedding, input_ids)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return capped logits_BTV, float32, for normalised x_BTD; the head uses the embedding matrix."""
        return soft_cap(tied_logits(self.embedding, x_BTD).astype(jnp.float32), self.config.logit_cap)  # eq. 7
