"""Masks: which query may read which key. Positions alone decide it.

The position of a token is the number of real tokens before it in its row; padding and empty cache slots have position
-1. With this convention, one rule serves left padding, right padding, cached decoding in chunks of any length and
sliding windows.

Shapes: B batch, T query positions, S key positions. A mask is True where query t may read key s.
"""

import jax
import jax.numpy as jnp


def positions_from_mask(attention_mask_BT: jax.Array, start_B: jax.Array | int = 0) -> jax.Array:
    """Return int32 positions_BT counting up from ``start_B`` over the real tokens (mask 1), -1 at padding."""
    real_BT = attention_mask_BT.astype(bool)
    count_BT = jnp.cumsum(real_BT, axis=1, dtype=jnp.int32)
    return jnp.where(real_BT, jnp.reshape(start_B, (-1, 1)) + count_BT - 1, -1)


def causal_mask(positions_BT: jax.Array, key_positions_BS: jax.Array, window: int | None = None) -> jax.Array:
    """Return bool mask_BTS: real keys at or before the query, and within the last ``window`` positions.

    A window of W lets a query read itself and the W - 1 positions before it, as in Mistral.
    """
    query_BT1, key_B1S = positions_BT[:, :, None], key_positions_BS[:, None, :]
    mask_BTS = (key_B1S >= 0) & (key_B1S <= query_BT1)
    if window is not None:
        mask_BTS &= key_B1S > query_BT1 - window
    return mask_BTS


def padding_mask(attention_mask_BS: jax.Array) -> jax.Array:
    """Return bool mask [B, 1, S] that lets every query read the real keys (mask 1): attention both ways."""
    return attention_mask_BS.astype(bool)[:, None, :]
