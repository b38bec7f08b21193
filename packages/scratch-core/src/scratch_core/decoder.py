"""Causal language models: everything that decoders share around their layers.

A decoder defines ``embed``, ``layers``, ``norm`` and ``logits``. :class:`CausalLM` runs them over a whole text, or over
new tokens with a cache, and defines ``start`` and ``decode``, which generation calls.

Shapes: B batch, T positions, D model width, V vocabulary.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from scratch_core.layers.blocks import run_blocks
from scratch_core.layers.cache import DecoderCache
from scratch_core.layers.masks import positions_from_mask
from scratch_core.losses import causal_lm_loss
from scratch_core.parallel import constrain
from scratch_core.pretrained import PretrainedModel


class CausalLM(PretrainedModel):
    """Base of the decoders: ``model(input_ids, attention_mask=None, document_ids=None) -> logits [B, T, V]``.

    A subclass sets ``layers``, each called as ``layer(x_BTD, positions_BT, cache) -> (x_BTD, cache)`` and with an
    ``attention`` that makes its empty cache, and ``norm``; it defines ``embed`` and ``logits``. Its config has
    ``vocab_size``, ``max_positions`` (None: no limit) and ``bos_token_id``, ``eos_token_id``, ``pad_token_id``. A model
    that runs its layers in another way overrides ``run_layers`` and ``init_cache``.
    """

    task: ClassVar[str] = "causal_lm"
    layers: Any
    norm: Any
    remat_layers: bool = False
    """If True, only each layer's input is kept for the backward pass, which computes the layer again."""
    mesh: Any = None
    """Set by :func:`scratch_core.parallel.use_mesh`: the layers' inputs and outputs are split by the batch only."""

    def embed(self, input_ids: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return x_BTD, what the first layer reads; positions_BT (int32) as in :mod:`scratch_core.layers.masks`."""
        raise NotImplementedError(f"{type(self).__name__} must define embed(input_ids, positions_BT)")

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return logits_BTV, float32, for the normalised output of the last layer."""
        raise NotImplementedError(f"{type(self).__name__} must define logits(x_BTD)")

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, document_ids: jax.Array | None = None
    ) -> jax.Array:
        """Return logits [B, T, V], float32.

        input_ids int [B, T]; attention_mask [B, T] is 1 at real tokens (None: everywhere), padding on
        either side. Logits at padding are finite and mean nothing. document_ids int [B, T] change where the next of
        several documents in a row begins (None: a row is one document). No token reads another document, and each
        document's positions begin at 0.
        """
        return self.logits(self.hidden(input_ids, attention_mask, document_ids))

    def hidden(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, document_ids: jax.Array | None = None
    ) -> jax.Array:
        """Return the residual stream after the last norm, x_BTD; arguments as for the call."""
        mask_BT = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        positions_BT = positions_from_mask(mask_BT, document_ids_BT=document_ids)
        x_BTD, caches = constrain(self.embed(input_ids, positions_BT), self.mesh), [None] * len(self.layers)
        x_BTD, _ = self.run_layers(x_BTD, positions_BT, caches, attention_mask, document_ids)
        return self.norm(x_BTD)

    def run_layers(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        caches: Iterable[Any],
        attention_mask: jax.Array | None,
        document_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """Return x_BTD after all layers, and each layer's cache with these T tokens appended (None without one).

        The positions encode padding and documents. With attention_mask None there is no padding, and with document_ids
        None each row is one document, so that a layer need not handle them. After `scan_layers(model)` the layers are
        scanned, unless there are caches.
        """
        return run_blocks(
            self.layers,
            lambda layer, x_BTD, cache: layer(x_BTD, positions_BT, cache),
            x_BTD,
            caches,
            remat=self.remat_layers,
            mesh=self.mesh,
        )

    def init_cache(self, batch_size: int, capacity: int) -> DecoderCache:
        """Return an empty cache with room for ``capacity`` tokens in each row."""
        layers = tuple(layer.attention.empty_cache(batch_size, capacity) for layer in self.layers)
        return DecoderCache.empty(batch_size, layers, None if all(layer.is_ring for layer in layers) else capacity)

    def decode(
        self,
        input_ids: jax.Array,
        cache: DecoderCache,
        attention_mask: jax.Array | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[jax.Array, DecoderCache]:
        """Return the logits of the next T tokens of each row, float32 [B, T, V], and the cache after them.

        input_ids int [B, T] continue what the cache holds; T may be 1, a few, or a whole prompt.
        attention_mask [B, T] is 0 at padding, which takes no room. last_only: return logits [B, 1, V] of only the last
        real token of each row. Raises DataError for a batch size other than the cache's and, outside jit, if the cache
        has no room.
        """
        mask_BT = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        cache.check_room(mask_BT)
        positions_BT = positions_from_mask(mask_BT, cache.length_B)
        x_BTD = self.embed(input_ids, positions_BT)
        x_BTD, layers = self.run_layers(x_BTD, positions_BT, cache.layers, attention_mask)
        length_B = jnp.maximum(cache.length_B, positions_BT.max(axis=1) + 1)
        after = DecoderCache(layers, length_B, cache.capacity)
        if last_only:
            last_B11 = positions_BT.argmax(axis=1)[:, None, None]
            x_B1D = jnp.take_along_axis(x_BTD, last_B11, axis=1)
            return self.logits(self.norm(x_B1D)), after
        return self.logits(self.norm(x_BTD)), after

    def start(self, input_ids: jax.Array, attention_mask: jax.Array, room: int) -> tuple[jax.Array, Any]:
        """Return the logits [B, 1, V] of the first new token of each row, and a cache with ``room`` for new tokens.

        input_ids and attention_mask int [B, T] are the prompts. Generation calls this once and then ``decode``.
        """
        B, T = input_ids.shape
        return self.decode(input_ids, self.init_cache(B, T + room), attention_mask, last_only=True)

    def loss(self, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of predicting each next token; see :func:`scratch_core.losses.causal_lm_loss`."""
        return causal_lm_loss(self, batch)
