r"""T5's learned number for each head and each bucket b of the distance between key s and query t.

Source: Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.1. It is added to the scores of attention:

$$ a_{nts} = q_{nt} \cdot k_{ns} + B_{b(s - t),\, n} \tag{4} $$

Small distances have a bucket each. Larger ones share buckets, whose width grows with the logarithm of the distance.

Shapes: B batch, T query positions, S key positions, N heads.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scratch_t5.config import T5Config


def buckets(config: T5Config, *, both_ways: bool) -> np.ndarray:
    """Return the bucket of each distance s - t from -max_distance to max_distance, int32 [2 max_distance + 1].

    Larger distances are in the bucket of the largest. With ``both_ways``, half of the buckets are for keys after the
    query. Without it, all keys after the query share the first bucket.
    """
    distance = np.arange(-config.max_distance, config.max_distance + 1)
    count = config.num_buckets // 2 if both_ways else config.num_buckets
    later = np.where(distance > 0, count, 0) if both_ways else 0
    distance = np.abs(distance) if both_ways else np.maximum(-distance, 0)
    exact = count // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(config.max_distance / exact)
    far = np.minimum(exact + (ratio.astype(np.float32) * (count - exact)).astype(np.int32), count - 1)
    return (later + np.where(distance < exact, distance, far)).astype(np.int32)


class PositionBias(nnx.Module):
    """B of eq. 4: one number for each bucket and head."""

    def __init__(self, config: T5Config, *, both_ways: bool, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.d_model**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), (config.num_buckets, config.num_heads)))
        self.config, self.both_ways = config, both_ways

    def __call__(self, positions_BT: jax.Array, key_positions_BS: jax.Array) -> jax.Array:
        """Return the bias [B, N, T, S], float32; the batch axes may have length 1."""
        limit = self.config.max_distance
        distance_BTS = key_positions_BS[:, None, :] - positions_BT[:, :, None]
        table = jnp.asarray(buckets(self.config, both_ways=self.both_ways))
        bucket_BTS = table[jnp.clip(distance_BTS, -limit, limit) + limit]
        return self.embedding[...][bucket_BTS].astype(jnp.float32).transpose(0, 3, 1, 2)
