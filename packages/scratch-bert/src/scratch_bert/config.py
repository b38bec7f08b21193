"""Configurations of BERT (https://arxiv.org/abs/1810.04805, section 3) and of models of its architecture.

The presets carry the figures of the released models' own config.json files. The small ones are of Turc et al. 2019,
https://arxiv.org/abs/1908.08962, table 1; MiniLM of Wang et al. 2020, https://arxiv.org/abs/2002.10957.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, positive, token, unsupported
from scratch_core.errors import ConfigError
from scratch_core.vision import check_labels, labels_to_hf, read_labels

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Raises ConfigError for sizes that cannot be built."""

    vocab_size: int  # V
    d_model: int  # D, H of the paper
    num_layers: int  # L
    num_heads: int  # N, A of the paper
    d_ff: int  # F
    max_positions: int = 512
    num_token_types: int = 2  # first text, second text
    activation: str = "gelu"  # erf; gelu_new and gelu_pytorch_tanh: tanh; relu; silu
    norm_epsilon: float = 1e-12
    dropout: float = 0.1  # after the embedding and after each branch
    attention_dropout: float = 0.1  # of attention weights
    classifier_dropout: float | None = None  # before the classifier; None: as dropout
    initial_scale: float = 0.02  # standard deviation of the initial matrices
    num_classes: int = 2  # of a classifier
    labels: tuple[str, ...] = ()  # names of the classes; (): LABEL_0 ...
    problem_type: str | None = None  # of a sequence classifier; None: regression for one class, else by the labels
    tie_embeddings: bool = True  # the head of the masked LM reads the embedding
    pad_token_id: int | None = 0

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_positions", "num_token_types")
        positive(self, "norm_epsilon", "num_classes")
        check_labels(self)
        if self.d_model % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide d_model={self.d_model}")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation={self.activation!r} must be one of: {', '.join(ACTIVATIONS)}")
        if self.problem_type not in (None, *PROBLEMS):
            raise ConfigError(f"problem_type={self.problem_type!r} must be None or one of: {', '.join(PROBLEMS)}")
        for name in ("dropout", "attention_dropout", "classifier_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ConfigError(f"{name}={rate} must be at least 0 and less than 1")

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return the same model for other classes, named by ``labels``."""
        return dataclasses.replace(self, labels=labels, num_classes=len(labels))

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json. Raises ConfigError for what is missing, malformed or unknown."""
        unsupported(
            fields,
            hidden_act=ACTIVATIONS,
            position_embedding_type="absolute",
            is_decoder=False,
            add_cross_attention=False,
            pruned_heads={},
        )
        labels = read_labels(fields)
        unnamed = labels == tuple(f"LABEL_{i}" for i in range(len(labels)))
        return cls(
            vocab_size=field(fields, "vocab_size", int, 30_522),
            d_model=field(fields, "hidden_size", int, 768),
            num_layers=field(fields, "num_hidden_layers", int, 12),
            num_heads=field(fields, "num_attention_heads", int, 12),
            d_ff=field(fields, "intermediate_size", int, 3072),
            max_positions=field(fields, "max_position_embeddings", int, 512),
            num_token_types=field(fields, "type_vocab_size", int, 2),
            activation=field(fields, "hidden_act", str, "gelu"),
            norm_epsilon=field(fields, "layer_norm_eps", float, 1e-12),
            dropout=field(fields, "hidden_dropout_prob", float, 0.1),
            attention_dropout=field(fields, "attention_probs_dropout_prob", float, 0.1),
            classifier_dropout=field(fields, "classifier_dropout", float, None),
            initial_scale=field(fields, "initializer_range", float, 0.02),
            num_classes=len(labels),
            labels=() if unnamed else labels,
            problem_type=field(fields, "problem_type", str, None),
            tie_embeddings=field(fields, "tie_word_embeddings", bool, True),
            pad_token_id=token(fields, "pad_token_id", 0),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json."""
        fields = {
            "model_type": "bert",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.d_ff,
            "max_position_embeddings": self.max_positions,
            "type_vocab_size": self.num_token_types,
            "position_embedding_type": "absolute",
            "hidden_act": self.activation,
            "layer_norm_eps": self.norm_epsilon,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "classifier_dropout": self.classifier_dropout,
            "initializer_range": self.initial_scale,
            "tie_word_embeddings": self.tie_embeddings,
            "pad_token_id": self.pad_token_id,
            **labels_to_hf(self),
        }
        return fields if self.problem_type is None else {**fields, "problem_type": self.problem_type}

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: 2,048 word pieces, 0.7 M parameters."""
        return cls(2048, 128, 2, 4, d_ff=512, max_positions=256, dropout=0.0, attention_dropout=0.0, initial_scale=0.05)

    @classmethod
    def bert_tiny(cls) -> Self:
        """Return google/bert_uncased_L-2_H-128_A-2."""
        return cls(30_522, 128, 2, 2, d_ff=512)

    @classmethod
    def bert_mini(cls) -> Self:
        """Return google/bert_uncased_L-4_H-256_A-4."""
        return cls(30_522, 256, 4, 4, d_ff=1024)

    @classmethod
    def bert_small(cls) -> Self:
        """Return google/bert_uncased_L-4_H-512_A-8."""
        return cls(30_522, 512, 4, 8, d_ff=2048)

    @classmethod
    def bert_medium(cls) -> Self:
        """Return google/bert_uncased_L-8_H-512_A-8."""
        return cls(30_522, 512, 8, 8, d_ff=2048)

    @classmethod
    def base_uncased(cls) -> Self:
        """Return bert-base-uncased."""
        return cls(30_522, 768, 12, 12, d_ff=3072)

    @classmethod
    def base_cased(cls) -> Self:
        """Return bert-base-cased."""
        return dataclasses.replace(cls.base_uncased(), vocab_size=28_996)

    @classmethod
    def base_multilingual_cased(cls) -> Self:
        """Return bert-base-multilingual-cased."""
        return dataclasses.replace(cls.base_uncased(), vocab_size=119_547)

    @classmethod
    def large_uncased(cls) -> Self:
        """Return bert-large-uncased."""
        return cls(30_522, 1024, 24, 16, d_ff=4096)

    @classmethod
    def large_cased(cls) -> Self:
        """Return bert-large-cased."""
        return dataclasses.replace(cls.large_uncased(), vocab_size=28_996)

    @classmethod
    def minilm_l6(cls) -> Self:
        """Return the encoder of all-MiniLM-L6-v2."""
        return cls(30_522, 384, 6, 12, d_ff=1536)
