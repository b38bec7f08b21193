"""Configurations of OLMo (https://arxiv.org/abs/2402.00838) and OLMo 2 (https://arxiv.org/abs/2501.00656).

The presets have the values of the released models' config.json files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, positive, tokens, unsupported
from scratch_core.errors import ConfigError
from scratch_core.layers import Rope, read_rope, rope_to_hf

ABSENT = {"bos_token_id": None, "eos_token_id": 50_279, "pad_token_id": 1}
"""The special tokens for a config.json that leaves them out, as in transformers; null means no such token."""


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """The hyperparameters that both generations share. Raises ConfigError if no model can be built from them."""

    vocab_size: int  # V
    d_model: int  # D
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K; fewer than N only in OLMo 2 32B
    d_ff: int  # F, width of each of the two branches of SwiGLU
    rope: Rope = Rope(10_000.0)  # noqa: RUF009, frozen like the config
    max_positions: int = 2048
    tie_embeddings: bool = False  # the output head uses the embedding matrix
    attention_bias: bool = False
    z_loss_weight: float = 0.0  # of log(Z)^2 in the loss; 0: no z-loss. transformers has no such field
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = 50_279
    pad_token_id: int | None = 1

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff", "max_positions")
        for large, small in (("d_model", "num_heads"), ("num_heads", "num_kv_heads")):
            if getattr(self, large) % getattr(self, small):
                raise ConfigError(f"{small}={getattr(self, small)} must divide {large}={getattr(self, large)}")
        if self.head_dim % 2:
            raise ConfigError(f"d_model / num_heads = {self.head_dim} must be even: rotary features come in pairs")
        if not 0 <= self.z_loss_weight < 1:
            raise ConfigError(f"z_loss_weight={self.z_loss_weight} must be in [0, 1); OLMo 2 was trained with 1e-5")

    @property
    def head_dim(self) -> int:
        """H, the width of a head."""
        return self.d_model // self.num_heads

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads."""
        fields = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "intermediate_size": self.d_ff,
            **rope_to_hf(self.rope),
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tie_embeddings,
            "attention_bias": self.attention_bias,
            "hidden_act": "silu",
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }
        return {**fields, "z_loss_weight": self.z_loss_weight} if self.z_loss_weight else fields


def _read_sizes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``_Sizes``. Raises ConfigError for a missing, malformed or unimplemented one."""
    fields = {**ABSENT, **fields}
    heads, d_model = field(fields, "num_attention_heads", int), field(fields, "hidden_size", int)
    unsupported(
        fields, is_causal=True, hidden_act="silu", attention_dropout=(0, 0.0), head_dim=d_model // max(heads, 1)
    )
    return {
        "vocab_size": field(fields, "vocab_size", int),
        "d_model": d_model,
        "num_layers": field(fields, "num_hidden_layers", int),
        "num_heads": heads,
        "num_kv_heads": field(fields, "num_key_value_heads", int, heads),
        "d_ff": field(fields, "intermediate_size", int),
        "rope": read_rope(fields),
        "max_positions": field(fields, "max_position_embeddings", int, 2048),
        "tie_embeddings": field(fields, "tie_word_embeddings", bool, False),
        "attention_bias": field(fields, "attention_bias", bool, False),
        "z_loss_weight": field(fields, "z_loss_weight", float, 0.0),
        "bos_token_id": field(fields, "bos_token_id", int, None),
        "eos_token_id": tokens(fields, "eos_token_id"),
        "pad_token_id": field(fields, "pad_token_id", int, None),
    }


@dataclasses.dataclass(frozen=True)
class OlmoConfig(_Sizes):
    """The hyperparameters of OLMo. Raises ConfigError if no model can be built from them."""

    clip_qkv: float | None = None  # bound of each query, key and value feature; None: no bound

    def __post_init__(self):
        super().__post_init__()
        if self.clip_qkv is not None:
            positive(self, "clip_qkv")

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json, also of one that spells rotary positions as before transformers 5.

        Raises ConfigError for a missing or malformed field, and for a value that is not implemented here.
        """
        return cls(**_read_sizes(fields), clip_qkv=field(fields, "clip_qkv", float, None))

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads."""
        return {"model_type": "olmo", **super().to_hf(), "clip_qkv": self.clip_qkv}

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: byte tokens, 0.9 M parameters."""
        return cls(
            264, 128, 4, num_heads=4, num_kv_heads=4, d_ff=384, tie_embeddings=True,
            bos_token_id=256, eos_token_id=257, pad_token_id=258,
        )  # fmt: skip

    @classmethod
    def olmo_1b(cls) -> Self:
        """Return OLMo 1B (February 2024): tied embeddings.

        Source: the config.json of OLMo-1B-hf, copied at https://huggingface.co/onnx-community/OLMo-1B-hf.
        """
        return cls(50_304, 2048, 16, num_heads=16, num_kv_heads=16, d_ff=8192, tie_embeddings=True)

    @classmethod
    def olmo_7b(cls) -> Self:
        """Return OLMo 7B (February 2024).

        Source: https://huggingface.co/allenai/OLMo-7B-hf/blob/main/config.json.
        """
        return cls(50_304, 4096, 32, num_heads=32, num_kv_heads=32, d_ff=11_008)

    @classmethod
    def olmo_7b_0424(cls) -> Self:
        """Return OLMo 7B of April 2024 (OLMo 1.7): queries, keys and values clipped, texts twice as long.

        Source: its config.json, copied at https://huggingface.co/ricdomolm/ttt-mc-olmo-1.7-7b.
        """
        return dataclasses.replace(cls.olmo_7b(), clip_qkv=8.0, max_positions=4096)


