"""Data: what a batch holds, tokenizers, text as tokens, batches by number, two datasets that need no network."""

from scratch_core.data.batches import (
    CausalLMBatch,
    GraphBatch,
    ImageClassificationBatch,
    MaskedLMBatch,
    QuestionAnsweringBatch,
    SequenceClassificationBatch,
    SequenceToSequenceBatch,
    TokenClassificationBatch,
)
from scratch_core.data.counts import CountModels
from scratch_core.data.digits import Digits, load_digits
from scratch_core.data.pipelines import ImageEvaluation, Images, TextEvaluation, Windows, training_batches
from scratch_core.data.text import TokenSplit, load_text, open_tokens, save_tokens, standard_library
from scratch_core.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "ByteTokenizer",
    "CausalLMBatch",
    "CountModels",
    "Digits",
    "GraphBatch",
    "HuggingFaceTokenizer",
    "ImageClassificationBatch",
    "ImageEvaluation",
    "Images",
    "MaskedLMBatch",
    "QuestionAnsweringBatch",
    "SequenceClassificationBatch",
    "SequenceToSequenceBatch",
    "TextEvaluation",
    "TokenClassificationBatch",
    "TokenSplit",
    "Tokenizer",
    "Windows",
    "load_digits",
    "load_text",
    "load_tokenizer",
    "open_tokens",
    "save_tokens",
    "standard_library",
    "training_batches",
]
