"""BERT in JAX and Flax NNX: the encoder, its heads, sentence embeddings."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_bert.config import BertConfig
    from scratch_bert.heads import (
        BertForMaskedLM,
        BertForPreTraining,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
    )
    from scratch_bert.model import BertModel
    from scratch_bert.sentences import SentenceEncoder

SPEC = ModelSpec(
    name="bert",
    models={
        "masked_lm": "scratch_bert:BertForMaskedLM",
        "sequence_classification": "scratch_bert:BertForSequenceClassification",
        "token_classification": "scratch_bert:BertForTokenClassification",
        "question_answering": "scratch_bert:BertForQuestionAnswering",
    },
    presets={
        "tiny": 710_784,
        "bert_tiny": 4_416_698,
        "bert_mini": 11_201_594,
        "bert_small": 28_795_194,
        "bert_medium": 41_404_730,
        "base_uncased": 109_514_298,
        "base_cased": 108_340_804,
        "base_multilingual_cased": 177_974_523,
        "large_uncased": 335_174_458,
        "large_cased": 333_610_308,
        "minilm_l6": 22_744_506,
    },
    recipes={"tiny": {"steps": 1200, "learning_rate": 1e-3, "batch_size": 32, "sequence_length": 64}},
)

__all__ = [
    "SPEC",
    "BertConfig",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "SentenceEncoder",
]

__getattr__ = lazy(
    __name__,
    BertConfig="config",
    BertForMaskedLM="heads",
    BertForPreTraining="heads",
    BertForQuestionAnswering="heads",
    BertForSequenceClassification="heads",
    BertForTokenClassification="heads",
    BertModel="model",
    SentenceEncoder="sentences",
)
