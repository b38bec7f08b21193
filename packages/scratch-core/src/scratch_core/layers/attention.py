r"""Attention with one key/value head per query head, one for all, or one for each group.

Each query of a position reads a weighted mean of the values of all positions (Vaswani et al. 2017,
https://arxiv.org/abs/1706.03762, eq. 1), with the bias and the mask in $m$:

$$ y = \mathrm{softmax}\left(q k^\top / \sqrt{H} + m\right) v \tag{1} $$

* Multi-head (the same paper, section 3.2.2): N heads with keys and values of their own.
* Multi-query (Shazeer 2019, https://arxiv.org/abs/1911.02150, section 3): the N query heads share one
  key and value head, so that decoding reads N times less memory.
* Grouped-query (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245, section 2.2): with $G = N / K$,
  query head $n$ reads key/value head $\lfloor n / G \rfloor$. K = N is multi-head, K = 1 multi-query.

Scores and softmax are float32. A query that may read no key gets the mean of all values. No caller uses this result; it
only has to be finite.

Shapes: B batch, T query positions, S key positions, D model width, E memory width, N query heads,
K key/value heads, G query heads per key/value head, H head width.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from scratch_core.errors import ConfigError
from scratch_core.layers.cache import KeyValueCache
from scratch_core.layers.linear import Linear
from scratch_core.layers.masks import causal_mask
from scratch_core.layers.rope import Rope

BLOCKED = -1e30  # finite, so that the softmax is finite where a query may read no key


def attend(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    mask_BTS: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    r"""Return y_BTNH of eq. 1 in the values' dtype, for any K that divides N.

    mask_BTS (bool; [T, S], or [B, T, S] with axes of length 1) is True where query t may read key s; None: everywhere.
    bias (float, broadcasts to [B, N, T, S]) is added to the scaled scores, as by ALiBi and T5. scale multiplies the
    products of queries and keys; None: $1 / \sqrt{H}$. dropout is applied to the weights, after the softmax.
    """
    B, T, N, H = query_BTNH.shape
    S, K = key_BSKH.shape[1:3]
    query_BTKGH = query_BTNH.reshape(B, T, K, N // K, H)  # n = k * G + g
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", query_BTKGH, key_BSKH, preferred_element_type=jnp.float32)
    scores_BKGTS = scores_BKGTS * (H**-0.5 if scale is None else scale)
    if bias is not None:
        bias_BNTS = jnp.broadcast_to(bias.astype(jnp.float32), (B, N, T, S))
        scores_BKGTS = scores_BKGTS + bias_BNTS.reshape(scores_BKGTS.shape)
    if mask_BTS is not None:
        mask_BTS = jnp.broadcast_to(mask_BTS, (B, T, S))  # the index below needs the axis B
        scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, BLOCKED)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(value_BSKH.dtype)
    if dropout is not None:
        weights_BKGTS = dropout(weights_BKGTS)
    y_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, value_BSKH)  # eq. 1
    return y_BTKGH.reshape(B, T, N, H)


class MultiHeadAttention(nnx.Module):
    """Attention from x to a memory, or from x to itself, with N = K heads.

    d_model is D, num_heads N, head_dim H (default D / N), d_memory the width of the memory (default D).
    Raises ConfigError if head_dim is left out and num_heads does not divide d_model.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_dim: int | None = None,
        *,
        d_memory: int | None = None,
        use_bias: bool = True,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        H = head_dim or _head_dim(d_model, num_heads)
        project = partial(Linear, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.query = project(d_model, (num_heads, H))
        self.key = project(d_memory or d_model, (num_heads, H))
        self.value = project(d_memory or d_model, (num_heads, H))
        self.out = project((num_heads, H), d_model)

    def __call__(
        self, x_BTD: jax.Array, memory_BSE: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Return y_BTD in ``dtype``; ``mask`` as in :func:`attend`."""
        memory_BSE = x_BTD if memory_BSE is None else memory_BSE
        return self.out(attend(self.query(x_BTD), self.key(memory_BSE), self.value(memory_BSE), mask))


class MultiQueryAttention(nnx.Module):
    """Attention from x to a memory, or from x to itself, with N query heads and a single key/value head.

    Written as in Shazeer 2019, section 3, whose einsums write ``n, m, h, k`` for our T, S, N, H.
    Arguments and errors as in :class:`MultiHeadAttention`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_dim: int | None = None,
        *,
        d_memory: int | None = None,
        use_bias: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        H = head_dim or _head_dim(d_model, num_heads)
        project = partial(Linear, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.query = project(d_model, (num_heads, H))
        self.key = project(d_memory or d_model, H)
        self.value = project(d_memory or d_model, H)
        self.out = project((num_heads, H), d_model)

    def __call__(
        self, x_BTD: jax.Array, memory_BSE: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Return y_BTD in ``dtype``; ``mask`` as in :func:`attend`."""
        memory_BSE = x_BTD if memory_BSE is None else memory_BSE
        query_BTNH = self.query(x_BTD)  # bnd,hdk->bhnk
        key_BSH = self.key(memory_BSE)  # bmd,dk->bmk
        value_BSH = self.value(memory_BSE)  # bmd,dv->bmv
        scores_BNTS = jnp.einsum("BTNH,BSH->BNTS", query_BTNH, key_BSH, preferred_element_type=jnp.float32)
        scores_BNTS = scores_BNTS * query_BTNH.shape[-1] ** -0.5
        if mask is not None:
            mask_BTS = jnp.broadcast_to(mask, (*x_BTD.shape[:2], key_BSH.shape[1]))
            scores_BNTS = jnp.where(mask_BTS[:, None], scores_BNTS, BLOCKED)
        weights_BNTS = jax.nn.softmax(scores_BNTS, axis=-1).astype(value_BSH.dtype)
        return self.out(jnp.einsum("BNTS,BSH->BTNH", weights_BNTS, value_BSH))  # eq. 1


class GroupedQueryAttention(nnx.Module):
    """Causal self-attention of a decoder, with rotary positions and an optional key/value cache.

    d_model is D, num_heads N, num_kv_heads K, head_dim H. Without ``rope``, queries and keys are not rotated. A query
    reads the last ``window`` positions up to its own; None: all of them. Projections run in ``dtype``. Raises
    ConfigError if num_kv_heads does not divide num_heads.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        rope: Rope | None = None,
        window: int | None = None,
        use_bias: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_heads % num_kv_heads:
            raise ConfigError(f"num_kv_heads={num_kv_heads} must divide num_heads={num_heads}")
        project = partial(Linear, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.query = project(d_model, (num_heads, head_dim))
        self.key = project(d_model, (num_kv_heads, head_dim))
        self.value = project(d_model, (num_kv_heads, head_dim))
        self.out = project((num_heads, head_dim), d_model)
        self.rope, self.window, self.dtype = rope, window, dtype

    def empty_cache(self, batch_size: int, capacity: int) -> KeyValueCache:
        """Return an empty cache for ``capacity`` positions, or for the window if it is shorter."""
        _, K, H = self.key.kernel.shape
        return KeyValueCache.empty(batch_size, capacity, K, H, self.dtype, window=self.window)

    def __call__(
        self, x_BTD: jax.Array, positions_BT: jax.Array, cache: KeyValueCache | None = None
    ) -> tuple[jax.Array, KeyValueCache | None]:
        """Return y_BTD in ``dtype`` and the cache with these T tokens appended (None without one).

        positions_BT (int32) count the real tokens of each row from 0, and are -1 at padding. They rotate queries and
        keys, and they alone decide which query reads which key.
        """
        query_BTNH, key_BSKH, value_BSKH = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        if self.rope is not None:
            query_BTNH, key_BSKH = self.rope(query_BTNH, positions_BT), self.rope(key_BSKH, positions_BT)
        key_positions_BS = positions_BT
        if cache is not None:
            key_BSKH, value_BSKH, key_positions_BS, cache = cache.append(key_BSKH, value_BSKH, positions_BT)
        mask_BTS = causal_mask(positions_BT, key_positions_BS, self.window)
        return self.out(attend(query_BTNH, key_BSKH, value_BSKH, mask_BTS)), cache


def _head_dim(d_model: int, num_heads: int) -> int:
    if d_model % num_heads:
        raise ConfigError(f"num_heads={num_heads} must divide d_model={d_model}, or head_dim must be given")
    return d_model // num_heads
