r"""BERT: a Transformer encoder that reads a text both ways, and the heads that are trained on it.

Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3; the layer is that of Vaswani et al. 2017,
https://arxiv.org/abs/1706.03762, section 3.1, with the norm behind each branch. With the embeddings of the token, of
its place and of the text (first or second) that it belongs to,

$$ x_0 = \mathrm{LN}(E_\mathrm{token} + E_\mathrm{position} + E_\mathrm{type}) \tag{1} $$
$$ x'_l = \mathrm{LN}(x_{l-1} + \mathrm{MHA}(x_{l-1})) \tag{2} $$
$$ x_l = \mathrm{LN}(x'_l + W_d\, \mathrm{GELU}(W_u x'_l)) \tag{3} $$
$$ p = \tanh(W_p\, x_L^{\mathrm{[CLS]}}) \tag{4} $$

Every token reads every real token. GELU is the exact one (erf). The heads:

* masked LM (section 3.1, task 1): $\mathrm{LN}(\mathrm{GELU}(W_t\, x_L))\, E_\mathrm{token}^\top + b$ (eq. 5);
* next sentence (task 2) and classes of texts: a linear layer on $p$;
* classes of tokens: a linear layer on each $x_L$ (section 5.3, without the CRF);
* question answering (section 4.2): two numbers for each token, by which it starts or ends the answer.

Shapes: B batch, T tokens (S where they are read), D model width, N heads, H head width, F feed-forward width,
V vocabulary, C classes.
"""

from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core.data.wordpiece import WordPiece
from scratch_core.errors import ConfigError
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
from scratch_core.losses import cross_entropy, encoder_outputs, sequence_classification_loss, span_loss, token_loss
from scratch_core.pretrained import PretrainedModel
from scratch_core.tasks.masked_lm import Fill, fill_mask
from scratch_core.tasks.question_answering import Answer, answer
from scratch_core.tasks.sequence_classification import TextClass, classify
from scratch_core.tasks.token_classification import Entity, tag

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
    """Eq. 2 and 3: each norm is applied to the sum of a branch and what it read."""

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

    Padding may be on either side: places are counted from the first real token of a row, and no token reads padding.
    A subclass adds a head, and calls it ``classifier`` if it is one linear layer.
    """

    Config = BertConfig
    trunks: ClassVar = {"BertModel": "bert."}
    unread = ("bert.pooler.*", "cls.seq_relationship.*")
    buffers = (r"(bert\.)?embeddings\.position_ids",)
    remat_layers: bool = False
    """Keep only each layer's input for the backward pass, and compute the layer again there."""
    tokenizer: WordPiece | None = None
    """Turns texts into tokens; loading reads it from tokenizer.json or vocab.txt, and saving writes it."""

    def __init__(self, config: BertConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(config.initial_scale)
        D = config.d_model
        self.config, self.dtype = config, dtype
        self.embedding = nnx.Embed(config.vocab_size, D, embedding_init=init, dtype=dtype, rngs=rngs)
        self.positions = LearnedPositions(config.max_positions, D, dtype=dtype, rngs=rngs)
        self.token_types = nnx.Embed(config.num_token_types, D, embedding_init=init, dtype=dtype, rngs=rngs)
        self.embedding_norm = LayerNorm(D, epsilon=config.norm_epsilon)
        self.dropout = dropout(config.dropout, rngs)
        self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])

    @classmethod
    def rename(cls, key: str) -> str:
        """Return the table's spelling of a key: the first files, converted from TensorFlow, say gamma and beta."""
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
        """Return the last layer's output x_BTD; what it holds at padding is finite and means nothing.

        input_ids int [B, T]; attention_mask [B, T] is 1 at real tokens (None: everywhere); token_type_ids int [B, T]
        is 0 in the first text and 1 in the second (None: 0). Raises DataError for a text longer than the positions.
        """
        places_BT = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        if attention_mask is not None:  # padding behind a text is counted on, as in transformers
            places_BT = jnp.maximum(places_BT - first_real(attention_mask)[:, None], 0)
        types_BT = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x_BTD = self.embedding(input_ids) + self.token_types(types_BT) + self.positions(places_BT)
        x_BTD = self.dropout(self.embedding_norm(x_BTD))  # eq. 1
        mask = None if attention_mask is None else padding_mask(attention_mask)
        x_BTD, _ = run_blocks(
            self.layers,
            lambda layer, x_BTD, cache: (layer(x_BTD, mask), cache),
            x_BTD,
            [None] * len(self.layers),
            remat=self.remat_layers,
        )
        return x_BTD


