"""Configurations of T5 v1.0 (https://arxiv.org/abs/1910.10683) and v1.1 (https://arxiv.org/abs/2002.05202, GEGLU).

The presets carry the figures of the released models' own config.json files. Flan-T5 has the sizes of v1.1.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, positive, token, tokens, unsupported
from scratch_core.errors import ConfigError

ACTIVATIONS = {"relu": "relu", "gelu_new": "gelu_new", "silu": "silu", "swish": "silu", "gelu": "gelu"}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Raises ConfigError for sizes that cannot be built."""

    vocab_size: int  # V
    d_model: int  # D
    num_layers: int  # of the encoder
    num_decoder_layers: int
    num_heads: int  # N
    head_dim: int  # H, d_kv of the paper; N * H need not be D
    d_ff: int  # F
    activation: str = "relu"  # relu, gelu_new (tanh), gelu (erf) or silu
    is_gated: bool = False  # v1.1: the feed-forward layer has a gate
    num_buckets: int = 32  # of relative positions
    max_distance: int = 128  # beyond it, all distances share a bucket
    norm_epsilon: float = 1e-6
    dropout: float = 0.1
    tie_embeddings: bool = True  # v1.0: the output head reads the embedding
    scale_outputs: bool = True  # v1.0: the decoder's output is multiplied by 1 / sqrt(D) before the head
    decoder_start_token_id: int = 0
    eos_token_id: int | tuple[int, ...] | None = 1
    pad_token_id: int | None = 0
    bos_token_id: int | None = None

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_decoder_layers", "num_heads", "head_dim", "d_ff")
        positive(self, "num_buckets", "max_distance", "norm_epsilon")
        if self.activation not in ACTIVATIONS.values():
            known = ", ".join(sorted(set(ACTIVATIONS.values())))
            raise ConfigError(f"activation={self.activation!r} must be one of: {known}")
        if self.num_buckets % 2 or self.num_buckets < 4:
            raise ConfigError(f"num_buckets={self.num_buckets} must be even and at least 4: half of them look ahead")
        if self.max_distance <= self.num_buckets // 2:
            raise ConfigError(
                f"max_distance={self.max_distance} must be more than half of num_buckets={self.num_buckets}: "
                "nearer distances have a bucket each"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be at least 0 and less than 1")
        if not 0 <= self.decoder_start_token_id < self.vocab_size:
            raise ConfigError(
                f"decoder_start_token_id={self.decoder_start_token_id} must be in [0, vocab_size={self.vocab_size})"
            )

    @property
    def max_positions(self) -> None:
        """No limit: positions are relative."""
        return None

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json. Raises ConfigError for what is missing, malformed or unknown."""
        unsupported(fields, is_decoder=False, is_encoder_decoder=True)
        projection = field(fields, "feed_forward_proj", str, "relu")
        gated, dash, name = projection.partition("-")
        if dash and gated != "gated":
            raise ConfigError(f"config.json: feed_forward_proj={projection!r} must be ACTIVATION or gated-ACTIVATION")
        name = name if dash else gated
        name = "gelu_new" if projection == "gated-gelu" else name  # the released v1.1 models mean the tanh form
        if name not in ACTIVATIONS:
            raise ConfigError(
                f"config.json: feed_forward_proj={projection!r} is not implemented (implemented: "
                f"{', '.join(ACTIVATIONS)}, each also as gated-...)"
            )
        num_layers = field(fields, "num_layers", int, 6)
        tied = field(fields, "tie_word_embeddings", bool, True)
        return cls(
            vocab_size=field(fields, "vocab_size", int, 32_128),
            d_model=field(fields, "d_model", int, 512),
            num_layers=num_layers,
            num_decoder_layers=field(fields, "num_decoder_layers", int, num_layers),
            num_heads=field(fields, "num_heads", int, 8),
            head_dim=field(fields, "d_kv", int, 64),
            d_ff=field(fields, "d_ff", int, 2048),
            activation=ACTIVATIONS[name],
            is_gated=bool(dash),
            num_buckets=field(fields, "relative_attention_num_buckets", int, 32),
            max_distance=field(fields, "relative_attention_max_distance", int, 128),
            norm_epsilon=field(fields, "layer_norm_epsilon", float, 1e-6),
            dropout=field(fields, "dropout_rate", float, 0.1),
            tie_embeddings=tied,
            scale_outputs=field(fields, "scale_decoder_outputs", bool, tied),
            decoder_start_token_id=field(fields, "decoder_start_token_id", int, 0),
            eos_token_id=tokens(fields, "eos_token_id", 1),
            pad_token_id=token(fields, "pad_token_id", 0),
            bos_token_id=token(fields, "bos_token_id"),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads."""
        name = "gelu" if self.is_gated and self.activation == "gelu_new" else self.activation
        return {
            "model_type": "t5",
            "is_encoder_decoder": True,
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "num_layers": self.num_layers,
            "num_decoder_layers": self.num_decoder_layers,
            "num_heads": self.num_heads,
            "d_kv": self.head_dim,
            "d_ff": self.d_ff,
            "feed_forward_proj": f"gated-{name}" if self.is_gated else name,
            "relative_attention_num_buckets": self.num_buckets,
            "relative_attention_max_distance": self.max_distance,
            "layer_norm_epsilon": self.norm_epsilon,
            "dropout_rate": self.dropout,
            "tie_word_embeddings": self.tie_embeddings,
            "scale_decoder_outputs": self.scale_outputs,
            "decoder_start_token_id": self.decoder_start_token_id,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: byte tokens with 64 sentinels, 0.5 M parameters."""
        return cls(
            328, 96, 2, 2, num_heads=4, head_dim=24, d_ff=256, dropout=0.0, activation="gelu_new", is_gated=True,
            decoder_start_token_id=258, eos_token_id=257, pad_token_id=258, bos_token_id=256,
        )  # fmt: skip

    @classmethod
    def t5_small(cls) -> Self:
        """Return T5 v1.0 small."""
        return cls(32_128, 512, 6, 6, num_heads=8, head_dim=64, d_ff=2048)

    @classmethod
    def t5_base(cls) -> Self:
        """Return T5 v1.0 base."""
        return cls(32_128, 768, 12, 12, num_heads=12, head_dim=64, d_ff=3072)

    @classmethod
    def t5_large(cls) -> Self:
        """Return T5 v1.0 large."""
        return cls(32_128, 1024, 24, 24, num_heads=16, head_dim=64, d_ff=4096)

    @classmethod
    def t5_3b(cls) -> Self:
        """Return T5 v1.0 3B: 32 heads of 128 features, four times the width of the model."""
        return cls(32_128, 1024, 24, 24, num_heads=32, head_dim=128, d_ff=16_384)

    @classmethod
    def t5_11b(cls) -> Self:
        """Return T5 v1.0 11B."""
        return cls(32_128, 1024, 24, 24, num_heads=128, head_dim=128, d_ff=65_536)

    @classmethod
    def _v1_1(cls, d_model: int, num_layers: int, num_heads: int, d_ff: int) -> Self:
        return cls(
            32_128, d_model, num_layers, num_layers, num_heads=num_heads, head_dim=64, d_ff=d_ff,
            activation="gelu_new", is_gated=True, tie_embeddings=False, scale_outputs=False,
        )  # fmt: skip

    @classmethod
    def v1_1_small(cls) -> Self:
        """Return T5 v1.1 small, and Flan-T5 small."""
        return cls._v1_1(512, 8, 6, 1024)

    @classmethod
    def v1_1_base(cls) -> Self:
        """Return T5 v1.1 base, and Flan-T5 base."""
        return cls._v1_1(768, 12, 12, 2048)

    @classmethod
    def v1_1_large(cls) -> Self:
        """Return T5 v1.1 large, and Flan-T5 large."""
        return cls._v1_1(1024, 24, 16, 2816)

    @classmethod
    def v1_1_xl(cls) -> Self:
        """Return T5 v1.1 XL, and Flan-T5 XL."""
        return cls._v1_1(2048, 24, 32, 5120)

    @classmethod
    def v1_1_xxl(cls) -> Self:
        """Return T5 v1.1 XXL, and Flan-T5 XXL."""
        return cls._v1_1(4096, 24, 64, 10_240)
