"""Configurations of Gemma (https://arxiv.org/abs/2403.08295) and Gemma 2 (https://arxiv.org/abs/2408.00118).

The presets have the values of the released models' config.json files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from scratch_core.config import field, positive, tokens, unsupported
from scratch_core.errors import ConfigError
from scratch_core.layers import Rope, read_rope, rope_to_hf

TANH_GELU = "gelu_pytorch_tanh"


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """The hyperparameters that both generations share. Raises ConfigError if no model can be built from them."""

    tie_embeddings: ClassVar[bool] = True  # in every Gemma, the head uses the embedding matrix

    vocab_size: int  # V
    d_model: int  # D
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K; 1 in Gemma 2B
    head_dim: int  # H; N * H need not be D
    d_ff: int  # F, width of each of the two branches of GeGLU
    rope: Rope = Rope(10_000.0)  # noqa: RUF009, frozen like the config
    norm_epsilon: float = 1e-6
    max_positions: int = 8192
    bos_token_id: int | None = 2
    eos_token_id: int | tuple[int, ...] | None = 1
    pad_token_id: int | None = 0

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
        positive(self, "norm_epsilon", "max_positions")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even: rotary features come in pairs")

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads."""
        return {
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
            "tie_word_embeddings": True,
            "attention_bias": False,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }


def _read_sizes(fields: Mapping[str, Any], num_kv_heads: int) -> dict[str, Any]:
    """Return the fields of ``_Sizes``; ``num_kv_heads`` is transformers' default. Raises ConfigError."""
    unsupported(fields, attention_bias=False, attention_dropout=0, tie_word_embeddings=True)
    unsupported(fields, is_causal=True, use_bidirectional_attention=False)
    fields = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, **fields}  # defaults of absent fields
    return {
        "vocab_size": field(fields, "vocab_size", int),
        "d_model": field(fields, "hidden_size", int),
        "num_layers": field(fields, "num_hidden_layers", int),
        "num_heads": field(fields, "num_attention_heads", int),
        "num_kv_heads": field(fields, "num_key_value_heads", int, num_kv_heads),
        "head_dim": field(fields, "head_dim", int, 256),
        "d_ff": field(fields, "intermediate_size", int),
        "rope": read_rope(fields),
        "norm_epsilon": field(fields, "rms_norm_eps", float, 1e-6),
        "max_positions": field(fields, "max_position_embeddings", int, 8192),
        "bos_token_id": field(fields, "bos_token_id", int, None),
        "eos_token_id": tokens(fields, "eos_token_id"),
        "pad_token_id": field(fields, "pad_token_id", int, None),
    }


