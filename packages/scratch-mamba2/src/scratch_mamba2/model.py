r"""Mamba-2: a causal language model without attention, whose layers each carry a state of constant size.

Source: Dao and Gu 2024, https://arxiv.org/abs/2405.21060, section 7 (figure 6, right). One mixer, for an input $u$:

$$ [z, x, B, C, \delta] = u W_{in} \tag{1} $$
$$ [x, B, C] \leftarrow \mathrm{silu}(\mathrm{conv}([x, B, C])) \qquad \text{each channel over its last } K \tag{2} $$
$$ \Delta_t = \mathrm{clip}(\mathrm{softplus}(\delta_t + b)), \qquad a_t = \exp(-\Delta_t\, e^{A_{\log}}) \tag{3} $$
$$ y = \mathrm{SSD}(\Delta x, a, B, C) + D x \qquad \text{the operator of ssd.py} \tag{4} $$
$$ \mathrm{out} = \mathrm{RMSNorm}(y \odot \mathrm{silu}(z))\, W_{out} \tag{5} $$

Every layer adds its mixer's output, on a normalised input, to the residual stream. *Selection* is eqs. 1 to 3: the
token itself determines how much of the state is kept ($a_t$), written ($\Delta_t B_t$) and read ($C_t$).

**Decoding.** A mixer takes the state before its T tokens and returns the state after them, for any T. With one token
per call, T = 1, eq. 4 is one step of the recurrence: `ssd.step`.

**Padding.** Real tokens are moved to the front of each row, where a causal model cannot see the padding behind them,
and results are moved back. A padded step then has $\Delta = 0$, which leaves the state as it was, and the
convolution's window is taken at each row's own end.

**Documents.** Where several documents share a row, each begins with an empty state: its first step has
$a_t = e^{-200}$, which is 0 in float32, so that nothing of the previous state remains. The convolution leaves out the
inputs of other documents.

Shapes: B batch, T time, D model width, I inner width H * P, H heads, P head width, G groups, N state, V vocabulary,
C channels of the convolution (I + 2 G N), K its width, W = K - 1 inputs that it remembers. T, H, P and N are the
paper's letters; the others are ours.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core import CausalLM
from scratch_core.layers import DecoderCache, Linear, RMSNorm, run_blocks, tied_logits

from scratch_mamba2 import convert, ssd
from scratch_mamba2.config import Mamba2Config

FORGET = -200.0
"""The log decay at the start of a document: exp(-200) is 0 in float32. `ssd.semiseparable_mask` sums it precisely."""


@partial(jax.tree_util.register_dataclass, data_fields=["window_BWC", "state_BGNRP"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class MixerState:
    """The state of a layer: the last inputs of the convolution, and the state of eq. 4 in float32."""

    window_BWC: jax.Array
    state_BGNRP: jax.Array


class CausalConv(nnx.Module):
    """Eq. 2 before silu: each channel is a weighted sum of its own last K inputs."""

    def __init__(self, channels: int, width: int, *, use_bias: bool, rngs: nnx.Rngs):
        uniform = partial(jax.random.uniform, minval=-(width**-0.5), maxval=width**-0.5)
        self.kernel = nnx.Param(uniform(rngs.params(), (width, 1, channels)))
        self.bias = nnx.Param(uniform(rngs.params(), (channels,))) if use_bias else None

    def __call__(self, padded: jax.Array, document_BT: jax.Array | None = None) -> jax.Array:
        """Return y_BTC for [B, W + T, C], the T inputs after the W before them.

        ``document_BT`` (int; None: a single document) is the document of each input; a sum contains only inputs of the
        same document. The W inputs before belong to the first document.
        """
        K = self.kernel.shape[0]
        T, kernel = padded.shape[1] - K + 1, self.kernel[...].astype(padded.dtype)
        y_BTC = padded[:, K - 1 :] * kernel[K - 1]
        for k in range(K - 1):
            term_BTC = padded[:, k : k + T] * kernel[k]
            if document_BT is not None:
                document_of_input_BT = jnp.pad(document_BT, ((0, 0), (K - 1, 0)), mode="edge")[:, k : k + T]
                term_BTC = jnp.where((document_of_input_BT == document_BT)[..., None], term_BTC, 0)
            y_BTC += term_BTC
        return y_BTC if self.bias is None else y_BTC + self.bias[...].astype(padded.dtype)


class GatedRMSNorm(nnx.Module):
    """Eq. 5: the gate first, then RMSNorm within each of G groups of channels, in float32."""

    def __init__(self, width: int, num_groups: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.num_groups, self.epsilon = num_groups, epsilon

    def __call__(self, y_BTI: jax.Array, z_BTI: jax.Array) -> jax.Array:
        B, T, I = y_BTI.shape
        y_BTI = y_BTI * jax.nn.silu(z_BTI.astype(jnp.float32))
        square_BTG = jnp.mean((y_BTI * y_BTI).reshape(B, T, self.num_groups, -1), axis=-1)
        return y_BTI * jnp.repeat(jax.lax.rsqrt(square_BTG + self.epsilon), I // self.num_groups, -1) * self.scale[...]


class Mixer(nnx.Module):
    """Eqs. 1 to 5. Projections run in ``dtype``; step sizes, the operator and the norm in float32."""

    def __init__(self, config: Mamba2Config, *, dtype, rngs: nnx.Rngs):
        D, H, I, C = config.d_model, config.num_heads, config.d_inner, _channels(config)
        self.config, self.dtype = config, dtype
        linear = partial(Linear, use_bias=config.use_bias, dtype=dtype, rngs=rngs)
        self.in_proj = linear(D, I + C + H, kernel_init=_uniform(D**-0.5))
        self.conv = CausalConv(C, config.conv_width, use_bias=config.conv_bias, rngs=rngs)
        # Initial step sizes are log-uniform in [dt_min, dt_max], decay rates uniform in [1, 16].
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        dt_H = jnp.exp(jax.random.uniform(rngs.params(), (H,), minval=low, maxval=high))
        dt_H = jnp.maximum(dt_H, config.dt_floor)
        self.dt_bias = nnx.Param(dt_H + jnp.log(-jnp.expm1(-dt_H)))  # softplus of this is dt
        self.A_log = nnx.Param(jnp.log(jax.random.uniform(rngs.params(), (H,), minval=1.0, maxval=16.0)))
        self.D = nnx.Param(jnp.ones(H))
        self.norm = GatedRMSNorm(I, config.num_groups, epsilon=config.norm_epsilon)
        # The residual stream sums the L layers, so each starts smaller by the factor sqrt(L).
        self.out = linear(I, D, kernel_init=_uniform((I * config.num_layers) ** -0.5))

    def empty_state(self, batch_size: int) -> MixerState:
        """Return the state before the first token: zeros."""
        c = self.config
        window_BWC = jnp.zeros((batch_size, c.conv_width - 1, _channels(c)), self.dtype)
        state_BGNRP = jnp.zeros((batch_size, c.num_groups, c.d_state, c.num_heads // c.num_groups, c.head_dim))
        # XLA's CPU compiler (jaxlib 0.12.0.1) computes wrong products of 256 rows or more if it knows that a factor is
        # constant and fuses the product with the norm after it. The barrier hides the constant.
        return MixerState(window_BWC, jax.lax.optimization_barrier(state_BGNRP))

    def __call__(
        self, u_BTD: jax.Array, length_B: jax.Array | None, before: MixerState, document_BT: jax.Array | None = None
    ) -> tuple[jax.Array, MixerState]:
        """Return y_BTD and the state after each row's first length_B steps (None: all T of them).

        ``document_BT`` (int; None: one in each row) is the document of each step.
        """
        (B, T, _), c = u_BTD.shape, self.config
        z_BTI, xBC_BTC, dt_BTH = jnp.split(self.in_proj(u_BTD), (c.d_inner, c.d_inner + _channels(c)), axis=-1)  # eq. 1

        padded = jnp.concatenate([before.window_BWC, xBC_BTC], axis=1)
        W = c.conv_width - 1
        if length_B is None:
            window_BWC = padded[:, T:]
        else:
            window_BWC = jnp.take_along_axis(padded, (length_B[:, None] + jnp.arange(W))[..., None], axis=1)
        xBC_BTC = jax.nn.silu(self.conv(padded, document_BT)).astype(jnp.float32)  # eq. 2

        x_BTHP, dt_BTH, B_BTGN, C_BTGN = self.select(xBC_BTC, dt_BTH.astype(jnp.float32))
        if length_B is not None:
            dt_BTH = jnp.where(jnp.arange(T)[:, None] < length_B[:, None, None], dt_BTH, 0.0)
        log_a_BTH = -dt_BTH * jnp.exp(self.A_log[...].astype(jnp.float32))
        if document_BT is not None:
            starts_BT = jnp.pad(document_BT[:, 1:] != document_BT[:, :-1], ((0, 0), (1, 0)))
            log_a_BTH = jnp.where(starts_BT[..., None], FORGET, log_a_BTH)
        y_BTHP, state_BGNRP = ssd.scan(
            x_BTHP * dt_BTH[..., None], log_a_BTH, B_BTGN, C_BTGN, before.state_BGNRP, chunk_size=c.chunk_size
        )
        y_BTHP = y_BTHP + self.D[...].astype(jnp.float32)[:, None] * x_BTHP  # eq. 4
        y_BTI = self.norm(y_BTHP.reshape(B, T, c.d_inner), z_BTI)
        return self.out(y_BTI.astype(self.dtype)), MixerState(window_BWC, state_BGNRP)

    def select(self, xBC_BTC: jax.Array, dt_BTH: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Return x_BTHP, the step sizes dt_BTH of eq. 3, B_BTGN and C_BTGN: all inputs of the operator."""
        (B, T, _), c = xBC_BTC.shape, self.config
        GN = c.num_groups * c.d_state
        x, B_, C_ = jnp.split(xBC_BTC, (c.d_inner, c.d_inner + GN), axis=-1)
        dt_BTH = jax.nn.softplus(dt_BTH + self.dt_bias[...].astype(jnp.float32))
        groups = (B, T, c.num_groups, c.d_state)
        x_BTHP = x.reshape(B, T, c.num_heads, c.head_dim)
        return x_BTHP, jnp.clip(dt_BTH, *c.dt_limit), B_.reshape(groups), C_.reshape(groups)


