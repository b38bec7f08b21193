"""The batches of each task: plain dictionaries of arrays, typed so that editors and readers know the keys.

Letters: B batch, T positions, S source positions, Y rows, X columns, C channels, V nodes, E edges, D features.
Token ids and labels are int32; a mask is int32 with 1 at real tokens and 0 at padding, as in Hugging Face; the label
-100 is not counted by any loss.
"""

from typing import TYPE_CHECKING, NotRequired, TypedDict

if TYPE_CHECKING:
    import jax
    import numpy as np

    Array = np.ndarray | jax.Array


class CausalLMBatch(TypedDict):
    """Text to continue: position t predicts token t + 1. The loss shifts the labels; they are not shifted here."""

    input_ids: "Array"  # int32 [B, T]
    attention_mask: NotRequired["Array"]  # int32 [B, T]
    labels: NotRequired["Array"]  # int32 [B, T]; default: input_ids where the mask is 1
    document_ids: NotRequired["Array"]  # int32 [B, T]; changes where another document begins; default: one in each row


class MaskedLMBatch(TypedDict):
    """Text with some tokens replaced; labels hold the original token there and -100 elsewhere."""

    input_ids: "Array"  # int32 [B, T]
    attention_mask: NotRequired["Array"]  # int32 [B, T]
    token_type_ids: NotRequired["Array"]  # int32 [B, T]
    labels: "Array"  # int32 [B, T]


class SequenceClassificationBatch(TypedDict):
    """One label per text."""

    input_ids: "Array"  # int32 [B, T]
    attention_mask: NotRequired["Array"]  # int32 [B, T]
    token_type_ids: NotRequired["Array"]  # int32 [B, T]
    labels: "Array"  # int32 [B]


class TokenClassificationBatch(TypedDict):
    """One label per token, -100 where there is none."""

    input_ids: "Array"  # int32 [B, T]
    attention_mask: NotRequired["Array"]  # int32 [B, T]
    token_type_ids: NotRequired["Array"]  # int32 [B, T]
    labels: "Array"  # int32 [B, T]


class QuestionAnsweringBatch(TypedDict):
    """Question and context in one sequence; the answer is the span from start to end, both inclusive."""

    input_ids: "Array"  # int32 [B, T]
    attention_mask: NotRequired["Array"]  # int32 [B, T]
    token_type_ids: NotRequired["Array"]  # int32 [B, T]; 0 question, 1 context
    start_positions: "Array"  # int32 [B]
    end_positions: "Array"  # int32 [B]


class SequenceToSequenceBatch(TypedDict):
    """A source text and its target. By default, the model's loss shifts the labels right to get decoder inputs."""

    input_ids: "Array"  # int32 [B, S]
    attention_mask: NotRequired["Array"]  # int32 [B, S]
    decoder_input_ids: NotRequired["Array"]  # int32 [B, T]
    decoder_attention_mask: NotRequired["Array"]  # int32 [B, T]
    labels: "Array"  # int32 [B, T]


class ImageClassificationBatch(TypedDict):
    """Images, channels last, and a class for each (or a distribution over classes)."""

    images: "Array"  # float32 [B, Y, X, C]
    labels: "Array"  # int32 [B], or float32 [B, classes]


class GraphBatch(TypedDict):
    """One graph. Several graphs are batched as one graph with several components."""

    x: "Array"  # float32 [V, D]
    edge_index: "Array"  # int32 [2, E]; row 0 sources, row 1 targets
    edge_weight: NotRequired["Array"]  # float32 [E]
    labels: NotRequired["Array"]  # int32 [V]
    mask: NotRequired["Array"]  # bool [V]; nodes that count
