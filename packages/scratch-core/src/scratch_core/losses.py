r"""Losses as (sum, weight): the total loss over the targets, and the number of targets.

The mean is their quotient. It is taken once, over all micro-batches of an accumulated step, all batches of an
evaluation, or all devices of a mesh. The result is therefore the exact mean over all targets, however unevenly padding
is distributed.

$$ \mathrm{sum} = -\sum_t w_t \log p(y_t), \qquad \mathrm{weight} = \sum_t w_t $$

Shapes: B batch, T positions, V classes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

IGNORED = -100
"""Label of a position that does not count, as in PyTorch and Hugging Face."""


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """Return the sum of cross-entropies in nats, and the number of labels that count (both float32 scalars).

    logits [..., V]. labels [...] are integers, -100 where ignored, or probabilities [..., V].
    ``label_smoothing`` mixes that share of a uniform distribution into the labels (Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567, section 7).
    """
    logits = logits.astype(jnp.float32)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        weights = jnp.ones(labels.shape[:-1])
        hit = (labels * logits).sum(axis=-1)
    else:
        weights = (labels != IGNORED).astype(jnp.float32)
        hit = jnp.where(jnp.arange(logits.shape[-1]) == labels[..., None], logits, 0.0).sum(axis=-1)
    if label_smoothing:
        hit = (1 - label_smoothing) * hit + label_smoothing * logits.mean(axis=-1)
    return (weights * (jax.nn.logsumexp(logits, axis=-1) - hit)).sum(), weights.sum()


def next_token_labels(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Return the token that each position must predict, int [B, T], -100 where the prediction is not counted.

    batch as for :func:`causal_lm_loss`.
    """
    attention_mask = batch.get("attention_mask")
    labels = batch.get("labels")
    if labels is None:
        labels = batch["input_ids"]
        if attention_mask is not None:
            labels = jnp.where(attention_mask == 1, labels, IGNORED)
    targets = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED)
    if (document_ids := batch.get("document_ids")) is not None:
        same = jnp.pad(document_ids[:, 1:] == document_ids[:, :-1], ((0, 0), (0, 1)))
        targets = jnp.where(same, targets, IGNORED)  # no document predicts the next one's first token
    return targets if attention_mask is None else jnp.where(attention_mask == 1, targets, IGNORED)


def causal_lm_inputs(batch: Mapping[str, jax.Array]) -> tuple[Any, ...]:
    """Return the arguments of a decoder's call: input_ids, attention_mask (or None), and document_ids if given."""
    documents = (batch["document_ids"],) if "document_ids" in batch else ()
    return batch["input_ids"], batch.get("attention_mask"), *documents


