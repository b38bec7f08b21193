r"""MPT: a decoder-only transformer without biases, whose attention scores fall with the distance (ALiBi).

Source: MosaicML 2023, https://www.databricks.com/blog/mpt-7b, and its code, https://github.com/mosaicml/llm-foundry.
ALiBi: Press et al. 2022, https://arxiv.org/abs/2108.12409, section 3. Head $n$ subtracts its slope $m_n$ times the
distance from each score, so that near keys weigh more. No vectors of positions are learned or added:

$$ y_t = \sum_{s \le t} \mathrm{softmax}_s\left(q_t k_s^\top / \sqrt{H} - m_n (t - s)\right) v_s \tag{1} $$
$$ m_n = 2^{-b n / N}, \qquad n = 1 \dots N, \quad b = 8 \tag{2} $$
$$ h = x + \mathrm{Attention}(\mathrm{LayerNorm}(x)) \tag{3} $$
$$ y = h + W_d\, \mathrm{GELU}(W_u\, \mathrm{LayerNorm}(h)) \tag{4} $$
$$ \mathrm{logits} = \mathrm{LayerNorm}(y_L)\, W_{\mathrm{token}}^\top \tag{5} $$

For stable training, some models clip every feature of queries, keys and values to $[-c, c]$ (``clip_qkv``).

Shapes: B batch, T query positions, S key positions, D model width, N heads, H head width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core import CausalLM
from scratch_core.layers import MLP, KeyValueCache, Linear, attend, causal_mask, dropout, gelu, tied_logits

from scratch_mpt import convert
from scratch_mpt.config import MPTConfig


def alibi_slopes(num_heads: int, bias_max: int = 8) -> tuple[float, ...]:
    """Return the slope of each head, eq. 2.

    If num_heads is not a power of two, the slopes are taken from those of the next power of two, P: first every second
    one, which gives the slopes of P / 2 heads, then the ones between them until there are num_heads. This follows the
    authors' code, https://github.com/ofirpress/attention_with_linear_biases.
    """
    P = 1 << (num_heads - 1).bit_length()
    slopes = [2.0 ** (-bias_max * n / P) for n in range(1, P + 1)]  # eq. 2
    return tuple(slopes if num_heads == P else (slopes[1::2] + slopes[::2])[:num_heads])


class LayerNorm(nnx.Module):
    """LayerNorm with a scale and no bias, in float32; the result has the input's dtype."""

    def __init__(self, d_model: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(d_model))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x normalised over its last axis."""
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * self.scale[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Eq. 1; queries, keys and values come from one product."""

    def __init__(self, config: MPTConfig, *, dtype, rngs: nnx.Rngs):
        D, N, H = config.d_model, config.num_heads, config.head_dim
        self.qkv = Linear(D, (N, 3, H), use_bias=False, dtype=dtype, rngs=rngs)
        self.out = Linear((N, H), D, use_bias=False, dtype=dtype, rngs=rngs)
        self.dropout = dropout(config.attention_dropout, rngs)
        self.slopes = alibi_slopes(N, config.alibi_bias_max)
        self.scale, self.clip, self.dtype = config.softmax_scale, config.clip_qkv, dtype

    def empty_cache(self, batch_size: int, capacity: int) -> KeyValueCache:
        """Return an empty cache for ``capacity`` positions."""
        _, N, _, H = self.qkv.kernel.shape
        return KeyValueCache.empty(batch_size, capacity, N, H, self.dtype)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        qkv = self.qkv(x_BTD)
        if self.clip is not None:
            qkv = jnp.clip(qkv, -self.clip, self.clip)
        query_BTNH, key_BSNH, value_BSNH = jnp.unstack(qkv, axis=3)
        key_positions_BS = positions_BT
        if cache is not None:
            key_BSNH, value_BSNH, key_positions_BS, cache = cache.append(key_BSNH, value_BSNH, positions_BT)
        mask_BTS = causal_mask(positions_BT, key_positions_BS)
        distance_BTS = positions_BT[:, :, None] - key_positions_BS[:, None, :]
        bias_BNTS = -jnp.array(self.slopes)[:, None, None] * distance_BTS[:, None]
        y_BTNH = attend(
            query_BTNH, key_BSNH, value_BSNH, mask_BTS, bias=bias_BNTS, scale=self.scale, dropout=self.dropout
        )  # eq. 1
        return self.out(y_BTNH), cache


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each on a normalised input and added to the residual stream."""

    def __init__(self, config: MPTConfig, *, dtype, rngs: nnx.Rngs):
        D, F, epsilon = config.d_model, config.d_ff, config.norm_epsilon
        self.attention_norm = LayerNorm(D, epsilon=epsilon)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = LayerNorm(D, epsilon=epsilon)
        self.feed_forward = MLP(D, F, activation=gelu, use_bias=False, dtype=dtype, rngs=rngs)
        self.dropout = dropout(config.residual_dropout, rngs)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        attended_BTD, cache = self.attention(self.attention_norm(x_BTD), positions_BT, cache)
        x_BTD = x_BTD + self.dropout(attended_BTD)  # eq. 3
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD))), cache  # eq. 4


class MPT(CausalLM):
    """MPT as a causal language model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = MPTConfig
    architectures = ("MptForCausalLM", "MPTForCausalLM", "MptModel")
    rules = staticmethod(convert.rules)
    rename = staticmethod(convert.rename)

    def __init__(self, config: MPTConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size, config.d_model
        self.embedding = nnx.Embed(V, D, embedding_init=nnx.initializers.normal(0.02), dtype=dtype, rngs=rngs)
        self.dropout = dropout(config.embedding_dropout, rngs)
        self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = LayerNorm(D, epsilon=config.norm_epsilon)
        if not config.tie_embeddings:
            self.head = Linear(D, V, use_bias=False, dtype=dtype, rngs=rngs)

    def embed(self, input_ids: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return the embedded tokens, x_BTD; positions enter through the attention scores of the layers."""
        return self.dropout(self.embedding(input_ids))

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return the head's logits_BTV, float32, for normalised x_BTD; a tied head uses the embedding matrix."""
        logits_BTV = tied_logits(self.embedding, x_BTD) if self.config.tie_embeddings else self.head(x_BTD)
        return logits_BTV.astype(jnp.float32)  # eq. 5
