r"""The heads of BERT, which read the encoder's last layer $x_L$ or the pooled $p$ (model.py, eq. 4).

Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805:

* masked LM (section 3.1, task 1): $\mathrm{LN}(\mathrm{GELU}(W_t\, x_L))\, E_\mathrm{token}^\top + b$ (eq. 5);
* next sentence (task 2) and classes of texts: a linear layer on $p$;
* classes of tokens: a linear layer on each $x_L$ (section 5.3, without the CRF);
* question answering (section 4.2): two logits for each token, that it starts and that it ends the answer.

Each class owns its loss. Shapes: B batch, T tokens, D model width, V vocabulary, C classes.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.layers import LayerNorm, dropout
from scratch_core.losses import cross_entropy, encoder_outputs, sequence_classification_loss, span_loss, token_loss
from scratch_core.tasks.masked_lm import Fill, fill_mask
from scratch_core.tasks.question_answering import Answer, answer
from scratch_core.tasks.sequence_classification import TextClass, classify
from scratch_core.tasks.token_classification import Entity, tag

from scratch_bert import convert
from scratch_bert.config import BertConfig
from scratch_bert.model import ACTIVATIONS, Encoder, Pooled, linear


class MaskedLMHead(nnx.Module):
    """Eq. 5. The last matrix is the encoder's embedding."""

    def __init__(self, config: BertConfig, *, dtype, rngs: nnx.Rngs):
        if not config.tie_embeddings:
            raise ConfigError(
                "tie_embeddings=False: a masked LM whose head does not read the embedding is not implemented; "
                "remove tie_word_embeddings from config.json if the checkpoint has no matrix of its own for the head"
            )
        self.transform = linear(config, config.d_model, dtype, rngs)
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
        self.classifier = linear(config, 2, dtype, rngs)

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

    def fill_mask(self, text: str, top: int = 5) -> list[list[Fill]]:
        """Return the likeliest tokens for each [MASK]; see :func:`scratch_core.tasks.masked_lm.fill_mask`."""
        return fill_mask(self, text, top)


class BertForSequenceClassification(Pooled):
    """BERT with a linear layer on the pooled [CLS]. Call it for logits [B, C]."""

    task: ClassVar[str] = "sequence_classification"
    architectures = ("BertForSequenceClassification",)
    rules = staticmethod(convert.sequence_classifier)

    def __init__(self, config: BertConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.classifier_dropout = _classifier_dropout(config, rngs)
        self.classifier = linear(config, config.num_classes, dtype, rngs)

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
        self.classifier = linear(config, config.num_classes, dtype, rngs)

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
    """BERT that finds the answer to a question in a text. Call it for ``(start_logits [B, T], end_logits [B, T])``."""

    task: ClassVar[str] = "question_answering"
    architectures = ("BertForQuestionAnswering",)
    rules = staticmethod(convert.question_answering)

    def __init__(self, config: BertConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.classifier = linear(config, 2, dtype, rngs)

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


def _classifier_dropout(config: BertConfig, rngs: nnx.Rngs) -> nnx.Dropout:
    return dropout(config.dropout if config.classifier_dropout is None else config.classifier_dropout, rngs)