class Block(nnx.Module):
    """One layer: the mixer on a normalised input, added to the residual stream."""

    def __init__(self, config: Mamba2Config, *, dtype, rngs: nnx.Rngs):
        self.norm = RMSNorm(config.d_model, epsilon=config.norm_epsilon)
        self.mixer = Mixer(config, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_BTD: jax.Array, length_B: jax.Array | None, before: MixerState, document_BT: jax.Array | None = None
    ) -> tuple[jax.Array, MixerState]:
        """Return y_BTD in x's dtype, and the layer's state after it."""
        y_BTD, after = self.mixer(self.norm(x_BTD), length_B, before, document_BT)
        return x_BTD + y_BTD.astype(x_BTD.dtype), after


class Mamba2(CausalLM):
    """Mamba-2 as a causal language model. ``dtype`` is what projections compute in; logits are float32."""

    Config = Mamba2Config
    architectures = ("Mamba2ForCausalLM",)
    trunks: ClassVar = {"Mamba2Model": "backbone."}
    axes: ClassVar = {
        "*in_proj.kernel": ("embed", "heads"),
        "*conv.kernel": (None, None, "heads"),
        "*conv.bias": ("heads",),
        "*mixer.dt_bias": ("heads",),
        "*mixer.A_log": ("heads",),
        "*mixer.D": ("heads",),
        "*mixer.norm.scale": ("heads",),
        "*mixer.out.kernel": ("heads", "embed"),
    }
    rules = staticmethod(convert.rules)

    @classmethod
    def recognises(cls, fields: Mapping[str, Any]) -> bool:
        """Return whether this is a Mamba-2 in either layout. The authors' own config.json names no architecture."""
        ssm = fields.get("ssm_cfg")
        return super().recognises(fields) or (isinstance(ssm, dict) and ssm.get("layer") == "Mamba2")

    def __init__(self, config: Mamba2Config, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        V, D = config.padded_vocab_size, config.d_model
        self.config = config
        self.embedding = nnx.Embed(V, D, embedding_init=nnx.initializers.normal(0.02), dtype=dtype, rngs=rngs)
        self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(D, epsilon=config.norm_epsilon)
        if not config.tie_embeddings:
            self.head = Linear(D, V, use_bias=False, kernel_init=_uniform(D**-0.5), dtype=dtype, rngs=rngs)

    def embed(self, input_ids: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return the embedded tokens, x_BTD. No positions are needed, because the recurrence depends on the order."""
        x_BTD = self.embedding(input_ids)
        return x_BTD.astype(jnp.float32) if self.config.residual_in_fp32 else x_BTD

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return the head's logits_BTV, float32, for normalised x_BTD; a tied head uses the embedding matrix."""
        logits_BTV = tied_logits(self.embedding, x_BTD) if self.config.tie_embeddings else self.head(x_BTD)
        return logits_BTV.astype(jnp.float32)

    def init_cache(self, batch_size: int, capacity: int | None = None) -> DecoderCache:
        """Return the states before the first token. Their size is constant, so ``capacity`` is ignored."""
        return DecoderCache.empty(batch_size, tuple(layer.mixer.empty_state(batch_size) for layer in self.layers))

    def run_layers(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        caches: Iterable[MixerState | None],
        attention_mask: jax.Array | None,
        document_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[MixerState, ...]]:
        """Return x_BTD after all layers, and each layer's state after the real tokens of each row (None if scanned)."""
        length_B = order_BT = None
        if attention_mask is not None:
            length_B = (positions_BT >= 0).sum(axis=1)
            order_BT = jnp.argsort(positions_BT < 0, axis=1, stable=True)  # real tokens first, in their order
            x_BTD = jnp.take_along_axis(x_BTD, order_BT[..., None], axis=1)
            if document_ids is not None:
                document_ids = jnp.take_along_axis(document_ids, order_BT, axis=1)

        def run(layer: Block, x_BTD: jax.Array, before: MixerState | None) -> tuple[jax.Array, MixerState]:
            before = layer.mixer.empty_state(x_BTD.shape[0]) if before is None else before
            return layer(x_BTD, length_B, before, document_ids)

        x_BTD, after = run_blocks(self.layers, run, x_BTD, caches, remat=self.remat_layers, mesh=self.mesh)
        if order_BT is not None:
            x_BTD = jnp.take_along_axis(x_BTD, jnp.argsort(order_BT, axis=1)[..., None], axis=1)
        return x_BTD, after


def _channels(config: Mamba2Config) -> int:
    """C, the channels of the convolution: x, B and C side by side."""
    return config.d_inner + 2 * config.num_groups * config.d_state


def _uniform(bound: float) -> Callable[..., jax.Array]:
    """Initializer: uniform in [-bound, bound]."""
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(key, shape, dtype, -bound, bound)
