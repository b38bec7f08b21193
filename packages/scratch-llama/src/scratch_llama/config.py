"""Configurations of Llama 2 (https://arxiv.org/abs/2307.09288) and Llama 3 (https://arxiv.org/abs/2407.21783).

The presets have the values of the released models' config.json files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, positive, token, tokens, unsupported
from scratch_core.errors import ConfigError
from scratch_core.layers import Llama3Scaling, Rope, read_rope, rope_to_hf


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The hyperparameters of Llama. Raises ConfigError if no model can be built from them."""

    vocab_size: int  # V
    d_model: int  # D
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K; fewer than N is grouped-query attention
    head_dim: int  # H
    d_ff: int  # F
    rope: Rope = Rope(10_000.0)  # noqa: RUF009, frozen like the config
    norm_epsilon: float = 1e-5
    max_positions: int = 4096
    tie_embeddings: bool = False  # the output head uses the embedding matrix
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
        positive(self, "norm_epsilon", "max_positions")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even: rotary features come in pairs")

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json, also of one that spells rotary positions as before transformers 5.

        Raises ConfigError for a missing or malformed field, and for a value that is not implemented here.
        """
        unsupported(fields, is_causal=True, hidden_act=("silu", "swish"))
        max_positions = field(fields, "max_position_embeddings", int, 2048)
        heads, d_model = field(fields, "num_attention_heads", int), field(fields, "hidden_size", int)
        head_dim = field(fields, "head_dim", int, None)
        if head_dim is None:
            if heads < 1 or d_model % heads:
                raise ConfigError(
                    f"num_attention_heads={heads} must divide hidden_size={d_model} if config.json has no head_dim"
                )
            head_dim = d_model // heads
        return cls(
            vocab_size=field(fields, "vocab_size", int),
            d_model=d_model,
            num_layers=field(fields, "num_hidden_layers", int),
            num_heads=heads,
            num_kv_heads=field(fields, "num_key_value_heads", int, heads),
            head_dim=head_dim,
            d_ff=field(fields, "intermediate_size", int),
            rope=read_rope(fields, max_positions=max_positions),
            norm_epsilon=field(fields, "rms_norm_eps", float, 1e-6),
            max_positions=max_positions,
            tie_embeddings=field(fields, "tie_word_embeddings", bool, False),
            attention_bias=field(fields, "attention_bias", bool, False),
            mlp_bias=field(fields, "mlp_bias", bool, False),
            bos_token_id=token(fields, "bos_token_id", 1),
            eos_token_id=tokens(fields, "eos_token_id", 2),
            pad_token_id=token(fields, "pad_token_id"),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads."""
        return {
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.d_ff,
            **rope_to_hf(self.rope),
            "rms_norm_eps": self.norm_epsilon,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tie_embeddings,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "hidden_act": "silu",
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: byte tokens, 0.8 M parameters."""
        return cls(
            264, 128, 4, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=384,
            max_positions=1024, tie_embeddings=True, bos_token_id=256, eos_token_id=257, pad_token_id=258,
        )  # fmt: skip

    @classmethod
    def llama2_7b(cls) -> Self:
        """Return Llama 2 7B."""
        return cls(32_000, 4096, 32, num_heads=32, num_kv_heads=32, head_dim=128, d_ff=11_008)

    @classmethod
    def llama2_13b(cls) -> Self:
        """Return Llama 2 13B."""
        return cls(32_000, 5120, 40, num_heads=40, num_kv_heads=40, head_dim=128, d_ff=13_824)

    @classmethod
    def llama2_70b(cls) -> Self:
        """Return Llama 2 70B."""
        return cls(32_000, 8192, 80, num_heads=64, num_kv_heads=8, head_dim=128, d_ff=28_672)

    @classmethod
    def llama3_8b(cls) -> Self:
        """Return Llama 3 8B."""
        return cls(
            128_256, 4096, 32, num_heads=32, num_kv_heads=8, head_dim=128, d_ff=14_336,
            rope=Rope(500_000.0), max_positions=8192, bos_token_id=128_000, eos_token_id=128_001,
        )  # fmt: skip

    @classmethod
    def llama3_70b(cls) -> Self:
        """Return Llama 3 70B."""
        return dataclasses.replace(cls.llama3_8b(), d_model=8192, num_layers=80, num_heads=64, d_ff=28_672)

    @classmethod
    def llama3_1_8b(cls) -> Self:
        """Return Llama 3.1 8B: Llama 3 8B with rotary positions scaled for 131,072 tokens."""
        rope = Rope(500_000.0, Llama3Scaling(factor=8.0, low_turns=1.0, high_turns=4.0, original_length=8192))
        return dataclasses.replace(cls.llama3_8b(), rope=rope, max_positions=131_072)

    @classmethod
    def llama3_2_1b(cls) -> Self:
        """Return Llama 3.2 1B, whose output head is the embedding matrix."""
        rope = Rope(500_000.0, Llama3Scaling(factor=32.0, low_turns=1.0, high_turns=4.0, original_length=8192))
        return cls(
            128_256, 2048, 16, num_heads=32, num_kv_heads=8, head_dim=64, d_ff=8192,
            rope=rope, max_positions=131_072, tie_embeddings=True, bos_token_id=128_000, eos_token_id=128_001,
        )  # fmt: skip

    @classmethod
    def llama3_2_3b(cls) -> Self:
        """Return Llama 3.2 3B, whose output head is the embedding matrix."""
        return dataclasses.replace(cls.llama3_2_1b(), d_model=3072, num_layers=28, num_heads=24, head_dim=128)
