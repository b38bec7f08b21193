r"""Mistral: Llama's architecture, but a query attends only to the last W positions.

Source: Jiang et al. 2023, https://arxiv.org/abs/2310.06825, section 2. A block has two layers. Each reads a
normalised input, and its output is added to the residual stream:

$$ h = x + \mathrm{Attention}_W(\mathrm{RMSNorm}(x)) \tag{1} $$
$$ y = h + \mathrm{SwiGLU}(\mathrm{RMSNorm}(h)) \tag{2} $$
$$ \mathrm{logits} = \mathrm{RMSNorm}(y_L)\, W_{\mathrm{head}} \tag{3} $$

The query at position $i$ attends to positions $i - W + 1$ to $i$ (*sliding window attention*). Through the blocks below
it, the output of block $k$ at $i$ depends on the tokens from $i - k (W - 1)$ to $i$:

$$ \mathrm{Attention}_W(x)_i = \sum_{j = \max(0,\, i - W + 1)}^{i} a_{ij} v_j, \qquad
   a_i = \mathrm{softmax}_j\left(q_i k_j^\top / \sqrt{H}\right) \tag{4} $$

No query attends further back than W - 1 positions. Decoding therefore keeps only the keys and values of the last W
positions (*rolling buffer cache*): position $p$ is written to slot $p \bmod W$, which overwrites position $p - W$.

Shapes: B batch, T positions, D model width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core import CausalLM
from scratch_core.layers import GatedMLP, GroupedQueryAttention, RMSNorm, tied_logits

from scratch_mistral import convert
from scratch_mistral.config import MistralConfig


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each on a normalised input and added to the residual stream."""

    def __init__(self, config: MistralConfig, *, dtype, rngs: nnx.Rngs):
        D = config.d_model
        self.attention_norm = RMSNorm(D, epsilon=config.norm_epsilon)
        self.attention = GroupedQueryAttention(
            D,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            rope=config.rope,
            window=config.window,  # eq. 4, and a cache of W slots
            dtype=dtype,
            rngs=rngs,
        )
        self.feed_forward_norm = RMSNorm(D, epsilon=config.norm_epsilon)
        self.feed_forward = GatedMLP(D, config.d_ff, activation=jax.nn.silu, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        attended_BTD, cache = self.attention(self.attention_norm(x_BTD), positions_BT, cache)
        x_BTD = x_BTD + attended_BTD  # eq. 1
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD)), cache  # eq. 2


class Mistral(CausalLM):
    """Mistral as a causal language model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = MistralConfig
    architectures = ("MistralForCausalLM",)
    buffers = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    rules = staticmethod(convert.rules)

    def __init__(self, config: MistralConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(
            config.vocab_size, config.d_model, embedding_init=nnx.initializers.normal(0.02), dtype=dtype, rngs=rngs
        )
        self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.d_model, epsilon=config.norm_epsilon)
        if not config.tie_embeddings:
            self.head = nnx.Linear(config.d_model, config.vocab_size, use_bias=False, dtype=dtype, rngs=rngs)

    def embed(self, input_ids: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return the embedded tokens, x_BTD; the layers apply rotary positions."""
        return self.embedding(input_ids)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return the head's logits_BTV, float32, for normalised x_BTD; a tied head uses the embedding matrix."""
        logits_BTV = tied_logits(self.embedding, x_BTD) if self.config.tie_embeddings else self.head(x_BTD)
        return logits_BTV.astype(jnp.float32)  # eq. 3
