r"""Template: what it is, in one sentence.

Source: authors and year, address, section. The equations that the code below is marked with:

$$ h = x + \mathrm{Attention}(\mathrm{Norm}(x)) \tag{1} $$
$$ y = h + \mathrm{FeedForward}(\mathrm{Norm}(h)) \tag{2} $$

Shapes: B batch, T positions, D model width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core import PretrainedModel
from scratch_core.layers import DecoderCache, GatedMLP, GroupedQueryAttention, RMSNorm, positions_from_mask

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


class Template(PretrainedModel):
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

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Return logits [B, T, V], float32.

        input_ids int [B, T]; attention_mask [B, T] is 1 at real tokens (None: everywhere), padding on
        either side. Logits at padding are finite and mean nothing.
        """
        return self.logits(self.hidden(input_ids, attention_mask))

    def hidden(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Return the residual stream after the last norm, x_BTD; arguments as for the call."""
        positions_BT = positions_from_mask(jnp.ones_like(input_ids) if attention_mask is None else attention_mask)
        x_BTD = self.embedding(input_ids)
        for layer in self.layers:
            x_BTD, _ = layer(x_BTD, positions_BT)
        return self.norm(x_BTD)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return the head's logits for normalised x_BTD."""
        return self.head(x_BTD).astype(jnp.float32)

    def init_cache(self, batch_size: int, capacity: int) -> DecoderCache:
        """Return an empty cache with room for ``capacity`` tokens in each row."""
        return DecoderCache(tuple(layer.attention.empty_cache(batch_size, capacity) for layer in self.layers))

    def decode(
        self,
        input_ids: jax.Array,
        cache: DecoderCache,
        attention_mask: jax.Array | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[jax.Array, DecoderCache]:
        """Return the logits of the next T tokens of each row, float32 [B, T, V], and the cache after them.

        input_ids int [B, T] continue what the cache holds. attention_mask [B, T] is 0 at padding, which
        takes no room. last_only: logits [B, 1, V] of each row's last real token alone. Outside jit, raises
        DataError if the cache has no room.
        """
        attention_mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        cache.check_room(attention_mask)
        positions_BT = positions_from_mask(attention_mask, cache.length_B)
        x_BTD = self.embedding(input_ids)
        after = []
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x_BTD, layer_cache = layer(x_BTD, positions_BT, layer_cache)
            after.append(layer_cache)
        if last_only:
            last_B11 = positions_BT.argmax(axis=1)[:, None, None]
            x_B1D = jnp.take_along_axis(x_BTD, last_B11, axis=1)
            return self.logits(self.norm(x_B1D)), DecoderCache(tuple(after))
        return self.logits(self.norm(x_BTD)), DecoderCache(tuple(after))
