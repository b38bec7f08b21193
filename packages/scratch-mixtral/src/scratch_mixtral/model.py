r"""Mixtral: Llama's decoder with eight experts instead of each feed-forward layer.

Source: Jiang et al. 2024, https://arxiv.org/abs/2401.04088, section 2. A block has two layers. Each reads a
normalised input, and its output is added to the residual stream:

$$ h = x + \mathrm{Attention}(\mathrm{RMSNorm}(x)) \tag{1} $$
$$ y = h + \sum_{e=1}^{E} g_e(z)\, \mathrm{SwiGLU}_e(z), \qquad z = \mathrm{RMSNorm}(h) \tag{2} $$
$$ g(z) = \mathrm{softmax}(\mathrm{TopK}(z W_r)) \tag{3} $$
$$ \mathrm{logits} = \mathrm{RMSNorm}(y_L)\, W_{\mathrm{head}} \tag{4} $$

Each token passes only through its two best experts. A balancing loss keeps the router from using few experts for all
tokens. The paper does not write this loss down. Here it is the loss of Switch (https://arxiv.org/abs/2101.03961, eqs. 4
to 6) for top-2 routing, as Hugging Face implements it. It is part of the model's loss if ``output_router_logits`` is
set:

$$ L = L_{\mathrm{LM}} + \alpha\, E \sum_e f_e P_e \tag{5} $$

Shapes: B batch, T positions, D model width, V vocabulary, E experts.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core import CausalLM
from scratch_core.layers import (
    Experts,
    GroupedQueryAttention,
    Linear,
    RMSNorm,
    load_balancing_loss,
    positions_from_mask,
    tied_logits,
    top_k_routing,
)
from scratch_core.losses import causal_lm_inputs, causal_lm_loss

from scratch_mixtral import convert
from scratch_mixtral.config import MixtralConfig


class MixtureOfExperts(nnx.Module):
    """The feed-forward layer: a router, and the experts among which it chooses for each token."""

    def __init__(self, config: MixtralConfig, *, dtype, rngs: nnx.Rngs):
        D, E = config.d_model, config.num_experts
        self.router = Linear(D, E, use_bias=False, dtype=dtype, rngs=rngs)
        self.experts = Experts(D, config.d_ff, E, activation=jax.nn.silu, dtype=dtype, rngs=rngs)
        self.experts_per_token = config.experts_per_token

    def __call__(self, x_BTD):
        """Return y_BTD, and the router's logits_BTE."""
        logits_BTE = self.router(x_BTD)
        routing = top_k_routing(logits_BTE.reshape(-1, logits_BTE.shape[-1]), self.experts_per_token)  # eq. 3
        return self.experts(x_BTD, routing), logits_BTE


class Block(nnx.Module):
    """One layer: attention, then experts, each on a normalised input and added to the residual stream."""

    def __init__(self, config: MixtralConfig, *, dtype, rngs: nnx.Rngs):
        D = config.d_model
        self.attention_norm = RMSNorm(D, epsilon=config.norm_epsilon)
        self.attention = GroupedQueryAttention(
            D,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            rope=config.rope,
            window=config.window,
            dtype=dtype,
            rngs=rngs,
        )
        self.feed_forward_norm = RMSNorm(D, epsilon=config.norm_epsilon)
        self.feed_forward = MixtureOfExperts(config, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        y_BTD, cache, _ = self.with_router_logits(x_BTD, positions_BT, cache)
        return y_BTD, cache

    def with_router_logits(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, the cache, and the router's logits_BTE."""
        attended_BTD, cache = self.attention(self.attention_norm(x_BTD), positions_BT, cache)
        x_BTD = x_BTD + attended_BTD  # eq. 1
        mixed_BTD, logits_BTE = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + mixed_BTD, cache, logits_BTE  # eq. 2


class Mixtral(CausalLM):
    """Mixtral as a causal language model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = MixtralConfig
    architectures = ("MixtralForCausalLM",)
    buffers = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    rules = staticmethod(convert.rules)

    def __init__(self, config: MixtralConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(
            config.vocab_size, config.d_model, embedding_init=nnx.initializers.normal(0.02), dtype=dtype, rngs=rngs
        )
        self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.d_model, epsilon=config.norm_epsilon)
        if not config.tie_embeddings:
            self.head = Linear(config.d_model, config.vocab_size, use_bias=False, dtype=dtype, rngs=rngs)

    def embed(self, input_ids: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return the embedded tokens, x_BTD; the layers apply rotary positions."""
        return self.embedding(input_ids)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return the head's logits_BTV, float32, for normalised x_BTD; a tied head uses the embedding matrix."""
        logits_BTV = tied_logits(self.embedding, x_BTD) if self.config.tie_embeddings else self.head(x_BTD)
        return logits_BTV.astype(jnp.float32)  # eq. 4

    def hidden_and_router_logits(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, document_ids: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return the residual stream after the last norm, x_BTD, and logits_BTE of each layer's router."""
        mask_BT = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        positions_BT = positions_from_mask(mask_BT, document_ids_BT=document_ids)
        x_BTD, routers = self.embed(input_ids, positions_BT), []
        for layer in self.layers:
            x_BTD, _, logits_BTE = layer.with_router_logits(x_BTD, positions_BT)
            routers.append(logits_BTE)
        return self.norm(x_BTD), tuple(routers)

    def loss(self, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of predicting each next token, with the balancing loss if the config asks for it.

        The balancing loss is a mean. It is multiplied by ``weight`` before it is added to the sum, so that sum / weight
        is eq. 5.
        """
        if not self.config.output_router_logits:
            return super().loss(batch)
        x_BTD, routers = self.hidden_and_router_logits(*causal_lm_inputs(batch))
        total, weight = causal_lm_loss(lambda *_: self.logits(x_BTD), batch)
        balance = balance_loss_hf(routers, self.config.experts_per_token, batch.get("attention_mask"))
        return total + self.config.router_loss_weight * weight * balance, weight  # eq. 5


def balance_loss_hf(
    routers: tuple[jax.Array, ...], experts_per_token: int, attention_mask: jax.Array | None = None
) -> jax.Array:
    """Return the load-balancing loss of Hugging Face's implementation, from each layer's logits_BTE.

    The tokens of all layers form one batch, so too much use of an expert in one layer can be offset in another layer.
    f counts all chosen experts, so equal load gives the number of experts of a token, not 1. Without a mask, padding
    counts too.
    """
    E = routers[0].shape[-1]
    logits_TE = jnp.concatenate([logits_BTE.reshape(-1, E) for logits_BTE in routers])
    mask_T = None if attention_mask is None else jnp.tile(attention_mask.reshape(-1), len(routers))
    return load_balancing_loss(logits_TE, experts_per_token, mask_T)


def balance_loss_switch(routers: tuple[jax.Array, ...], attention_mask: jax.Array | None = None) -> jax.Array:
    """Return the load-balancing loss of the Switch paper, eqs. 4 to 6: the sum over the layers.

    f counts the best expert of each token, so equal load gives 1 for each layer.
    """
    mask_T = None if attention_mask is None else attention_mask.reshape(-1)
    E = routers[0].shape[-1]
    losses = [load_balancing_loss(logits_BTE.reshape(-1, E), 1, mask_T) for logits_BTE in routers]
    return jnp.stack(losses).sum()
