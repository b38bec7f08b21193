r"""Template: what it is, in one sentence.

Source: authors and year, address, section. The equations, to which comments such as "eq. 1" refer:

$$ h = x + \mathrm{Attention}(\mathrm{Norm}(x)) \tag{1} $$
$$ y = h + \mathrm{FeedForward}(\mathrm{Norm}(h)) \tag{2} $$

Shapes: B batch, T positions, D model width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core import CausalLM
from scratch_core.layers import GatedMLP, GroupedQueryAttention, RMSNorm

from scratch_template import convert
from scratch_template.config import TemplateConfig


class Block(nnx.Module):
    """One layer: a mixer, then feed-forward, each on a normalised input and added to the residual stream."""

    def __init__(self, config: TemplateConfig, *, dtype, rngs: nnx.Rngs):
        D, N, F = config.d_model, config.num_heads, config.d_ff
        self.attention_norm = RMSNorm(D, epsilon=config.norm_epsilon)
        self.attention = GroupedQueryAttention(D, N, N, D // N, rope=config.rope, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = RMSNorm(D, epsilon=config.norm_epsilon)
        self.feed_forward = GatedMLP(D, F, activation=jax.nn.silu, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        mixed_BTD, cache = self.attention(self.attention_norm(x_BTD), positions_BT, cache)
        x_BTD = x_BTD + mixed_BTD  # eq. 1
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD)), cache  # eq. 2


class Template(CausalLM):
    """Template as a causal language model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = TemplateConfig
    architectures = ("TemplateForCausalLM",)
    rules = staticmethod(convert.rules)

    def __init__(self, config: TemplateConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(
            config.vocab_size, config.d_model, embedding_init=nnx.initializers.normal(0.02), dtype=dtype, rngs=rngs
        )
        self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.d_model, epsilon=config.norm_epsilon)
        self.head = nnx.Linear(config.d_model, config.vocab_size, use_bias=False, dtype=dtype, rngs=rngs)

    def embed(self, input_ids: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return the embedded tokens, x_BTD; the layers apply rotary positions."""
        return self.embedding(input_ids)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return the head's logits_BTV, float32, for normalised x_BTD."""
        return self.head(x_BTD).astype(jnp.float32)
