r"""BERT: a Transformer encoder whose tokens attend to both sides. Its heads are in heads.py.

Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3; the layer is that of Vaswani et al. 2017,
https://arxiv.org/abs/1706.03762, section 3.1, with the norm after each branch. The input is the sum of the embeddings
of the token, of its position, and of its type (whether it is in the first or the second text):

$$ x_0 = \mathrm{LN}(E_\mathrm{token} + E_\mathrm{position} + E_\mathrm{type}) \tag{1} $$
$$ x'_l = \mathrm{LN}(x_{l-1} + \mathrm{MHA}(x_{l-1})) \tag{2} $$
$$ x_l = \mathrm{LN}(x'_l + W_d\, \mathrm{GELU}(W_u x'_l)) \tag{3} $$
$$ p = \tanh(W_p\, x_L^{\mathrm{[CLS]}}) \tag{4} $$

Every token attends to every token that is not padding. GELU is the exact form (erf).

Shapes: B batch, T query tokens, S key tokens, D model width, N heads, H head width, F feed-forward width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core.data.wordpiece import WordPiece
from scratch_core.layers import (
    MLP,
    LayerNorm,
    LearnedPositions,
    Linear,
    attend,
    dropout,
    gelu,
    padding_mask,
    run_blocks,
)
from scratch_core.parallel import constrain
from scratch_core.pretrained import PretrainedModel

from scratch_bert import convert
from scratch_bert.config import BertConfig

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": jax.nn.gelu,  # with tanh
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


class Attention(nnx.Module):
    """Multi-head self-attention. Scores and softmax are float32."""

    def __init__(self, config: BertConfig, *, dtype, rngs: nnx.Rngs):
        D, N, H = config.d_model, config.num_heads, config.d_model // config.num_heads
        init = nnx.initializers.truncated_normal(config.initial_scale)
        self.query = Linear(D, (N, H), kernel_init=init, dtype=dtype, rngs=rngs)
        self.key = Linear(D, (N, H), kernel_init=init, dtype=dtype, rngs=rngs)
        self.value = Linear(D, (N, H), kernel_init=init, dtype=dtype, rngs=rngs)
        self.out = Linear((N, H), D, kernel_init=init, dtype=dtype, rngs=rngs)
        self.dropout = dropout(config.attention_dropout, rngs)

    def __call__(self, x_BTD: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return y_BTD in ``dtype``; ``mask`` as in :func:`scratch_core.layers.attend`."""
        y_BTNH = attend(self.query(x_BTD), self.key(x_BTD), self.value(x_BTD), mask, dropout=self.dropout)
        return self.out(y_BTNH)


