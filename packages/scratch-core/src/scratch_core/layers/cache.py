"""Caches of keys and values: decoding computes the key and value of each token once.

One class serves every kind of layer, because each slot stores the position of its token:

* A layer that reads all earlier tokens has a slot for every position.
* A layer with a sliding window has as many slots as the window is long, and overwrites the oldest (a ring).
* A layer that skips tokens stores only those that it processes; the slots of the others stay empty.

A token's slot depends only on its position in its own row, so rows of different lengths are independent. Padding
(position -1) is never stored. Every leaf of a cache has the batch as its first axis, so beam search reorders the rows
by indexing every leaf.

Shapes: B batch, T new tokens, S slots, K key/value heads, H head width.
"""

import dataclasses
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.core import Tracer

from scratch_core.errors import DataError


@partial(
    jax.tree_util.register_dataclass, data_fields=["key_BSKH", "value_BSKH", "position_BS"], meta_fields=["is_ring"]
)
@dataclasses.dataclass(frozen=True)
class KeyValueCache:
    """One layer's keys and values, with the position (int32) that each slot holds, -1 where it is empty.

    In a ring, position p goes into slot p mod S. Otherwise it goes into slot p, and a position beyond the last slot is
    dropped without an error: callers check the capacity before they enter jit.
    """

    key_BSKH: jax.Array
    value_BSKH: jax.Array
    position_BS: jax.Array
    is_ring: bool = False

    @classmethod
    def empty(
        cls,
        batch_size: int,
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: Any = jnp.float32,
        *,
        window: int | None = None,
    ) -> Self:
        """Return an empty cache for ``capacity`` positions, or a ring of ``window`` slots if that is shorter."""
        is_ring = window is not None and window < capacity
        S = window if is_ring else capacity
        slots_BSKH = jnp.zeros((batch_size, S, num_kv_heads, head_dim), dtype)
        return cls(slots_BSKH, slots_BSKH, jnp.full((batch_size, S), -1, jnp.int32), is_ring)

    @property
    def capacity(self) -> int:
        """Number of slots in a row."""
        return self.key_BSKH.shape[1]

    def append(
        self, key_BTKH: jax.Array, value_BTKH: jax.Array, positions_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, Self]:
        """Return key_BSKH, value_BSKH and position_BS (-1: empty) to attend to, and the cache with the new tokens.

        ``positions_BT`` (int32) increase along a row; -1 marks a token that is not stored.

        In a ring, the last tokens of a chunk overwrite slots that its first tokens still read. A chunk of several
        tokens therefore attends to the S old slots and its own T tokens (keys are [B, S + T, K, H]). A single token
        overwrites only a slot that has left its window.
        """
        S, T = self.capacity, key_BTKH.shape[1]
        if self.is_ring:
            newest_B1 = positions_BT.max(axis=1, keepdims=True)
            slot_BT = jnp.where((positions_BT >= 0) & (positions_BT > newest_B1 - S), positions_BT % S, S)
        else:
            slot_BT = jnp.where(positions_BT >= 0, positions_BT, S)
        after = type(self)(
            _write(self.key_BSKH, key_BTKH, slot_BT),
            _write(self.value_BSKH, value_BTKH, slot_BT),
            _write(self.position_BS, positions_BT, slot_BT),
            self.is_ring,
        )
        if not self.is_ring or T == 1:
            return after.key_BSKH, after.value_BSKH, after.position_BS, after
        keys = jnp.concatenate([self.key_BSKH, key_BTKH.astype(self.key_BSKH.dtype)], axis=1)
        values = jnp.concatenate([self.value_BSKH, value_BTKH.astype(self.value_BSKH.dtype)], axis=1)
        return keys, values, jnp.concatenate([self.position_BS, positions_BT], axis=1), after


def _write(slots: jax.Array, new: jax.Array, slot_BT: jax.Array) -> jax.Array:
    """Return slots [B, S, ...] with each new token [B, T, ...] in its slot; slot S drops the token."""
    rows_B1 = jnp.arange(slots.shape[0])[:, None]
    return slots.at[rows_B1, slot_BT].set(new.astype(slots.dtype), mode="drop")


def check_batch(held: jax.Array, new: jax.Array) -> None:
    """Raise DataError unless a cache's array [B, ...] has as many rows as the new tokens [B, T]."""
    if held.shape[0] != new.shape[0]:
        raise DataError(
            f"input_ids has {new.shape[0]} rows, the cache {held.shape[0]}: "
            f"call init_cache({new.shape[0]}, capacity), or decode the rows that the cache was made for"
        )


@partial(jax.tree_util.register_dataclass, data_fields=["layers", "length_B"], meta_fields=["capacity"])
@dataclasses.dataclass(frozen=True)
class DecoderCache:
    """A decoder's caches, one for each layer, and the number of tokens that each row has read (length_B, int32).

    ``capacity`` is the number of tokens that fit in a row; None: no limit.
    """

    layers: tuple[Any, ...]
    length_B: jax.Array
    capacity: int | None = None

    @classmethod
    def empty(cls, batch_size: int, layers: tuple[Any, ...], capacity: int | None = None) -> Self:
        """Return the cache of rows that have read nothing."""
        return cls(layers, jnp.zeros(batch_size, jnp.int32), capacity)

    def check_room(self, attention_mask_BT: jax.Array) -> None:
        """Raise DataError for another batch size, or where new tokens (mask 1) do not fit (outside jit only)."""
        check_batch(self.length_B, attention_mask_BT)
        if self.capacity is None or any(isinstance(array, Tracer) for array in (self.length_B, attention_mask_BT)):
            return
        held, new = self.length_B, attention_mask_BT.astype(bool).sum(axis=1)
        row = int((held + new).argmax())
        if held[row] + new[row] > self.capacity:
            raise DataError(
                f"the cache has room for {self.capacity} tokens: row {row} holds {held[row]} and gets {new[row]} more; "
                f"make it larger with init_cache(batch_size, capacity)"
            )
