"""Configurations of Mixtral (https://arxiv.org/abs/2401.04088, table 1).

The presets have the values of the released models' config.json files.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, positive, tokens, unsupported
from scratch_core.errors import ConfigError
from scratch_core.layers import Rope, read_rope, rope_to_hf


@dataclasses.dataclass(frozen=True)
class MixtralConfig:
    """The hyperparameters of Mixtral. Raises ConfigError if no model can be built from them."""

    vocab_size: int  # V
    d_model: int  # D, the paper's dim
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K, fewer than N: grouped-query attention
    head_dim: int  # H
    d_ff: int  # F of one expert, the paper's hidden_dim
    num_experts: int = 8  # E
    experts_per_token: int = 2  # the paper's K
    window: int | None = None  # a query attends to this many positions; None: all, as in the released models
    rope: Rope = Rope(1e6)  # noqa: RUF009, frozen like the config
    norm_epsilon: float = 1e-5
    max_positions: int = 32_768
    tie_embeddings: bool = False  # the output head uses the embedding matrix
    output_router_logits: bool = False  # transformers' name; True adds the balancing loss to the model's loss
    router_loss_weight: float = 0.001  # of the balancing loss in the model's loss
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
        positive(self, "num_experts", "experts_per_token", "norm_epsilon", "max_positions")
        if self.window is not None:
            positive(self, "window")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even: rotary features come in pairs")
        if self.experts_per_token > self.num_experts:
            raise ConfigError(
                f"experts_per_token={self.experts_per_token} must be at most num_experts={self.num_experts}"
            )
        if not math.isfinite(self.router_loss_weight):
            raise ConfigError(f"router_loss_weight={self.router_loss_weight} must be a finite number")

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json, also of one that spells rotary positions as before transformers 5.

        Raises ConfigError for a missing or malformed field, and for a value that is not implemented here.
        """
        unsupported(fields, is_causal=True, hidden_act="silu", attention_dropout=(0, 0.0), router_jitter_noise=(0, 0.0))
        heads, d_model = field(fields, "num_attention_heads", int), field(fields, "hidden_size", int)
        head_dim = field(fields, "head_dim", int, None)
        if head_dim is None:
            if heads < 1 or d_model % heads:
                raise ConfigError(
                    f"num_attention_heads={heads} must divide hidden_size={d_model} if config.json has no head_dim"
                )
            head_dim = d_model // heads
        # In transformers, an absent number of key/value heads is 8; null means the number of query heads.
        kv_heads = field(fields, "num_key_value_heads", int, heads if "num_key_value_heads" in fields else 8)
        return cls(
            vocab_size=field(fields, "vocab_size", int),
            d_model=d_model,
            num_layers=field(fields, "num_hidden_layers", int),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            d_ff=field(fields, "intermediate_size", int),
            num_experts=field(fields, "num_local_experts", int, 8),
            experts_per_token=field(fields, "num_experts_per_tok", int, 2),
            window=field(fields, "sliding_window", int, None),
            rope=read_rope(fields, default_theta=1e6),
            norm_epsilon=field(fields, "rms_norm_eps", float, 1e-5),
            max_positions=field(fields, "max_position_embeddings", int, 131_072),
            tie_embeddings=field(fields, "tie_word_embeddings", bool, False),
            output_router_logits=field(fields, "output_router_logits", bool, False),
            router_loss_weight=field(fields, "router_aux_loss_coef", float, 0.001),
            bos_token_id=field({"bos_token_id": 1, **fields}, "bos_token_id", int, None),
            eos_token_id=tokens({"eos_token_id": 2, **fields}, "eos_token_id"),
            pad_token_id=field(fields, "pad_token_id", int, None),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads."""
        return {
            "model_type": "mixtral",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.d_ff,
            "num_local_experts": self.num_experts,
            "num_experts_per_tok": self.experts_per_token,
            "sliding_window": self.window,
            **rope_to_hf(self.rope),
            "rms_norm_eps": self.norm_epsilon,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tie_embeddings,
            "output_router_logits": self.output_router_logits,
            "router_aux_loss_coef": self.router_loss_weight,
            "hidden_act": "silu",
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: byte tokens, 8 experts, trained with the balancing loss."""
        return cls(
            264, 128, 4, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=128, rope=Rope(10_000.0),
            max_positions=1024, tie_embeddings=True, output_router_logits=True, router_loss_weight=0.01,
            bos_token_id=256, eos_token_id=257, pad_token_id=258,
        )  # fmt: skip

    @classmethod
    def mixtral_8x7b(cls) -> Self:
        """Return Mixtral 8x7B: 47 B parameters, of which a token uses 13 B.

        Source: the paper's table 1, and the config.json, copied at
        https://huggingface.co/prometheus-eval/prometheus-8x7b-v2.0.
        """
        return cls(32_000, 4096, 32, num_heads=32, num_kv_heads=8, head_dim=128, d_ff=14_336, router_loss_weight=0.02)

    @classmethod
    def mixtral_8x22b(cls) -> Self:
        """Return Mixtral 8x22B: 141 B parameters, of which a token uses 39 B.

        Source: https://huggingface.co/mistral-community/Mixtral-8x22B-v0.1. The instruction-tuned model has a
        vocabulary of 32,768.
        """
        return cls(32_000, 6144, 56, num_heads=48, num_kv_heads=8, head_dim=128, d_ff=16_384, max_positions=65_536)
