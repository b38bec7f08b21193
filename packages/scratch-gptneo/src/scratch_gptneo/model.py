r"""GPT-Neo: GPT-2 with a window in every second layer and unscaled attention scores.

Source: Black et al. 2021, https://doi.org/10.5281/zenodo.5297715, code without a paper. Its sizes and its
alternating layers follow GPT-3 (Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2.1). A query of a global
layer attends to all earlier positions, a query of a local layer to the last W (Beltagy et al. 2020,
https://arxiv.org/abs/2004.05150, section 3.1):

$$ x_0 = W_{\mathrm{token}}[\mathrm{ids}] + W_{\mathrm{position}}[0 \dots T - 1] \tag{1} $$
$$ y_t = \sum_{s \in R(t)} \mathrm{softmax}_s(q_t k_s^\top) v_s, \qquad
   R(t) = \{s \le t\} \text{ or } \{t - W < s \le t\} \tag{2} $$
$$ h = x + \mathrm{Attention}(\mathrm{LayerNorm}(x)) \tag{3} $$
$$ y = h + W_d\, \mathrm{GELU}(W_u\, \mathrm{LayerNorm}(h)) \tag{4} $$
$$ \mathrm{logits} = \mathrm{LayerNorm}(y_L)\, W_{\mathrm{token}}^\top \tag{5} $$

Shapes: B batch, T query positions, S key positions, D model width, N heads, H head width, V vocabulary.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core import CausalLM
from scratch_core.layers import (
    MLP,
    KeyValueCache,
    LayerNorm,
    LearnedPositions,
    Linear,
    attend,
    causal_mask,
    dropout,
    tied_logits,
)

from scratch_gptneo import convert
from scratch_gptneo.config import GPTNeoConfig

INIT = nnx.initializers.normal(0.02)


class Attention(nnx.Module):
    """Eq. 2: causal attention over all earlier positions or within ``window``. Only the last product has a bias."""

    def __init__(self, config: GPTNeoConfig, layer: int, *, dtype, rngs: nnx.Rngs):
        D, N, H = config.d_model, config.num_heads, config.head_dim
        project = partial(Linear, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.query = project(D, (N, H), use_bias=False)
        self.key = project(D, (N, H), use_bias=False)
        self.value = project(D, (N, H), use_bias=False)
        self.out = project((N, H), D)
        self.dropout = dropout(config.attention_dropout, rngs)
        self.window, self.dtype = config.window_of(layer), dtype

    def empty_cache(self, batch_size: int, capacity: int) -> KeyValueCache:
        """Return an empty cache for ``capacity`` positions, or a ring of the window's length if that is shorter."""
        _, N, H = self.key.kernel.shape
        return KeyValueCache.empty(batch_size, capacity, N, H, self.dtype, window=self.window)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        query_BTNH, key_BSNH, value_BSNH = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        key_positions_BS = positions_BT
        if cache is not None:
            key_BSNH, value_BSNH, key_positions_BS, cache = cache.append(key_BSNH, value_BSNH, positions_BT)
        mask_BTS = causal_mask(positions_BT, key_positions_BS, self.window)
        y_BTNH = attend(query_BTNH, key_BSNH, value_BSNH, mask_BTS, scale=1.0, dropout=self.dropout)  # eq. 2
        return self.out(y_BTNH), cache


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each on a normalised input and added to the residual stream."""

    def __init__(self, config: GPTNeoConfig, layer: int, *, dtype, rngs: nnx.Rngs):
        D, F, epsilon = config.d_model, config.d_ff, config.norm_epsilon
        self.attention_norm = LayerNorm(D, epsilon=epsilon)
        self.attention = Attention(config, layer, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = LayerNorm(D, epsilon=epsilon)
        # jax.nn.gelu is the tanh form.
        self.feed_forward = MLP(D, F, activation=jax.nn.gelu, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.dropout = dropout(config.residual_dropout, rngs)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        attended_BTD, cache = self.attention(self.attention_norm(x_BTD), positions_BT, cache)
        x_BTD = x_BTD + self.dropout(attended_BTD)  # eq. 3
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD))), cache  # eq. 4


class GPTNeo(CausalLM):
    """GPT-Neo as a causal language model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = GPTNeoConfig
    architectures = ("GPTNeoForCausalLM", "GPTNeoModel")
    buffers = (r"transformer\.h\.\d+\.attn\.attention\.(bias|masked_bias)",)  # the causal mask
    rules = staticmethod(convert.rules)
    rename = staticmethod(convert.rename)

    def __init__(self, config: GPTNeoConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size, config.d_model
        self.embedding = nnx.Embed(V, D, embedding_init=INIT, dtype=dtype, rngs=rngs)
        self.positions = LearnedPositions(config.max_positions, D, dtype=dtype, rngs=rngs)
        self.dropout = dropout(config.embedding_dropout, rngs)
        self.layers = nnx.List([Block(config, layer, dtype=dtype, rngs=rngs) for layer in range(config.num_layers)])
        self.norm = LayerNorm(D, epsilon=config.norm_epsilon)
        if not config.tie_embeddings:
            self.head = Linear(D, V, use_bias=False, kernel_init=INIT, dtype=dtype, rngs=rngs)

    def embed(self, input_ids: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return x_BTD, the sum of token and position vectors. Errors as in LearnedPositions."""
        return self.dropout(self.embedding(input_ids) + self.positions(positions_BT))  # eq. 1

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return the head's logits_BTV, float32, for normalised x_BTD; a tied head uses the embedding matrix."""
        logits_BTV = tied_logits(self.embedding, x_BTD) if self.config.tie_embeddings else self.head(x_BTD)
        return logits_BTV.astype(jnp.float32)  # eq. 5
