r"""GPT-2: a decoder-only transformer with learned positions, LayerNorm before each branch, and GELU.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3,
https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf, which changes
GPT (Radford et al. 2018): the norms move to the input of each branch, and one is added after the last block:

$$ x_0 = W_{\mathrm{token}}[\mathrm{ids}] + W_{\mathrm{position}}[0 \dots T - 1] \tag{1} $$
$$ h = x + \mathrm{Attention}(\mathrm{LayerNorm}(x)) \tag{2} $$
$$ y = h + W_d\, \mathrm{GELU}(W_u\, \mathrm{LayerNorm}(h)) \tag{3} $$
$$ \mathrm{logits} = \mathrm{LayerNorm}(y_L)\, W_{\mathrm{token}}^\top \tag{4} $$

Every linear layer has a bias. GELU is the tanh approximation (Hendrycks and Gimpel 2016,
https://arxiv.org/abs/1606.08415, section 2), $0.5 x (1 + \tanh(\sqrt{2/\pi}(x + 0.044715 x^3)))$.

Shapes: B batch, T query positions, S key positions, D model width, N heads, H head width, V vocabulary.
"""

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
    gelu,
    tied_logits,
)

from scratch_gpt2 import convert
from scratch_gpt2.config import GPT2Config

INIT = nnx.initializers.normal(0.02)
ACTIVATIONS = {"gelu_new": jax.nn.gelu, "gelu_pytorch_tanh": jax.nn.gelu, "gelu": gelu}  # jax.nn.gelu is the tanh form


class Attention(nnx.Module):
    """Causal attention whose queries, keys and values come from one product."""

    def __init__(self, config: GPT2Config, layer: int, *, dtype, rngs: nnx.Rngs):
        D, N, H = config.d_model, config.num_heads, config.head_dim
        self.qkv = Linear(D, (N, 3, H), kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.out = Linear((N, H), D, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.dropout = dropout(config.attention_dropout, rngs)
        self.scale = H**-0.5 if config.scale_attention else 1.0
        if config.scale_by_layer:  # as in Mistral's GPT-2, https://crfm.stanford.edu/2021/08/26/mistral.html
            self.scale /= layer + 1
        self.dtype = dtype

    def empty_cache(self, batch_size: int, capacity: int) -> KeyValueCache:
        """Return an empty cache for ``capacity`` positions."""
        _, N, _, H = self.qkv.kernel.shape
        return KeyValueCache.empty(batch_size, capacity, N, H, self.dtype)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        query_BTNH, key_BSNH, value_BSNH = jnp.unstack(self.qkv(x_BTD), axis=3)
        key_positions_BS = positions_BT
        if cache is not None:
            key_BSNH, value_BSNH, key_positions_BS, cache = cache.append(key_BSNH, value_BSNH, positions_BT)
        mask_BTS = causal_mask(positions_BT, key_positions_BS)
        y_BTNH = attend(query_BTNH, key_BSNH, value_BSNH, mask_BTS, scale=self.scale, dropout=self.dropout)
        return self.out(y_BTNH), cache


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each on a normalised input and added to the residual stream."""

    def __init__(self, config: GPT2Config, layer: int, *, dtype, rngs: nnx.Rngs):
        D, F, epsilon = config.d_model, config.d_ff, config.norm_epsilon
        self.attention_norm = LayerNorm(D, epsilon=epsilon)
        self.attention = Attention(config, layer, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = LayerNorm(D, epsilon=epsilon)
        activation = ACTIVATIONS[config.activation]
        self.feed_forward = MLP(D, F, activation=activation, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.dropout = dropout(config.residual_dropout, rngs)
        for last in (self.attention.out, self.feed_forward.down):  # the residual stream sums 2 L branches
            last.kernel[...] *= (2 * config.num_layers) ** -0.5

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        attended_BTD, cache = self.attention(self.attention_norm(x_BTD), positions_BT, cache)
        x_BTD = x_BTD + self.dropout(attended_BTD)  # eq. 2
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD))), cache  # eq. 3


class GPT2(CausalLM):
    """GPT-2 as a causal language model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = GPT2Config
    architectures = ("GPT2LMHeadModel", "GPT2Model")
    buffers = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)  # the causal mask
    rules = staticmethod(convert.rules)
    rename = staticmethod(convert.rename)

    def __init__(self, config: GPT2Config, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
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
        return logits_BTV.astype(jnp.float32)  # eq. 4
