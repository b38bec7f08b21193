"""Learned positions: a vector for each place in a text, added to the embedding of the token at that place.

Source: Gehring et al. 2017, https://arxiv.org/abs/1705.03122, section 3.1, "Position Embeddings"; in a transformer:
Radford et al. 2018, GPT.

Shapes: B batch, T positions, D model width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from scratch_core.errors import DataError
from scratch_core.layers.masks import places

SMALL_NORMAL = nnx.initializers.normal(0.02)


class LearnedPositions(nnx.Module):
    """A table [num_positions, D] that is looked up by position; ``embedding_init(key, shape, dtype)`` makes it."""

    def __init__(
        self,
        num_positions: int,
        d_model: int,
        *,
        embedding_init: Callable[..., jax.Array] = SMALL_NORMAL,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        table = embedding_init(rngs.params(), (num_positions, d_model), jnp.float32)
        self.embedding, self.dtype = nnx.Param(table), dtype

    def __call__(self, positions_BT: jax.Array) -> jax.Array:
        """Return the vectors of int32 positions_BT, [B, T, D] in ``dtype``; padding (-1) gets that of position 0.

        Raises DataError for a position beyond the table. Inside jit, where values are unknown, such a position gives
        NaN.
        """
        num_positions, positions_BT = self.embedding.shape[0], places(positions_BT)
        if not isinstance(positions_BT, Tracer) and (longest := int(positions_BT.max(initial=-1)) + 1) > num_positions:
            raise DataError(
                f"a text of {longest} tokens needs {longest} positions, the model has {num_positions}: shorten the text"
            )
        table = self.embedding[...].astype(self.dtype)
        return jnp.take(table, jnp.maximum(positions_BT, 0), axis=0, mode="fill", fill_value=jnp.nan)
