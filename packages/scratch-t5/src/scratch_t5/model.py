r"""T5: an encoder that reads a text, and a decoder that writes another one from it.

Sources: Raffel et al. 2020, https://arxiv.org/abs/1910.10683 (section 2.1); v1.1 and Flan-T5: Shazeer 2020,
https://arxiv.org/abs/2002.05202 (GEGLU). Every layer normalises before, and adds after, each of its parts:

$$ h = x + \mathrm{Attention}(\mathrm{RMSNorm}(x)) \tag{1} $$
$$ c = h + \mathrm{Attention}(\mathrm{RMSNorm}(h), \text{encoder's output}) \quad \text{(decoder alone)} \tag{2} $$
$$ y = c + \mathrm{FF}(\mathrm{RMSNorm}(c)) \tag{3} $$

Scores are not divided by $\sqrt{H}$; instead, the initial query kernels are smaller by that factor. Positions enter as
a learned number for each head and each bucket b of the distance between key s and query t:

$$ a_{nts} = q_{nt} \cdot k_{ns} + B_{b(s - t),\, n} \tag{4} $$

All layers of a stack share B, which `position_bias.py` computes. $\mathrm{FF}(x) = W_d f(W_u x)$ in v1.0, and
$W_d (f(W_g x) \odot W_u x)$ in v1.1.

Shapes: B batch, S source positions, T target positions, U target positions that are read (T without a cache), D model
width, N heads, H head width, V vocabulary.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core.layers import (
    DecoderCache,
    KeyValueCache,
    Linear,
    RMSNorm,
    attend,
    causal_mask,
    dropout,
    gelu,
    padding_mask,
    positions_from_mask,
    run_blocks,
    tied_logits,
)
from scratch_core.losses import sequence_to_sequence_loss, shifted_right
from scratch_core.parallel import constrain
from scratch_core.pretrained import PretrainedModel

from scratch_t5 import convert
from scratch_t5.cache import LayerCache, T5Cache
from scratch_t5.config import T5Config
from scratch_t5.position_bias import PositionBias

FUNCTIONS = {"relu": jax.nn.relu, "gelu_new": partial(jax.nn.gelu, approximate=True), "gelu": gelu, "silu": jax.nn.silu}


class Attention(nnx.Module):
    """Eq. 4, softmax and the projections around it; x attends to a memory, which may be x itself."""

    def __init__(self, config: T5Config, *, dtype, rngs: nnx.Rngs):
        D, N, H = config.d_model, config.num_heads, config.head_dim
        linear = partial(Linear, use_bias=False, dtype=dtype, rngs=rngs)
        self.query = linear(D, (N, H), kernel_init=nnx.initializers.normal((D * H) ** -0.5))
        self.key, self.value = linear(D, (N, H)), linear(D, (N, H))
        self.out = linear((N, H), D)
        self.dropout = dropout(config.dropout, rngs)
        self.dtype = dtype

    def read(self, memory_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the memory's key_BSNH and value_BSNH."""
        return self.key(memory_BSD), self.value(memory_BSD)

    def __call__(self, x_BTD, key_BSNH, value_BSNH, mask, bias=None) -> jax.Array:
        """Return y_BTD; mask and bias as in `attend`, whose axes of length 1 stand for any."""
        y_BTNH = attend(self.query(x_BTD), key_BSNH, value_BSNH, mask, bias=bias, scale=1.0, dropout=self.dropout)
        return self.out(y_BTNH)