class Pooled(Encoder):
    """An encoder with the pooler of eq. 4."""

    unread = ("cls.seq_relationship.*",)

    def __init__(self, config: BertConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.pooler = _linear(config, config.d_model, dtype, rngs)

    def pooled(self, x_BTD: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
        """Return p_BD of eq. 4, which reads the first real token, [CLS]."""
        return jnp.tanh(self.pooler(first_token(x_BTD, attention_mask)))


class BertModel(Pooled):
    """The encoder alone. Call it for ``(last_hidden_state [B, T, D], pooled [B, D])``."""

    task: ClassVar[str] = "sentence_embedding"
    architectures = ("BertModel",)
    trunks: ClassVar = {}
    rules = staticmethod(convert.bare)

    @classmethod
    def rename(cls, key: str) -> str:
        """Return the table's spelling of a key; some files keep the prefix of the model they were cut from."""
        return super().rename(key).removeprefix("bert.")

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None) -> tuple[jax.Array, jax.Array]:
        """Return the last layer's output and the pooled [CLS]; arguments as for :meth:`Encoder.hidden`."""
        x_BTD = self.hidden(input_ids, attention_mask, token_type_ids)
        return x_BTD, self.pooled(x_BTD, attention_mask)


class MaskedLMHead(nnx.Module):
    """Eq. 5. The embedding is the last matrix, and belongs to the encoder."""

    def __init__(self, config: BertConfig, *, dtype, rngs: nnx.Rngs):
        if not config.tie_embeddings:
            raise ConfigError(
                "tie_embeddings=False: a masked LM whose head does not read the embedding is not implemented; "
                "remove tie_word_embeddings from config.json if the checkpoint has no matrix of its own for the head"
            )
        self.transform = _linear(config, config.d_model, dtype, rngs)
        self.norm = LayerNorm(config.d_model, epsilon=config.norm_epsilon)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x_BTD: jax.Array, embedding: nnx.Embed) -> jax.Array:
        """Return logits_BTV, float32."""
        x_BTD = self.norm(self.activation(self.transform(x_BTD)))
        return embedding.attend(x_BTD).astype(jnp.float32) + self.bias[...]  # eq. 5