class Block(nnx.Module):
    """Eq. 2 and 3: each norm is applied to the sum of a branch and its input."""

    def __init__(self, config: BertConfig, *, dtype, rngs: nnx.Rngs):
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.attention_norm = LayerNorm(config.d_model, epsilon=config.norm_epsilon)
        self.feed_forward = MLP(
            config.d_model,
            config.d_ff,
            activation=ACTIVATIONS[config.activation],
            kernel_init=nnx.initializers.truncated_normal(config.initial_scale),
            dtype=dtype,
            rngs=rngs,
        )
        self.feed_forward_norm = LayerNorm(config.d_model, epsilon=config.norm_epsilon)
        self.dropout = dropout(config.dropout, rngs)

    def __call__(self, x_BTD: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return the sequence after both branches."""
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, mask)))  # eq. 2
        return self.feed_forward_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))  # eq. 3


class Encoder(PretrainedModel):
    """What all BERT models share: ``hidden(input_ids, attention_mask, token_type_ids) -> x_BTD``.

    Padding may be on either side: positions count from the first real token of a row, and no token attends to padding.
    A subclass (heads.py) adds a head. A head of one linear layer is named ``classifier``.
    """

    Config = BertConfig
    trunks: ClassVar = {"BertModel": "bert."}
    unread = ("bert.pooler.*", "cls.seq_relationship.*")
    buffers = (r"(bert\.)?embeddings\.position_ids",)
    axes: ClassVar = {  # each bias is split as the features that it is added to
        **dict.fromkeys(("*query.bias", "*key.bias", "*value.bias"), ("heads", None)),
        "*up.bias": ("feed_forward",),
        "head.bias": ("vocab",),
    }
    remat_layers: bool = False
    """Keep only each layer's input for the backward pass, and compute the layer again there."""
    mesh: Any = None
    """Set by :func:`scratch_core.parallel.use_mesh`: what the layers read and write is split by its batch alone."""
    tokenizer: WordPiece | None = None
    """Turns texts into tokens; loading reads it from tokenizer.json or vocab.txt, and saving writes it."""

    def __init__(self, config: BertConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(config.initial_scale)
        D = config.d_model
        self.config, self.dtype = config, dtype
        self.embedding = nnx.Embed(config.vocab_size, D, embedding_init=init, dtype=dtype, rngs=rngs)
        self.positions = LearnedPositions(
            config.max_positions, D, embedding_init=sinusoids(2 * config.initial_scale), dtype=dtype, rngs=rngs
        )
        self.token_types = nnx.Embed(config.num_token_types, D, embedding_init=init, dtype=dtype, rngs=rngs)
        self.embedding_norm = LayerNorm(D, epsilon=config.norm_epsilon)
        self.dropout = dropout(config.dropout, rngs)
        self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])

    @classmethod
    def rename(cls, key: str) -> str:
        """Return the table's spelling of a key: files converted from TensorFlow have gamma and beta."""
        return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")

    def read_companions(self, folder: Path) -> None:
        """Read the tokenizer, if the folder has one. Raises DataError if it cannot be read."""
        if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
            self.tokenizer = WordPiece(folder)

    def write_companions(self, folder: Path) -> None:
        """Write the tokenizer, if the model has one."""
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    def hidden(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Return the last layer's output x_BTD. At padding its values are finite and have no meaning.

        input_ids int [B, T]; attention_mask [B, T] is 1 at real tokens (None: everywhere); token_type_ids int [B, T]
        is 0 in the first text and 1 in the second (None: 0). Raises DataError for a text longer than the positions.
        """
        positions_BT = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        if attention_mask is not None:  # padding after a text has the next positions, as in transformers
            positions_BT = jnp.maximum(positions_BT - first_real(attention_mask)[:, None], 0)
        types_BT = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x_BTD = self.embedding(input_ids) + self.token_types(types_BT) + self.positions(positions_BT)
        x_BTD = constrain(self.dropout(self.embedding_norm(x_BTD)), self.mesh)  # eq. 1
        mask = None if attention_mask is None else padding_mask(attention_mask)
        x_BTD, _ = run_blocks(
            self.layers,
            lambda layer, x_BTD, cache: (layer(x_BTD, mask), cache),
            x_BTD,
            [None] * len(self.layers),
            remat=self.remat_layers,
            mesh=self.mesh,
        )
        return x_BTD


class Pooled(Encoder):
    """An encoder with the pooler of eq. 4."""

    unread = ("cls.seq_relationship.*",)

    def __init__(self, config: BertConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.pooler = linear(config, config.d_model, dtype, rngs)

    def pooled(self, x_BTD: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
        """Return p_BD of eq. 4, computed from the first real token, [CLS]."""
        return jnp.tanh(self.pooler(first_token(x_BTD, attention_mask)))


class BertModel(Pooled):
    """The encoder alone. Call it for ``(last_hidden_state [B, T, D], pooled [B, D])``."""

    task: ClassVar[str] = "sentence_embedding"
    architectures = ("BertModel",)
    trunks: ClassVar = {}
    rules = staticmethod(convert.bare)

    @classmethod
    def rename(cls, key: str) -> str:
        """Return the table's spelling of a key; some files keep the prefix of a model with a head."""
        return super().rename(key).removeprefix("bert.")

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None) -> tuple[jax.Array, jax.Array]:
        """Return the last layer's output and the pooled [CLS]; arguments as for :meth:`Encoder.hidden`."""
        x_BTD = self.hidden(input_ids, attention_mask, token_type_ids)
        return x_BTD, self.pooled(x_BTD, attention_mask)


def sinusoids(scale: float) -> Callable[..., jax.Array]:
    r"""Return the initialiser of the positions: sinusoids of root mean square ``scale``, which training changes.

    Column i is a sine, and column i + D/2 a cosine, of wavelength $2 \pi n^{2i/D}$ for n positions (Vaswani et al.
    2017, section 3.5, where n is 10,000). From random numbers a model must learn the neighbours of each position
    separately. Here the same rotation leads from every position to its neighbour, so that a small model learns it in
    fewer steps.
    """

    def initial(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
        positions, D = shape
        angles = jnp.arange(positions)[:, None] / positions ** (jnp.arange(0, D, 2) / D)
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :D]
        return (2**0.5 * scale * waves).astype(dtype)

    return initial


def first_token(x_BTD: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """Return the first real token of each row, [B, D]."""
    if attention_mask is None:
        return x_BTD[:, 0]
    return jnp.take_along_axis(x_BTD, first_real(attention_mask)[:, None, None], axis=1)[:, 0]


def first_real(attention_mask: jax.Array) -> jax.Array:
    """Return the index of the first 1 in each row, int [B]; 0 where there is none."""
    return (attention_mask != 0).argmax(axis=1)


def linear(config: BertConfig, out_features: int, dtype: Any, rngs: nnx.Rngs) -> Linear:
    """Return a linear layer from D features, initialised as those of the encoder."""
    init = nnx.initializers.truncated_normal(config.initial_scale)
    return Linear(config.d_model, out_features, kernel_init=init, dtype=dtype, rngs=rngs)