class FeedForward(nnx.Module):
    """FF of eq. 3. The last product is float32: in float16 it overflows with the released weights."""

    def __init__(self, config: T5Config, *, dtype, rngs: nnx.Rngs):
        linear = partial(Linear, use_bias=False, rngs=rngs)
        self.gate = linear(config.d_model, config.d_ff, dtype=dtype) if config.is_gated else None
        self.up = linear(config.d_model, config.d_ff, dtype=dtype)
        self.down = linear(config.d_ff, config.d_model, dtype=jnp.float32)
        self.dropout = dropout(config.dropout, rngs)
        self.activation = FUNCTIONS[config.activation]

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Return y_BTD, float32."""
        up = self.up(x_BTD)
        wide = self.activation(up) if self.gate is None else self.activation(self.gate(x_BTD)) * up
        return self.down(self.dropout(wide))


def add(x: jax.Array, branch: jax.Array) -> jax.Array:
    """Return x + branch in x's dtype; in float16 the sum stays finite."""
    total = x.astype(jnp.float32) + branch.astype(jnp.float32)
    if x.dtype == jnp.float16:
        limit = float(jnp.finfo(jnp.float16).max)
        total = jnp.clip(total, -limit, limit)
    return total.astype(x.dtype)


class EncoderLayer(nnx.Module):
    """Eqs. 1 and 3."""

    def __init__(self, config: T5Config, *, dtype, rngs: nnx.Rngs):
        norm = partial(RMSNorm, config.d_model, epsilon=config.norm_epsilon)
        self.attention_norm, self.feed_forward_norm = norm(), norm()
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.feed_forward = FeedForward(config, dtype=dtype, rngs=rngs)
        self.dropout = dropout(config.dropout, rngs)

    def __call__(self, x_BSD, mask, bias) -> jax.Array:
        """Return y_BSD."""
        normed_BSD = self.attention_norm(x_BSD)
        attended_BSD = self.attention(normed_BSD, *self.attention.read(normed_BSD), mask, bias)
        x_BSD = add(x_BSD, self.dropout(attended_BSD))  # eq. 1
        return add(x_BSD, self.dropout(self.feed_forward(self.feed_forward_norm(x_BSD))))  # eq. 3


