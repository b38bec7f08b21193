"""Configurations of GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2).

The presets have the values of the released models' config.json files. The parameter counts in the
paper's table are wrong, as its authors wrote later: the smallest model has 124 M parameters, not 117 M.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, positive, tokens, unsupported
from scratch_core.errors import ConfigError

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu")


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The hyperparameters of GPT-2. Raises ConfigError if no model can be built from them."""

    vocab_size: int  # V
    d_model: int  # D
    num_layers: int  # L
    num_heads: int  # N
    d_ff: int  # F
    max_positions: int = 1024  # rows of the position embedding
    norm_epsilon: float = 1e-5
    activation: str = "gelu_new"  # the tanh form of GELU; "gelu" is the exact form, with erf
    scale_attention: bool = True  # scores / sqrt(H)
    scale_by_layer: bool = False  # scores / (1 + layer), layers counted from 0
    tie_embeddings: bool = True  # the output head uses the embedding matrix
    embedding_dropout: float = 0.1  # the three dropout rates act only in training
    attention_dropout: float = 0.1  # of attention weights
    residual_dropout: float = 0.1  # of each branch's output
    bos_token_id: int | None = 50_256
    eos_token_id: int | tuple[int, ...] | None = 50_256
    pad_token_id: int | None = None

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_positions", "norm_epsilon")
        if self.d_model % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide d_model={self.d_model}")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation={self.activation!r} must be one of {', '.join(ACTIVATIONS)}")
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")

    @property
    def head_dim(self) -> int:
        """H, the width of a head."""
        return self.d_model // self.num_heads

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json.

        Raises ConfigError for a missing or malformed field, and for a value that is not implemented here.
        ``reorder_and_upcast_attn`` has no effect: scores are always float32.
        """
        unsupported(fields, is_causal=True, add_cross_attention=False, activation_function=ACTIVATIONS)
        fields = {"bos_token_id": 50_256, "eos_token_id": 50_256, **fields}  # null stays null: no such token
        d_model = field(fields, "n_embd", int)
        return cls(
            vocab_size=field(fields, "vocab_size", int),
            d_model=d_model,
            num_layers=field(fields, "n_layer", int),
            num_heads=field(fields, "n_head", int),
            d_ff=field(fields, "n_inner", int, 4 * d_model),
            max_positions=field(fields, "n_positions", int, 1024),
            norm_epsilon=field(fields, "layer_norm_epsilon", float, 1e-5),
            activation=field(fields, "activation_function", str, "gelu_new"),
            scale_attention=field(fields, "scale_attn_weights", bool, True),
            scale_by_layer=field(fields, "scale_attn_by_inverse_layer_idx", bool, False),
            tie_embeddings=field(fields, "tie_word_embeddings", bool, True),
            embedding_dropout=field(fields, "embd_pdrop", float, 0.1),
            attention_dropout=field(fields, "attn_pdrop", float, 0.1),
            residual_dropout=field(fields, "resid_pdrop", float, 0.1),
            bos_token_id=field(fields, "bos_token_id", int, None),
            eos_token_id=tokens(fields, "eos_token_id"),
            pad_token_id=field(fields, "pad_token_id", int, None),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads."""
        return {
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_embd": self.d_model,
            "n_layer": self.num_layers,
            "n_head": self.num_heads,
            "n_inner": self.d_ff,
            "n_positions": self.max_positions,
            "layer_norm_epsilon": self.norm_epsilon,
            "activation_function": self.activation,
            "scale_attn_weights": self.scale_attention,
            "scale_attn_by_inverse_layer_idx": self.scale_by_layer,
            "tie_word_embeddings": self.tie_embeddings,
            "embd_pdrop": self.embedding_dropout,
            "attn_pdrop": self.attention_dropout,
            "resid_pdrop": self.residual_dropout,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: byte tokens, 1 M parameters, no dropout."""
        return cls(
            264, 128, 4, num_heads=4, d_ff=512, embedding_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0,
            bos_token_id=256, eos_token_id=257, pad_token_id=258,
        )  # fmt: skip

    @classmethod
    def small(cls) -> Self:
        """Return GPT-2, the smallest of the four.

        Source: the paper's table 2 (layers and width), and the config.json, as
        https://huggingface.co/mrm8488/GPT-2-finetuned-covid-bio-medrxiv repeats it.
        """
        return cls(50_257, 768, 12, num_heads=12, d_ff=3072)

    @classmethod
    def medium(cls) -> Self:
        """Return GPT-2 medium.

        Source: https://huggingface.co/openai-community/gpt2-medium/blob/main/config.json.
        """
        return cls(50_257, 1024, 24, num_heads=16, d_ff=4096)

    @classmethod
    def large(cls) -> Self:
        """Return GPT-2 large.

        Source: https://huggingface.co/openai-community/gpt2-large/blob/main/config.json.
        """
        return cls(50_257, 1280, 36, num_heads=20, d_ff=5120)

    @classmethod
    def xl(cls) -> Self:
        """Return GPT-2 XL, the model of the paper's results.

        Source: https://huggingface.co/openai-community/gpt2-xl/blob/main/config.json.
        """
        return cls(50_257, 1600, 48, num_heads=25, d_ff=6400)
