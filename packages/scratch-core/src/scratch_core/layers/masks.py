"""Masks: which query may read which key. Positions alone decide it.

The position of a token is the number of real tokens before it in its document; padding and empty cache slots have
position -1. With this convention, one rule serves left padding, right padding, cached decoding in chunks of any length
and sliding windows.

A row may hold several documents, packed one after the other. Then the lower 22 bits of a position are the place in its
document, and the higher bits are the number of the document: place p of document d is d * MAX_PLACES + p. A document
can therefore have at most 2^22 tokens. A query reads keys from the start of its own document up to itself, so layers
need no argument for documents. Layers that use the position itself, such as rotary embeddings, take its lower bits from
:func:`places`.

Shapes: B batch, T query positions, S key positions. A mask is True where query t may read key s.
"""

import jax
import jax.numpy as jnp
from jax.core import Tracer

from scratch_core.errors import DataError

MAX_PLACES = 1 << 22
"""The largest number of tokens of a document, even if it is alone in its row."""
MAX_DOCUMENTS = (1 << 31) // MAX_PLACES
"""The largest number of documents in a row: 512, because positions are int32."""


def positions_from_mask(
    attention_mask_BT: jax.Array, start_B: jax.Array | int = 0, document_ids_BT: jax.Array | None = None
) -> jax.Array:
    """Return int32 positions_BT counting up from ``start_B`` over the real tokens (mask 1), -1 at padding.

    ``document_ids_BT`` (int; None: one document in each row) is constant over each document and changes where the next
    one begins; there the count starts again at 0. Raises DataError for more than 512 documents in a row (outside jit
    only).
    """
    real_BT = attention_mask_BT.astype(bool)
    count_BT = jnp.cumsum(real_BT, axis=1, dtype=jnp.int32)
    if document_ids_BT is None:
        return jnp.where(real_BT, jnp.reshape(start_B, (-1, 1)) + count_BT - 1, -1)
    starts_BT = jnp.pad(document_ids_BT[:, 1:] != document_ids_BT[:, :-1], ((0, 0), (1, 0)))
    number_BT = jnp.cumsum(starts_BT, axis=1, dtype=jnp.int32)
    if not isinstance(number_BT, Tracer) and (found := int(number_BT.max(initial=0)) + 1) > MAX_DOCUMENTS:
        raise DataError(f"a row holds {found} documents, at most {MAX_DOCUMENTS} fit: make the rows shorter")
    before_BT = jax.lax.cummax(jnp.where(starts_BT, count_BT - real_BT, 0), axis=1)  # real tokens before the document
    return jnp.where(real_BT, number_BT * MAX_PLACES + count_BT - 1 - before_BT, -1)


def places(positions_BT: jax.Array) -> jax.Array:
    """Return the place of each token in its document, int32 [B, T]; -1 at padding."""
    return jnp.where(positions_BT < 0, -1, positions_BT & (MAX_PLACES - 1))


def causal_mask(positions_BT: jax.Array, key_positions_BS: jax.Array, window: int | None = None) -> jax.Array:
    """Return bool mask_BTS: real keys of the query's document, at or before the query, within its window.

    A window of W lets a query read itself and the W - 1 positions before it, as in Mistral; None: no limit.
    """
    query_BT1, key_B1S = positions_BT[:, :, None], key_positions_BS[:, None, :]
    first_BT1 = jnp.maximum(query_BT1, 0) & -MAX_PLACES  # where the query's document begins; padding reads nothing
    mask_BTS = (key_B1S >= first_BT1) & (key_B1S <= query_BT1)
    if window is not None:
        mask_BTS &= key_B1S > query_BT1 - window
    return mask_BTS


def padding_mask(attention_mask_BS: jax.Array) -> jax.Array:
    """Return bool mask [B, 1, S] that lets every query read all real keys (mask 1), for bidirectional attention."""
    return attention_mask_BS.astype(bool)[:, None, :]