@dataclasses.dataclass(frozen=True)
class Olmo2Config(_Sizes):
    """The hyperparameters of OLMo 2. Raises ConfigError if no model can be built from them."""

    norm_epsilon: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        positive(self, "norm_epsilon")

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json, also of one that spells rotary positions as before transformers 5.

        Raises ConfigError for a missing or malformed field, and for a value that is not implemented here.
        """
        return cls(**_read_sizes(fields), norm_epsilon=field(fields, "rms_norm_eps", float, 1e-5))

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads."""
        return {"model_type": "olmo2", **super().to_hf(), "rms_norm_eps": self.norm_epsilon}

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: byte tokens, 0.9 M parameters, trained with the z-loss."""
        return cls(
            264, 128, 4, num_heads=4, num_kv_heads=4, d_ff=384, rope=Rope(500_000.0), z_loss_weight=1e-5,
            bos_token_id=256, eos_token_id=257, pad_token_id=258,
        )  # fmt: skip

    @classmethod
    def olmo2_1b(cls) -> Self:
        """Return OLMo 2 1B (April 2025).

        Source: its config.json, copied in a fine-tuned model,
        https://huggingface.co/CodeAtCMU/OLMo-2-0425-1B_full_sft_code_data_120K_remove_comments.
        """
        return cls(
            100_352, 2048, 16, num_heads=16, num_kv_heads=16, d_ff=8192, rope=Rope(500_000.0), max_positions=4096,
            z_loss_weight=1e-5, eos_token_id=100_257, pad_token_id=100_277,
        )  # fmt: skip

    @classmethod
    def olmo2_7b(cls) -> Self:
        """Return OLMo 2 7B (November 2024).

        Source: its config.json, copied at https://huggingface.co/shanearora/i-am-a-good-open-base-model.
        """
        return dataclasses.replace(
            cls.olmo2_1b(), d_model=4096, num_layers=32, num_heads=32, num_kv_heads=32, d_ff=11_008
        )

    @classmethod
    def olmo2_13b(cls) -> Self:
        """Return OLMo 2 13B (November 2024).

        Source: https://huggingface.co/allenai/OLMo-2-1124-13B/blob/main/config.json.
        """
        return dataclasses.replace(
            cls.olmo2_1b(), d_model=5120, num_layers=40, num_heads=40, num_kv_heads=40, d_ff=13_824
        )

    @classmethod
    def olmo2_32b(cls) -> Self:
        """Return OLMo 2 32B (March 2025): eight key/value heads, and texts begin with the token that ends them.

        Source: https://huggingface.co/allenai/OLMo-2-0325-32B/blob/main/config.json.
        """
        return dataclasses.replace(cls.olmo2_13b(), num_layers=64, num_kv_heads=8, d_ff=27_648, bos_token_id=100_257)