@dataclasses.dataclass(frozen=True)
class GemmaConfig(_Sizes):
    """The hyperparameters of Gemma. Raises ConfigError if no model can be built from them."""

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json, also of one that spells rotary positions as before transformers 5.

        ``hidden_act`` "gelu" also means the tanh form: Google's first files say "gelu", but the models were trained
        with the tanh form. Raises ConfigError for a missing or malformed field, and for a value that is not implemented
        here.
        """
        unsupported(fields, hidden_act=(TANH_GELU, "gelu"), hidden_activation=TANH_GELU)
        return cls(**_read_sizes(fields, num_kv_heads=16))

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads."""
        return {
            "model_type": "gemma",
            **super().to_hf(),
            "hidden_act": TANH_GELU,
            "hidden_activation": TANH_GELU,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: byte tokens, 0.8 M parameters."""
        return cls(
            264, 128, 4, num_heads=4, num_kv_heads=1, head_dim=48, d_ff=384,
            max_positions=1024, bos_token_id=256, eos_token_id=257, pad_token_id=258,
        )  # fmt: skip

    @classmethod
    def gemma_2b(cls) -> Self:
        """Return Gemma 2B: one key/value head for all query heads.

        Source: the paper's table 1, and the config.json, copied at https://huggingface.co/BAAI/bge-reranker-v2-gemma.
        """
        return cls(256_000, 2048, 18, num_heads=8, num_kv_heads=1, head_dim=256, d_ff=16_384)

    @classmethod
    def gemma_7b(cls) -> Self:
        """Return Gemma 7B: 16 heads of 256 features, together more than d_model=3072.

        Source: the paper's table 1, and the config.json, copied at
        https://huggingface.co/juhwanlee/gemma-7B-alpaca-case-0-2.
        """
        return cls(256_000, 3072, 28, num_heads=16, num_kv_heads=16, head_dim=256, d_ff=24_576)


@dataclasses.dataclass(frozen=True)
class Gemma2Config(_Sizes):
    """The hyperparameters of Gemma 2. Raises ConfigError if no model can be built from them."""

    query_pre_attn_scalar: int = 256  # queries are divided by its square root, not by sqrt(head_dim)
    attention_cap: float | None = 50.0  # bound of the attention scores; None: no bound
    logit_cap: float | None = 30.0  # bound of the logits; None: no bound
    window: int = 4096  # in layers 0, 2, 4, ..., a query attends to this many positions; in the others to all

    def __post_init__(self):
        super().__post_init__()
        positive(self, "query_pre_attn_scalar", "window")
        positive(self, *(name for name in ("attention_cap", "logit_cap") if getattr(self, name) is not None))

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json, also of one that spells rotary positions as before transformers 5.

        A cap that is null means no cap; an absent cap has transformers' default. Raises ConfigError for a missing or
        malformed field, and for a value that is not implemented, such as another order of sliding layers.
        """
        unsupported(fields, hidden_activation=TANH_GELU)
        sizes = _read_sizes(fields, num_kv_heads=4)
        given = field(fields, "layer_types", list, [])
        unsupported(fields, layer_types=[("sliding_attention", "full_attention")[i % 2] for i in range(len(given))])
        fields = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096, **fields}
        return cls(
            **sizes,
            query_pre_attn_scalar=field(fields, "query_pre_attn_scalar", int, 256),
            attention_cap=field(fields, "attn_logit_softcapping", float, None),
            logit_cap=field(fields, "final_logit_softcapping", float, None),
            window=field(fields, "sliding_window", int),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads."""
        return {
            "model_type": "gemma2",
            **super().to_hf(),
            "hidden_act": TANH_GELU,
            "hidden_activation": TANH_GELU,
            "query_pre_attn_scalar": self.query_pre_attn_scalar,
            "attn_logit_softcapping": self.attention_cap,
            "final_logit_softcapping": self.logit_cap,
            "sliding_window": self.window,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: byte tokens, 0.9 M parameters."""
        return cls(
            264, 128, 4, num_heads=4, num_kv_heads=2, head_dim=48, d_ff=384, query_pre_attn_scalar=32, window=64,
            max_positions=1024, bos_token_id=256, eos_token_id=257, pad_token_id=258,
        )  # fmt: skip

    @classmethod
    def gemma2_2b(cls) -> Self:
        """Return Gemma 2 2B.

        Source: the paper's table 1, and the config.json, copied at
        https://huggingface.co/ModelSpace/GemmaX2-28-2B-Pretrain.
        """
        return cls(256_000, 2304, 26, num_heads=8, num_kv_heads=4, head_dim=256, d_ff=9216)

    @classmethod
    def gemma2_9b(cls) -> Self:
        """Return Gemma 2 9B.

        Source: the paper's table 1, and the config.json, copied at https://huggingface.co/ashercn97/blanked-v011.
        The first released file had query_pre_attn_scalar=224 by mistake.
        """
        return cls(256_000, 3584, 42, num_heads=16, num_kv_heads=8, head_dim=256, d_ff=14_336)

    @classmethod
    def gemma2_27b(cls) -> Self:
        """Return Gemma 2 27B, whose queries are scaled by d_model / num_heads = 144 instead of head_dim = 128.

        Source: the paper's table 1, and copies of the config.json.
        """
        return cls(
            256_000, 4608, 46, num_heads=32, num_kv_heads=16, head_dim=128, d_ff=36_864, query_pre_attn_scalar=144
        )