class DecoderLayer(nnx.Module):
    """Eqs. 1 to 3."""

    def __init__(self, config: T5Config, *, dtype, rngs: nnx.Rngs):
        norm = partial(RMSNorm, config.d_model, epsilon=config.norm_epsilon)
        self.attention_norm, self.cross_attention_norm, self.feed_forward_norm = norm(), norm(), norm()
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.cross_attention = Attention(config, dtype=dtype, rngs=rngs)
        self.feed_forward = FeedForward(config, dtype=dtype, rngs=rngs)
        self.dropout = dropout(config.dropout, rngs)

    def init_cache(self, encoded_BSD: jax.Array, capacity: int) -> LayerCache:
        """Return the cache to write up to ``capacity`` tokens for the sources that the encoder has read."""
        key_BSNH, value_BSNH = self.cross_attention.read(encoded_BSD)
        B, _, N, H = key_BSNH.shape
        target = KeyValueCache.empty(B, capacity, N, H, key_BSNH.dtype)
        return LayerCache(target, key_BSNH.transpose(0, 2, 1, 3), value_BSNH.transpose(0, 2, 3, 1))

    def __call__(self, x_BTD, positions_BT, encoded_BSD, source_mask, position_bias, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one).

        encoded_BSD is the encoder's output, None with a cache, which holds its keys and values. ``position_bias`` is
        the stack's.
        """
        normed_BTD = self.attention_norm(x_BTD)
        key_BUNH, value_BUNH = self.attention.read(normed_BTD)
        if cache is None:
            key_positions_BU = positions_BT
            source_key, source_value = self.cross_attention.read(encoded_BSD)
        else:
            key_BUNH, value_BUNH, key_positions_BU, target = cache.target.append(key_BUNH, value_BUNH, positions_BT)
            source_key, source_value = cache.key_BNSH.transpose(0, 2, 1, 3), cache.value_BNHS.transpose(0, 3, 1, 2)
            cache = dataclasses.replace(cache, target=target)
        mask, bias = causal_mask(positions_BT, key_positions_BU), position_bias(positions_BT, key_positions_BU)
        attended_BTD = self.attention(normed_BTD, key_BUNH, value_BUNH, mask, bias)
        x_BTD = add(x_BTD, self.dropout(attended_BTD))  # eq. 1
        read_BTD = self.cross_attention(self.cross_attention_norm(x_BTD), source_key, source_value, source_mask)
        x_BTD = add(x_BTD, self.dropout(read_BTD))  # eq. 2
        return add(x_BTD, self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))), cache  # eq. 3


class Encoder(nnx.Module):
    """The stack that reads the source."""

    def __init__(self, config: T5Config, *, dtype, rngs: nnx.Rngs):
        self.position_bias = PositionBias(config, both_ways=True, rngs=rngs)
        self.layers = nnx.List([EncoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.d_model, epsilon=config.norm_epsilon)
        self.dropout = dropout(config.dropout, rngs)

    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array, run: Any) -> jax.Array:
        """Return the normalised output, x_BSD; ``run`` is `run_blocks`."""
        x_BSD, places = self.dropout(x_BSD), jnp.arange(x_BSD.shape[1])[None]
        mask, bias = padding_mask(mask_BS), self.position_bias(places, places)

        def call(layer, x_BSD, cache):
            return layer(x_BSD, mask, bias), cache

        x_BSD, _ = run(self.layers, call, x_BSD, [None] * len(self.layers))
        return self.dropout(self.norm(x_BSD))


class Decoder(nnx.Module):
    """The stack that writes the target."""

    def __init__(self, config: T5Config, *, dtype, rngs: nnx.Rngs):
        self.position_bias = PositionBias(config, both_ways=False, rngs=rngs)
        self.layers = nnx.List([DecoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_decoder_layers)])
        self.norm = RMSNorm(config.d_model, epsilon=config.norm_epsilon)
        self.dropout = dropout(config.dropout, rngs)

    def __call__(self, x_BTD, positions_BT, encoded_BSD, source_mask_BS, caches, run) -> tuple[jax.Array, tuple]:
        """Return the normalised output x_BTD, and each layer's cache after these T tokens (None without one).

        encoded_BSD is the encoder's output, or None with caches; ``run`` is `run_blocks`.
        """
        source_mask = padding_mask(source_mask_BS)

        def call(layer, x_BTD, cache):
            return layer(x_BTD, positions_BT, encoded_BSD, source_mask, self.position_bias, cache)

        x_BTD, caches = run(self.layers, call, self.dropout(x_BTD), caches)
        return self.dropout(self.norm(x_BTD)), caches


class T5(PretrainedModel):
    """T5 as a sequence-to-sequence model. ``dtype`` is what the layers compute in; logits are float32."""

    Config = T5Config
    task: ClassVar[str] = "seq2seq"
    architectures = ("T5ForConditionalGeneration", "T5WithLMHeadModel")
    # Files of v1.0 hold a table for the first cross-attention, which no version of the model reads.
    buffers = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
    rules = staticmethod(convert.rules)
    axes: ClassVar = {"*position_bias.embedding": (None, "heads")}
    remat_layers: bool = False
    """Keep only each layer's input for the backward pass, and compute the layer again there."""
    mesh: Any = None
    """Set by :func:`scratch_core.parallel.use_mesh`: what the layers read and write is split by its batch alone."""

    def __init__(self, config: T5Config, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(
            config.vocab_size, config.d_model, embedding_init=nnx.initializers.normal(1.0), dtype=dtype, rngs=rngs
        )
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)
        if not config.tie_embeddings:
            self.head = Linear(config.d_model, config.vocab_size, use_bias=False, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, input_ids, decoder_input_ids, attention_mask=None, decoder_attention_mask=None) -> jax.Array:
        """Return logits [B, T, V], float32.

        input_ids int [B, S] are the source, decoder_input_ids int [B, T] the target after
        ``decoder_start_token_id``. Masks of the same shapes are 1 at real tokens (None: everywhere), padding on either
        side. Logits at padding are finite and have no meaning.
        """
        return self.logits(self.hidden(input_ids, decoder_input_ids, attention_mask, decoder_attention_mask))

    def encode(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Return the encoder's output after its norm, x_BSD."""
        mask_BS = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.encoder(constrain(self.embedding(input_ids), self.mesh), mask_BS, self._run)

    def hidden(self, input_ids, decoder_input_ids, attention_mask=None, decoder_attention_mask=None) -> jax.Array:
        """Return the decoder's output after its norm, x_BTD; arguments as for the call."""
        mask_BS = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        mask_BT = jnp.ones_like(decoder_input_ids) if decoder_attention_mask is None else decoder_attention_mask
        encoded_BSD, caches = self.encode(input_ids, attention_mask), [None] * self.config.num_decoder_layers
        x_BTD = constrain(self.embedding(decoder_input_ids), self.mesh)
        x_BTD, _ = self.decoder(x_BTD, positions_from_mask(mask_BT), encoded_BSD, mask_BS, caches, self._run)
        return x_BTD

    @property
    def _run(self) -> Any:
        return partial(run_blocks, remat=self.remat_layers, mesh=self.mesh)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return the head's logits_BTV, float32, for the decoder's output; a tied head is the embedding's table."""
        if self.config.scale_outputs:
            x_BTD = x_BTD * self.config.d_model**-0.5
        logits_BTV = tied_logits(self.embedding, x_BTD) if self.config.tie_embeddings else self.head(x_BTD)
        return logits_BTV.astype(jnp.float32)

    def loss(self, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of predicting the labels; see scratch_core.losses.sequence_to_sequence_loss."""
        return sequence_to_sequence_loss(self, batch)

    def decoder_inputs(self, labels_BT: jax.Array) -> jax.Array:
        """Return the decoder's input for these labels: the start token, then all but the last; -100 becomes padding."""
        pad = 0 if self.config.pad_token_id is None else self.config.pad_token_id
        return shifted_right(labels_BT, self.config.decoder_start_token_id, pad)

    def prefix(self, input_ids: Any, attention_mask: Any) -> tuple[Any, Any]:
        """Return the first input of the decoder, the start token, and its mask; both int [B, 1]."""
        return jnp.full_like(input_ids[:, :1], self.config.decoder_start_token_id), jnp.ones_like(input_ids[:, :1])

    def init_cache(self, input_ids: jax.Array, attention_mask: jax.Array | None, capacity: int) -> T5Cache:
        """Return the cache to write up to ``capacity`` tokens, the start token included, for sources int [B, S]."""
        mask_BS = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        encoded_BSD = self.encode(input_ids, attention_mask)
        layers = tuple(layer.init_cache(encoded_BSD, capacity) for layer in self.decoder.layers)
        return T5Cache(DecoderCache.empty(input_ids.shape[0], layers, capacity), mask_BS)

    def decode(
        self, input_ids: jax.Array, cache: T5Cache, attention_mask: jax.Array | None = None
    ) -> tuple[jax.Array, T5Cache]:
        """Return the logits of the next T tokens of each row, float32 [B, T, V], and the cache after them.

        input_ids int [B, T] continue the target; attention_mask [B, T] is 0 at padding, which takes no room. Raises
        DataError for a batch size other than the cache's and, outside jit, if the cache has no room.
        """
        mask_BT = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        held = cache.decoder
        held.check_room(mask_BT)
        positions_BT = positions_from_mask(mask_BT, held.length_B)
        x_BTD = self.embedding(input_ids)
        x_BTD, layers = self.decoder(x_BTD, positions_BT, None, cache.source_mask_BS, held.layers, self._run)
        length_B = jnp.maximum(held.length_B, positions_BT.max(axis=1) + 1)
        after = dataclasses.replace(cache, decoder=DecoderCache(layers, length_B, held.capacity))
        return self.logits(x_BTD), after

    def start(self, input_ids: jax.Array, attention_mask: jax.Array, room: int) -> tuple[jax.Array, T5Cache]:
        """Return the logits [B, 1, V] of the first token to write, and a cache with ``room`` for new tokens.

        input_ids and attention_mask int [B, S] are the sources. Generation calls this once and then ``decode``.
        """
        first, _ = self.prefix(input_ids, attention_mask)
        return self.decode(first, self.init_cache(input_ids, attention_mask, 1 + room))