class BertForMaskedLM(Encoder):
    """BERT with eq. 5. Call it for logits [B, T, V]."""

    task: ClassVar[str] = "masked_lm"
    architectures = ("BertForMaskedLM",)
    rules = staticmethod(convert.masked_lm)

    def __init__(self, config: BertConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.head = MaskedLMHead(config, dtype=dtype, rngs=rngs)

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None) -> jax.Array:
        """Return logits [B, T, V], float32; arguments as for :meth:`Encoder.hidden`."""
        return self.head(self.hidden(input_ids, attention_mask, token_type_ids), self.embedding)

    def loss(self, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of the masked tokens; see :func:`scratch_core.losses.token_loss`."""
        return token_loss(self, batch)

    def fill_mask(self, text: str, top: int = 5) -> list[list[Fill]]:
        """Return the likeliest tokens for each [MASK]; see :func:`scratch_core.tasks.masked_lm.fill_mask`."""
        return fill_mask(self, text, top)


class BertForPreTraining(Pooled):
    """BERT with both heads of pre-training. Call it for ``(logits [B, T, V], next_sentence [B, 2])``."""

    task: ClassVar[str] = "masked_lm"
    architectures = ("BertForPreTraining",)
    unread = ()
    rules = staticmethod(convert.pre_training)

    def __init__(self, config: BertConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.head = MaskedLMHead(config, dtype=dtype, rngs=rngs)
        self.classifier = _linear(config, 2, dtype, rngs)

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None) -> tuple[jax.Array, jax.Array]:
        """Return logits [B, T, V] and [B, 2] (class 0: the second text follows the first), both float32."""
        x_BTD = self.hidden(input_ids, attention_mask, token_type_ids)
        next_BC = self.classifier(self.pooled(x_BTD, attention_mask))
        return self.head(x_BTD, self.embedding), next_BC.astype(jnp.float32)

    def loss(self, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) whose quotient is the sum of the two means, as in transformers.

        batch as for the masked LM, and "next_sentence_label" int [B]. The weight is the number of masked tokens.
        """
        logits_BTV, next_BC = encoder_outputs(self, batch)
        words, count = cross_entropy(logits_BTV, batch["labels"])
        follows, pairs = cross_entropy(next_BC, batch["next_sentence_label"])
        return words + count * follows / jnp.maximum(pairs, 1), count


class BertForSequenceClassification(Pooled):
    """BERT with a linear layer on the pooled [CLS]. Call it for logits [B, C]."""

    task: ClassVar[str] = "sequence_classification"
    architectures = ("BertForSequenceClassification",)
    rules = staticmethod(convert.sequence_classifier)

    def __init__(self, config: BertConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.classifier_dropout = _classifier_dropout(config, rngs)
        self.classifier = _linear(config, config.num_classes, dtype, rngs)

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None) -> jax.Array:
        """Return logits [B, C], float32; arguments as for :meth:`Encoder.hidden`."""
        x_BTD = self.hidden(input_ids, attention_mask, token_type_ids)
        pooled_BD = self.classifier_dropout(self.pooled(x_BTD, attention_mask))
        return self.classifier(pooled_BD).astype(jnp.float32)

    def loss(self, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) by problem_type; see :func:`scratch_core.losses.sequence_classification_loss`."""
        return sequence_classification_loss(encoder_outputs(self, batch), batch["labels"], self.config.problem_type)

    def classify(self, text: str | tuple[str, str]) -> list[TextClass]:
        """Return the classes of a text or of a pair of texts, likeliest first.

        For many texts: :func:`scratch_core.tasks.sequence_classification.classify`.
        """
        return classify(self, [text])[0]


class BertForTokenClassification(Encoder):
    """BERT with a linear layer on each token. Call it for logits [B, T, C]."""

    task: ClassVar[str] = "token_classification"
    architectures = ("BertForTokenClassification",)
    rules = staticmethod(convert.token_classifier)

    def __init__(self, config: BertConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.classifier_dropout = _classifier_dropout(config, rngs)
        self.classifier = _linear(config, config.num_classes, dtype, rngs)

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None) -> jax.Array:
        """Return logits [B, T, C], float32; arguments as for :meth:`Encoder.hidden`."""
        x_BTD = self.classifier_dropout(self.hidden(input_ids, attention_mask, token_type_ids))
        return self.classifier(x_BTD).astype(jnp.float32)

    def loss(self, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of the labelled tokens; see :func:`scratch_core.losses.token_loss`."""
        return token_loss(self, batch)

    def tag(self, text: str, aggregation: str = "first") -> list[Entity]:
        """Return the parts of a text that have a class; see :func:`scratch_core.tasks.token_classification.tag`."""
        return tag(self, [text], aggregation=aggregation)[0]


class BertForQuestionAnswering(Encoder):
    """BERT that finds the answer in a text. Call it for ``(start_logits [B, T], end_logits [B, T])``."""

    task: ClassVar[str] = "question_answering"
    architectures = ("BertForQuestionAnswering",)
    rules = staticmethod(convert.question_answering)

    def __init__(self, config: BertConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.classifier = _linear(config, 2, dtype, rngs)

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None) -> tuple[jax.Array, jax.Array]:
        """Return float32 logits of each token to start and to end the answer; arguments as for `Encoder.hidden`."""
        logits_BTC = self.classifier(self.hidden(input_ids, attention_mask, token_type_ids)).astype(jnp.float32)
        return logits_BTC[..., 0], logits_BTC[..., 1]

    def loss(self, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of both ends of the answer; see :func:`scratch_core.losses.span_loss`."""
        return span_loss(*encoder_outputs(self, batch), batch["start_positions"], batch["end_positions"])

    def answer(self, question: str, context: str, **options: Any) -> list[Answer]:
        """Return the likeliest answers; see :func:`scratch_core.tasks.question_answering.answer` for the options."""
        return answer(self, question, context, **options)


def first_token(x_BTD: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """Return the first real token of each row, [B, D]."""
    if attention_mask is None:
        return x_BTD[:, 0]
    return jnp.take_along_axis(x_BTD, first_real(attention_mask)[:, None, None], axis=1)[:, 0]


def first_real(attention_mask: jax.Array) -> jax.Array:
    """Return the index of the first 1 in each row, int [B]; 0 where there is none."""
    return (attention_mask != 0).argmax(axis=1)


def _linear(config: BertConfig, out_features: int, dtype: Any, rngs: nnx.Rngs) -> Linear:
    init = nnx.initializers.truncated_normal(config.initial_scale)
    return Linear(config.d_model, out_features, kernel_init=init, dtype=dtype, rngs=rngs)


def _classifier_dropout(config: BertConfig, rngs: nnx.Rngs) -> nnx.Dropout:
    return dropout(config.dropout if config.classifier_dropout is None else config.classifier_dropout, rngs)
