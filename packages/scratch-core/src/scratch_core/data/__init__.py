"""Data: sources, tokenizers, text and images, batches by number, and two datasets that need no download."""

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
from scratch_core.data.image_sets import Augmentation, ImageSplit, augmented, load_images
from scratch_core.data.pipelines import ImageEvaluation, TextEvaluation, Windows, training_batches
from scratch_core.data.rows import Reading
from scratch_core.data.sources import (
    Document,
    Documents,
    open_documents,
    standard_library,
)
from scratch_core.data.text import TokenSplit, load_text
from scratch_core.data.token_files import open_tokens, save_tokens
from scratch_core.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer, Tokenizer, load_tokenizer
from scratch_core.vision.images import ImageProcessor, read_image

__all__ = [
    "Augmentation",
    "ByteTokenizer",
    "CausalLMBatch",
    "CountModels",
    "Digits",
    "Document",
    "Documents",
    "GraphBatch",
    "HuggingFaceTokenizer",
    "ImageClassificationBatch",
    "ImageEvaluation",
    "ImageProcessor",
    "ImageSplit",
    "MaskedLMBatch",
    "QuestionAnsweringBatch",
    "Reading",
    "SequenceClassificationBatch",
    "SequenceToSequenceBatch",
    "TextEvaluation",
    "TokenClassificationBatch",
    "TokenSplit",
    "Tokenizer",
    "Windows",
    "augmented",
    "load_digits",
    "load_images",
    "load_text",
    "load_tokenizer",
    "open_documents",
    "open_tokens",
    "read_image",
    "save_tokens",
    "standard_library",
    "training_batches",
]
