r"""OLMo and OLMo 2: a decoder whose norms have no parameters, and its successor, which was built to train stably.

Sources: Groeneveld et al. 2024, https://arxiv.org/abs/2402.00838 (section 2.1) and Team OLMo 2024,
https://arxiv.org/abs/2501.00656 (sections 2 and 3). A block of OLMo is Llama's with a norm without parameters. The
version of April 2024 also clips queries, keys and values to $[-c, c]$:

$$ \mathrm{LN}(x) = \frac{x - \bar x}{\sqrt{\overline{(x - \bar x)^2} + \epsilon}} \tag{1} $$
$$ h = x + \mathrm{Attention}(\mathrm{LN}(x)), \qquad y = h + \mathrm{SwiGLU}(\mathrm{LN}(h)) \tag{2} $$

A block of OLMo 2 normalises the outputs of its layers, not their inputs. Queries and keys are normalised too, over all
heads together and before rotary positions (QK-norm), so that no score grows without bound:

$$ h = x + \mathrm{RMSNorm}(\mathrm{Attention}(x)), \qquad y = h + \mathrm{RMSNorm}(\mathrm{SwiGLU}(h)) \tag{3} $$
$$ q = \mathrm{RMSNorm}(W_q x), \qquad k = \mathrm{RMSNorm}(W_k x) \tag{4} $$

The loss of each next token is its cross-entropy plus a *z-loss*, which keeps the normaliser $Z$ of the softmax near 1:

$$ \mathcal{L} = -\log p(y) + \lambda (\log Z)^2, \qquad Z = \sum_v e^{\mathrm{logit}_v} \tag{5} $$

Shapes: B batch, T query positions, S key positions, D model width, N query heads, K key/value heads, H head width,
V vocabulary.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core import CausalLM
from scratch_core.layers import GatedMLP, KeyValueCache, Linear, attend, causal_mask, tied_logits
from scratch_core.layers.linear import LECUN_NORMAL
from scratch_core.losses import IGNORED, causal_lm_inputs, causal_lm_loss, next_token_labels

from scratch_olmo import convert
from scratch_olmo.config import Olmo2Config, OlmoConfig

# OLMo 2, section 3.2: the same distribution for every matrix, whatever its size and depth.
NORMAL = nnx.initializers.truncated_normal(0.02, lower=-3.0, upper=3.0)


class LayerNorm(nnx.Module):
    """Eq. 1 over the last axis, in float32; the result has the input's dtype."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x normalised; epsilon is 1e-5 in every OLMo."""
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + 1e-5)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMSNorm over the last axes, which have the sizes ``shape``; the result has the input's dtype."""

    def __init__(self, *shape: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(shape))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x normalised; computed in float32 and rounded last (Llama's norm rounds before it multiplies)."""
        x32, axes = x.astype(jnp.float32), tuple(range(-self.scale.ndim, 0))
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=axes, keepdims=True) + self.epsilon)
        return (x32 * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
    """Causal self-attention with rotary positions and an optional key/value cache. Subclasses override ``project``.

    Projections run in ``dtype``.
    """

    def __init__(self, config: OlmoConfig | Olmo2Config, *, kernel_init=LECUN_NORMAL, dtype, rngs: nnx.Rngs):
        D, N, K, H = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        linear = partial(Linear, use_bias=config.attention_bias, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value = linear(D, (N, H)), linear(D, (K, H)), linear(D, (K, H))
        self.out = linear((N, H), D)
        self.rope, self.dtype = config.rope, dtype

    def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return query_BTNH, key_BTKH and value_BTKH, before rotary positions."""
        return self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)

    def empty_cache(self, batch_size: int, capacity: int) -> KeyValueCache:
        """Return an empty cache for ``capacity`` positions."""
        _, K, H = self.key.kernel.shape
        return KeyValueCache.empty(batch_size, capacity, K, H, self.dtype)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD in ``dtype`` and the cache with these T tokens appended (None without one)."""
        query_BTNH, key_BSKH, value_BSKH = self.project(x_BTD)
        query_BTNH, key_BSKH = self.rope(query_BTNH, positions_BT), self.rope(key_BSKH, positions_BT)
        key_positions_BS = positions_BT
        if cache is not None:
            key_BSKH, value_BSKH, key_positions_BS, cache = cache.append(key_BSKH, value_BSKH, positions_BT)
        mask_BTS = causal_mask(positions_BT, key_positions_BS)
        return self.out(attend(query_BTNH, key_BSKH, value_BSKH, mask_BTS)), cache


class ClippedAttention(Attention):
    """Attention of OLMo: queries, keys and values are clipped to ``config.clip_qkv``, unless it is None."""

    def __init__(self, config: OlmoConfig, *, dtype, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.bound = config.clip_qkv

    def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return query_BTNH, key_BTKH and value_BTKH, before rotary positions."""
        projected = super().project(x_BTD)
        if self.bound is None:
            return projected
        query_BTNH, key_BTKH, value_BTKH = (jnp.clip(each, -self.bound, self.bound) for each in projected)
        return query_BTNH, key_BTKH, value_BTKH


class NormedAttention(Attention):
    """Attention of OLMo 2: queries and keys are normalised over all heads together (eq. 4)."""

    def __init__(self, config: Olmo2Config, *, dtype, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs, kernel_init=NORMAL)
        self.query_norm = RMSNorm(config.num_heads, config.head_dim, epsilon=config.norm_epsilon)
        self.key_norm = RMSNorm(config.num_kv_heads, config.head_dim, epsilon=config.norm_epsilon)

    def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return query_BTNH, key_BTKH and value_BTKH, before rotary positions."""
        query_BTNH, key_BTKH, value_BTKH = super().project(x_BTD)
        return self.query_norm(query_BTNH), self.key_norm(key_BTKH), value_BTKH  # eq. 4


class Block(nnx.Module):
    """One layer of OLMo: attention, then feed-forward, each on a normalised input and added to the stream."""

    def __init__(self, config: OlmoConfig, *, dtype, rngs: nnx.Rngs):
        self.norm = LayerNorm()
        self.attention = ClippedAttention(config, dtype=dtype, rngs=rngs)
        self.feed_forward = GatedMLP(config.d_model, config.d_ff, activation=jax.nn.silu, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        attended_BTD, cache = self.attention(self.norm(x_BTD), positions_BT, cache)
        x_BTD = x_BTD + attended_BTD
        return x_BTD + self.feed_forward(self.norm(x_BTD)), cache  # eq. 2


class Olmo2Block(nnx.Module):
    """One layer of OLMo 2: attention, then feed-forward, each normalised before it is added to the stream."""

    def __init__(self, config: Olmo2Config, *, dtype, rngs: nnx.Rngs):
        D, norm = config.d_model, partial(RMSNorm, config.d_model, epsilon=config.norm_epsilon)
        self.attention = NormedAttention(config, dtype=dtype, rngs=rngs)
        self.attention_post_norm = norm()
        self.feed_forward = GatedMLP(D, config.d_ff, activation=jax.nn.silu, kernel_init=NORMAL, dtype=dtype, rngs=rngs)
        self.feed_forward_post_norm = norm()

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        attended_BTD, cache = self.attention(x_BTD, positions_BT, cache)
        x_BTD = x_BTD + self.attention_post_norm(attended_BTD)
        return x_BTD + self.feed_forward_post_norm(self.feed_forward(x_BTD)), cache  # eq. 3


class _Decoder(CausalLM):
    """What both generations share: embedding, head and loss."""

    buffers = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

    def __init__(self, config: Any, block: Any, norm: nnx.Module, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size, config.d_model
        self.embedding = nnx.Embed(V, D, embedding_init=NORMAL, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = norm
        if not config.tie_embeddings:
            self.head = nnx.Linear(D, V, use_bias=False, kernel_init=NORMAL, dtype=dtype, rngs=rngs)

    def embed(self, input_ids: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return the embedded tokens, x_BTD; the layers apply rotary positions."""
        return self.embedding(input_ids)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return the head's logits_BTV, float32, for normalised x_BTD; a tied head uses the embedding matrix."""
        logits_BTV = tied_logits(self.embedding, x_BTD) if self.config.tie_embeddings else self.head(x_BTD)
        return logits_BTV.astype(jnp.float32)

    def loss(self, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of eq. 5, over the targets of :func:`scratch_core.losses.causal_lm_loss`."""
        if not self.config.z_loss_weight:
            return super().loss(batch)
        logits_BTV = self(*causal_lm_inputs(batch))
        total, weight = causal_lm_loss(lambda *_: logits_BTV, batch)
        log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
        counts_BT = next_token_labels(batch) != IGNORED
        return total + self.config.z_loss_weight * jnp.where(counts_BT, log_z_BT**2, 0.0).sum(), weight  # eq. 5


class Olmo(_Decoder):
    """OLMo as a causal language model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = OlmoConfig
    architectures = ("OlmoForCausalLM",)
    rules = staticmethod(convert.olmo_rules)

    def __init__(self, config: OlmoConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, Block, LayerNorm(), dtype=dtype, rngs=rngs)


class Olmo2(_Decoder):
    """OLMo 2 as a causal language model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = Olmo2Config
    architectures = ("Olmo2ForCausalLM",)
    rules = staticmethod(convert.olmo2_rules)

    def __init__(self, config: Olmo2Config, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        norm = RMSNorm(config.d_model, epsilon=config.norm_epsilon)
        super().__init__(config, Olmo2Block, norm, dtype=dtype, rngs=rngs)
