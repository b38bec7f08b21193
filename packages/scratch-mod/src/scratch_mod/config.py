"""Configurations of Mixture-of-Depths (https://arxiv.org/abs/2404.02258). The paper's authors released no weights.

config.json is Llama's with three more fields: ``capacity``, ``route_every`` and ``predictor_size``.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, positive, tokens, unsupported
from scratch_core.errors import ConfigError
from scratch_core.layers import Rope, read_rope, rope_to_hf


@dataclasses.dataclass(frozen=True)
class MixtureOfDepthsConfig:
    """The hyperparameters of Mixture-of-Depths. Raises ConfigError if no model can be built from them."""

    vocab_size: int  # V
    d_model: int  # D
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    d_ff: int  # F
    capacity: float = 0.125  # C / S in the paper: the share of a text's tokens that a routed block processes
    route_every: int = 2  # of each group of this many blocks, the last is routed; 1: every block
    predictor_size: int = 64  # P, width of the predictor, which decides without later tokens
    rope: Rope = Rope(10_000.0)  # noqa: RUF009, frozen like the config
    norm_epsilon: float = 1e-5
    max_positions: int = 2048
    tie_embeddings: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
        positive(self, "norm_epsilon", "max_positions", "route_every", "predictor_size")
        if not 0 < self.capacity <= 1:
            raise ConfigError(f"capacity={self.capacity} must be greater than 0 and at most 1, the plain transformer")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even: rotary features come in pairs")

    def is_routed(self, layer: int) -> bool:
        """Return whether a block is routed: the last of every ``route_every`` blocks is, unless the capacity is 1."""
        return self.capacity < 1 and layer % self.route_every == self.route_every - 1

    def routed_tokens(self, length: int) -> int:
        """Return how many tokens of a text of this length a routed block processes: the share, rounded up."""
        return math.ceil(self.capacity * length - 1e-9)  # 0.07 * 100 is 7.000000000000001

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json, also of one that spells rotary positions as before transformers 5.

        Raises ConfigError for a missing or malformed field, and for a value that is not implemented here.
        """
        unsupported(
            fields, is_causal=True, hidden_act="silu", attention_bias=False, mlp_bias=False, attention_dropout=0
        )
        heads = field(fields, "num_attention_heads", int)
        return cls(
            vocab_size=field(fields, "vocab_size", int),
            d_model=field(fields, "hidden_size", int),
            num_layers=field(fields, "num_hidden_layers", int),
            num_heads=heads,
            num_kv_heads=field(fields, "num_key_value_heads", int, heads),
            head_dim=field(fields, "head_dim", int),
            d_ff=field(fields, "intermediate_size", int),
            capacity=field(fields, "capacity", float),
            route_every=field(fields, "route_every", int),
            predictor_size=field(fields, "predictor_size", int),
            rope=read_rope(fields),
            norm_epsilon=field(fields, "rms_norm_eps", float),
            max_positions=field(fields, "max_position_embeddings", int),
            tie_embeddings=field(fields, "tie_word_embeddings", bool),
            bos_token_id=field(fields, "bos_token_id", int, None),
            eos_token_id=tokens(fields, "eos_token_id"),
            pad_token_id=field(fields, "pad_token_id", int, None),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json."""
        return {
            "model_type": "mixture_of_depths",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.d_ff,
            "capacity": self.capacity,
            "route_every": self.route_every,
            "predictor_size": self.predictor_size,
            **rope_to_hf(self.rope),
            "rms_norm_eps": self.norm_epsilon,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tie_embeddings,
            "hidden_act": "silu",
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: byte tokens, 0.8 M parameters, two of four blocks routed."""
        return cls(
            264, 128, 4, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=384,
            max_positions=1024, bos_token_id=256, eos_token_id=257, pad_token_id=258,
        )  # fmt: skip

    @classmethod
    def mod_125m(cls) -> Self:
        """Return a model of the size of GPT-2 small; the paper gives the sizes of its models only in FLOPs."""
        return cls(32_000, 768, 12, num_heads=12, num_kv_heads=12, head_dim=64, d_ff=2048)
