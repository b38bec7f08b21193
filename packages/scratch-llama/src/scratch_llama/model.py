r"""Llama: a decoder-only transformer with RMSNorm, rotary positions, grouped queries and SwiGLU.

Sources: Touvron et al. 2023, https://arxiv.org/abs/2302.13971 (section 2.2) and
https://arxiv.org/abs/2307.09288 (section 2.2); Llama Team 2024, https://arxiv.org/abs/2407.21783
(section 3.2). Every block normalises before, and adds after, each of its two layers:

$$ h = x + \mathrm{Attention}(\mathrm{RMSNorm}(x)) \tag{1} $$
$$ y = h + \mathrm{SwiGLU}(\mathrm{RMSNorm}(h)) \tag{2} $$
$$ \mathrm{logits} = \mathrm{RMSNorm}(y_L)\, W_{\mathrm{head}} \tag{3} $$

Llama 2 and 3 differ only in numbers: vocabulary, head counts, and the frequencies of the rotary positions.

Shapes: B batch, T positions, D model width, V vocabulary.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core import CausalLM
from scratch_core.layers import GatedMLP, GroupedQueryAttention, RMSNorm, tied_logits

from scratch_llama import convert
from scratch_llama.config import LlamaConfig


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each on a normalised input and added to the residual stream."""

    def __init__(self, config: LlamaConfig, *, dtype, rngs: nnx.Rngs):
        D = config.d_model
        self.attention_norm = RMSNorm(D, epsilon=config.norm_epsilon)
        self.attention = GroupedQueryAttention(
            D,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            rope=config.rope,
            use_bias=config.attention_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.feed_forward_norm = RMSNorm(D, epsilon=config.norm_epsilon)
        self.feed_forward = GatedMLP(
            D, config.d_ff, activation=jax.nn.silu, use_bias=config.mlp_bias, dtype=dtype, rngs=rngs
        )

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        attended_BTD, cache = self.attention(self.attention_norm(x_BTD), positions_BT, cache)
        x_BTD = x_BTD + attended_BTD  # eq. 1
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD)), cache  # eq. 2


class Llama(CausalLM):
    """Llama as a causal language model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = LlamaConfig
    architectures = ("LlamaForCausalLM",)
    trunks: ClassVar = {"LlamaModel": "model."}
    buffers = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    rules = staticmethod(convert.rules)

    def __init__(self, config: LlamaConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
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