def causal_lm_loss(model: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return the loss of predicting each next token.

    batch: "input_ids" int32 [B, T]; optional "attention_mask" [B, T] (1: real token); optional "labels"
    [B, T], aligned with input_ids as in Hugging Face (shifted here; -100: not counted), by default the real
    tokens themselves. Padding predicts nothing: the first token after padding on the left is not counted, so padding on
    either side gives the same loss. Optional "document_ids" int [B, T] number the documents of a row: each document
    gives the loss that it gives in a row of its own.
    """
    return cross_entropy(model(*causal_lm_inputs(batch)), next_token_labels(batch))


def shifted_right(labels_BT: jax.Array, start: int, pad: int) -> jax.Array:
    """Return a decoder's input for writing ``labels_BT``: ``start``, then all labels but the last; -100 becomes pad."""
    inputs_BT = jnp.pad(labels_BT[:, :-1], ((0, 0), (1, 0)), constant_values=start)
    return jnp.where(inputs_BT == IGNORED, pad, inputs_BT)


def sequence_to_sequence_loss(model: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return the loss of writing the labels.

    batch: "input_ids" int32 [B, S], the source; optional "attention_mask" [B, S] (1: real token); "labels" int32
    [B, T], -100 where not counted; optional "decoder_input_ids" [B, T], by default the start token and the labels, see
    :func:`shifted_right`; optional "decoder_attention_mask" [B, T].
    """
    inputs = batch.get("decoder_input_ids")
    inputs = model.decoder_inputs(batch["labels"]) if inputs is None else inputs
    logits = model(batch["input_ids"], inputs, batch.get("attention_mask"), batch.get("decoder_attention_mask"))
    return cross_entropy(logits, batch["labels"])


def image_classification_loss(
    model: Any, batch: Mapping[str, jax.Array], label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Return the loss of an image classifier.

    batch: "images" float [B, rows, columns, channels]; "labels" int [B], -100 where ignored, or
    probabilities [B, V].
    """
    return cross_entropy(model(batch["images"]), batch["labels"], label_smoothing)


def accuracy(model: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return the number of correctly classified images and the number of images; a label of -100 is not counted.

    batch as for the loss, labels int [B].
    """
    right = model(batch["images"]).argmax(axis=-1) == batch["labels"]
    return right.sum().astype(jnp.float32), (batch["labels"] != IGNORED).sum().astype(jnp.float32)


def token_loss(model: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return the loss of a class for each token: a masked LM, whose classes are the vocabulary, or a tagger.

    batch: "input_ids" int32 [B, T]; optional "attention_mask" and "token_type_ids" [B, T]; "labels" int32 [B, T],
    -100 where not counted.
    """
    return cross_entropy(encoder_outputs(model, batch), batch["labels"])


def encoder_outputs(model: Any, batch: Mapping[str, jax.Array]) -> Any:
    """Return the outputs of an encoder's head for a batch with "input_ids" and optional mask and token types."""
    return model(batch["input_ids"], batch.get("attention_mask"), batch.get("token_type_ids"))


def sequence_classification_loss(
    logits: jax.Array, labels: jax.Array, problem_type: str | None
) -> tuple[jax.Array, jax.Array]:
    r"""Return the loss of a classifier of whole texts with logits [B, V].

    * single_label_classification: cross-entropy; labels int [B], -100 where not counted.
    * multi_label_classification: binary cross-entropy of each class, float labels [B, V] of 0 and 1.
    * regression: squared error; float labels [B], or [B, V] for several numbers.

    Float labels that are NaN are not counted. None: regression for V = 1, single-label for integer labels, else
    multi-label, as in transformers. The weight is the number of labels that count.
    """
    logits = logits.astype(jnp.float32)
    if problem_type is None:
        whole = jnp.issubdtype(labels.dtype, jnp.integer)
        kind = "single_label_classification" if whole else "multi_label_classification"
        problem_type = "regression" if logits.shape[-1] == 1 else kind
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels)
    labels = labels.astype(jnp.float32).reshape(logits.shape)
    counted = ~jnp.isnan(labels)
    labels = jnp.where(counted, labels, 0.0)
    squared, binary = (logits - labels) ** 2, jax.nn.softplus(logits) - labels * logits
    each = squared if problem_type == "regression" else binary
    return jnp.where(counted, each, 0.0).sum(), counted.sum().astype(jnp.float32)


def span_loss(
    start_logits_BT: jax.Array, end_logits_BT: jax.Array, start_B: jax.Array, end_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""Return the loss of finding a span: the mean of the cross-entropies of its first and of its last token.

    A position outside of the text is not counted. With $n_s$ starts and $n_e$ ends counted, the weight is
    $(n_s + n_e) / 2$ and sum / weight is transformers' $(\overline{l_s} + \overline{l_e}) / 2$.
    """
    T = start_logits_BT.shape[1]
    (start, starts), (end, ends) = (
        cross_entropy(logits_BT, jnp.where((where_B >= 0) & (where_B < T), where_B, IGNORED))
        for logits_BT, where_B in ((start_logits_BT, start_B), (end_logits_BT, end_B))
    )
    weight = (starts + ends) / 2
    return weight * (start / jnp.maximum(starts, 1) + end / jnp.maximum(ends, 1)) / 2, weight
