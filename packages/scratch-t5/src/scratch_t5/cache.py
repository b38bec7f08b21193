"""What T5 keeps while it writes: for each layer of the decoder, the target's keys and values and the source's.

Shapes: B batch, S source positions, N heads, H head width.
"""

import dataclasses
from functools import partial

import jax
from scratch_core.layers import DecoderCache, KeyValueCache


@partial(jax.tree_util.register_dataclass, data_fields=["target", "key_BNSH", "value_BNHS"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """What decoding keeps for a layer: the target's keys and values so far, and the source's, computed once.

    The source's axes are in the order in which XLA's CPU compiler multiplies them. With any other order, it copies them
    for every token.
    """

    target: KeyValueCache
    key_BNSH: jax.Array
    value_BNHS: jax.Array


@partial(jax.tree_util.register_dataclass, data_fields=["decoder", "source_mask_BS"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class T5Cache:
    """What decoding keeps: the decoder's own cache, and which tokens of the source are real."""

    decoder: DecoderCache
    source_mask_BS: jax.Array
