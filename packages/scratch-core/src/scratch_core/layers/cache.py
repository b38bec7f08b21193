"""Keys and values of the tokens already read, so that decoding reads each token once.

Two caches with one interface. :class:`KeyValueCache` has a slot for every position. :class:`RingCache`
has as many slots as a sliding window has positions, and overwrites the oldest. In both a token's slot is
a function of its position in its own row, so rows of different lengths stay independent, and padding
(position -1) is never stored.

Writing outside the cache is dropped, not clamped: callers check the capacity before they enter jit.

Shapes: B batch, T new tokens, S slots, K key/value heads, H head width.
"""

import dataclasses
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
from jax.core import Tracer

from scratch_core.errors import DataError


def _write(slots_BSKH: jax.Array, new_BTKH: jax.Array, slot_BT: jax.Array) -> jax.Array:
    """Return slots_BSKH with each new token in its slot; a slot of S or more drops the token."""
    rows_B1 = jnp.arange(slots_BSKH.shape[0])[:, None]
    return slots_BSKH.at[rows_B1, slot_BT].set(new_BTKH.astype(slots_BSKH.dtype), mode="drop")


@partial(jax.tree_util.register_dataclass, data_fields=["key_BSKH", "value_BSKH", "length_B"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class KeyValueCache:
    """One layer's cache with a slot per position; ``length_B`` (int32) counts the tokens of each row."""

    key_BSKH: jax.Array
    value_BSKH: jax.Array
    length_B: jax.Array

    @classmethod
    def empty(cls, batch_size: int, capacity: int, num_kv_heads: int, head_dim: int, dtype=jnp.float32) -> Self:
        """Return a cache for ``capacity`` positions, holding none."""
        slots_BSKH = jnp.zeros((batch_size, capacity, num_kv_heads, head_dim), dtype)
        return cls(slots_BSKH, slots_BSKH, jnp.zeros(batch_size, jnp.int32))

    @property
    def capacity(self) -> int:
        """Number of positions that fit in a row."""
        return self.key_BSKH.shape[1]

    def append(
        self, key_BTKH: jax.Array, value_BTKH: jax.Array, positions_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, Self]:
        """Return key_BSKH, value_BSKH and their positions_BS (-1: empty) to attend to, and the cache after.

        ``positions_BT`` continue from ``length_B``, with -1 at padding.
        """
        S = self.capacity
        slot_BT = jnp.where(positions_BT >= 0, positions_BT, S)
        key_BSKH, value_BSKH = _write(self.key_BSKH, key_BTKH, slot_BT), _write(self.value_BSKH, value_BTKH, slot_BT)
        length_B = jnp.maximum(self.length_B, positions_BT.max(axis=1) + 1)
        slot_S = jnp.arange(S, dtype=jnp.int32)
        key_positions_BS = jnp.where(slot_S < length_B[:, None], slot_S, -1)
        return key_BSKH, value_BSKH, key_positions_BS, type(self)(key_BSKH, value_BSKH, length_B)


@partial(jax.tree_util.register_dataclass, data_fields=["key_BSKH", "value_BSKH", "length_B"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class RingCache:
    """One layer's cache of the last S positions, S being the sliding window; position p is in slot p mod S."""

    key_BSKH: jax.Array
    value_BSKH: jax.Array
    length_B: jax.Array

    @classmethod
    def empty(cls, batch_size: int, window: int, num_kv_heads: int, head_dim: int, dtype=jnp.float32) -> Self:
        """Return a ring of ``window`` slots, holding none."""
        slots_BSKH = jnp.zeros((batch_size, window, num_kv_heads, head_dim), dtype)
        return cls(slots_BSKH, slots_BSKH, jnp.zeros(batch_size, jnp.int32))

    def _positions(self) -> jax.Array:
        """Return positions_BS: the newest position that falls in each slot, -1 where there is none."""
        S = self.key_BSKH.shape[1]
        last_B1 = self.length_B[:, None] - 1
        positions_BS = last_B1 - (last_B1 - jnp.arange(S, dtype=jnp.int32)) % S
        return jnp.where(positions_BS >= 0, positions_BS, -1)

    def append(
        self, key_BTKH: jax.Array, value_BTKH: jax.Array, positions_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, Self]:
        """Return keys, values and their positions to attend to, and the cache after.

        The early tokens of a chunk still read what its late tokens overwrite, so a chunk attends to the
        S old slots and its own T tokens side by side: keys are [B, S + T, K, H]. A single token overwrites
        only what has left its window, and attends to the S slots after the write.
        """
        S, T = self.key_BSKH.shape[1], key_BTKH.shape[1]
        length_B = jnp.maximum(self.length_B, positions_BT.max(axis=1) + 1)
        kept_BT = (positions_BT >= 0) & (positions_BT >= length_B[:, None] - S)
        slot_BT = jnp.where(kept_BT, positions_BT % S, S)
        after = type(self)(
            _write(self.key_BSKH, key_BTKH, slot_BT), _write(self.value_BSKH, value_BTKH, slot_BT), length_B
        )
        if T == 1:
            return after.key_BSKH, after.value_BSKH, after._positions(), after
        keys = jnp.concatenate([self.key_BSKH, key_BTKH.astype(self.key_BSKH.dtype)], axis=1)
        values = jnp.concatenate([self.value_BSKH, value_BTKH.astype(self.value_BSKH.dtype)], axis=1)
        return keys, values, jnp.concatenate([self._positions(), positions_BT], axis=1), after


def check_batch(held: jax.Array, new: jax.Array) -> None:
    """Raise DataError unless a cache's array [B, ...] has as many rows as the new tokens [B, T]."""
    if len(held) != len(new):
        raise DataError(
            f"input_ids has {len(new)} rows, the cache {len(held)}: "
            "make it with init_cache(batch_size, capacity) for that batch size"
        )


@partial(jax.tree_util.register_dataclass, data_fields=["layers"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class DecoderCache:
    """A decoder's caches, one for each layer."""

    layers: tuple[KeyValueCache | RingCache, ...]

    @property
    def length_B(self) -> jax.Array:
        """Tokens that each row holds, int32."""
        return self.layers[0].length_B

    def check_room(self, attention_mask_BT: jax.Array) -> None:
        """Raise DataError for another batch size, or where new tokens (mask 1) do not fit: that, outside jit alone."""
        check_batch(self.length_B, attention_mask_BT)
        capacity = min((layer.capacity for layer in self.layers if isinstance(layer, KeyValueCache)), default=None)
        if capacity is None or any(isinstance(array, Tracer) for array in (self.length_B, attention_mask_BT)):
            return
        held, new = self.length_B, attention_mask_BT.astype(bool).sum(axis=1)
        row = int((held + new).argmax())
        if held[row] + new[row] > capacity:
            raise DataError(
                f"the cache has room for {capacity} tokens: row {row} holds {held[row]} and gets {new[row]} more; "
                f"make it larger with init_cache(batch_size, capacity)"
            )
