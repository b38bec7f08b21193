"""Configurations of Template: the fields of its config.json, and presets with the sizes of released models."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, positive, token, unsupported
from scratch_core.errors import ConfigError
from scratch_core.layers import Rope, read_rope, rope_to_hf


@dataclasses.dataclass(frozen=True)
class TemplateConfig:
    """Raises ConfigError for sizes that cannot be built."""

    vocab_size: int  # V
    d_model: int  # D
    num_layers: int
    num_heads: int  # N
    d_ff: int  # F
    rope: Rope = Rope(10_000.0)  # noqa: RUF009, frozen like the config
    norm_epsilon: float = 1e-5
    max_positions: int = 1024
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "norm_epsilon", "max_positions")
        if self.d_model % (2 * self.num_heads):
            raise ConfigError(f"2 * num_heads={2 * self.num_heads} must divide d_model={self.d_model}")

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json.

        Raises ConfigError for a missing or malformed field, and for a field that needs something not implemented.
        """
        unsupported(fields, hidden_act="silu")
        return cls(
            vocab_size=field(fields, "vocab_size", int),
            d_model=field(fields, "hidden_size", int),
            num_layers=field(fields, "num_hidden_layers", int),
            num_heads=field(fields, "num_attention_heads", int),
            d_ff=field(fields, "intermediate_size", int),
            rope=read_rope(fields),
            norm_epsilon=field(fields, "rms_norm_eps", float, 1e-5),
            max_positions=field(fields, "max_position_embeddings", int, 1024),
            bos_token_id=token(fields, "bos_token_id"),
            eos_token_id=token(fields, "eos_token_id"),
            pad_token_id=token(fields, "pad_token_id"),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that the reference library reads."""
        return {
            "model_type": "template",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.d_ff,
            **rope_to_hf(self.rope),
            "rms_norm_eps": self.norm_epsilon,
            "max_position_embeddings": self.max_positions,
            "hidden_act": "silu",
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and a first run: byte tokens."""
        return cls(264, 64, 2, 4, 192, bos_token_id=256, eos_token_id=257, pad_token_id=258)
