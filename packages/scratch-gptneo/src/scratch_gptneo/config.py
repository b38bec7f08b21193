"""Configurations of GPT-Neo (Black et al. 2021, https://doi.org/10.5281/zenodo.5297715), which has no paper.

The presets have the values of the released models' config.json files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, positive, tokens, unsupported
from scratch_core.errors import ConfigError

KINDS = ("global", "local")  # attention to all earlier positions, or within the window
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")


@dataclasses.dataclass(frozen=True)
class GPTNeoConfig:
    """The hyperparameters of GPT-Neo. Raises ConfigError if no model can be built from them."""

    vocab_size: int  # V
    d_model: int  # D
    num_layers: int  # L
    num_heads: int  # N
    d_ff: int  # F
    attention: tuple[str, ...] = KINDS  # one of KINDS for each layer; a shorter tuple repeats
    window: int = 256  # a query of a local layer attends to this many positions, its own included
    max_positions: int = 2048  # rows of the position embedding
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True  # the output head uses the embedding matrix
    embedding_dropout: float = 0.0  # the three dropout rates act only in training
    attention_dropout: float = 0.0  # of attention weights
    residual_dropout: float = 0.0  # of each branch's output
    bos_token_id: int | None = 50_256
    eos_token_id: int | tuple[int, ...] | None = 50_256
    pad_token_id: int | None = None

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "window", "max_positions")
        positive(self, "norm_epsilon")
        if self.d_model % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide d_model={self.d_model}")
        if not self.attention or not set(self.attention) <= set(KINDS):
            raise ConfigError(f"attention={self.attention} must name the kinds of layers: {' or '.join(KINDS)}")
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")

    @property
    def head_dim(self) -> int:
        """H, the width of a head."""
        return self.d_model // self.num_heads

    def window_of(self, layer: int) -> int | None:
        """Return how many positions a query of a layer attends to; layers count from 0. None: all earlier ones."""
        return self.window if self.attention[layer % len(self.attention)] == "local" else None

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json.

        Raises ConfigError for a missing or malformed field, and for a value that is not implemented here.
        """
        unsupported(fields, is_causal=True, activation_function=ACTIVATIONS)
        fields = {"bos_token_id": 50_256, "eos_token_id": 50_256, **fields}  # null stays null: no such token
        d_model, num_layers = field(fields, "hidden_size", int), field(fields, "num_layers", int)
        return cls(
            vocab_size=field(fields, "vocab_size", int),
            d_model=d_model,
            num_layers=num_layers,
            num_heads=field(fields, "num_heads", int),
            d_ff=field(fields, "intermediate_size", int, 4 * d_model),
            attention=_read_attention(fields, num_layers),
            window=field(fields, "window_size", int, 256),
            max_positions=field(fields, "max_position_embeddings", int, 2048),
            norm_epsilon=field(fields, "layer_norm_epsilon", float, 1e-5),
            tie_embeddings=field(fields, "tie_word_embeddings", bool, True),
            embedding_dropout=field(fields, "embed_dropout", float, 0.0),
            attention_dropout=field(fields, "attention_dropout", float, 0.0),
            residual_dropout=field(fields, "resid_dropout", float, 0.0),
            bos_token_id=field(fields, "bos_token_id", int, None),
            eos_token_id=tokens(fields, "eos_token_id"),
            pad_token_id=field(fields, "pad_token_id", int, None),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads."""
        kinds = [self.attention[layer % len(self.attention)] for layer in range(self.num_layers)]
        return {
            "model_type": "gpt_neo",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "intermediate_size": self.d_ff,
            "attention_types": [[kinds, 1]],
            "attention_layers": kinds,
            "window_size": self.window,
            "max_position_embeddings": self.max_positions,
            "layer_norm_epsilon": self.norm_epsilon,
            "activation_function": "gelu_new",
            "tie_word_embeddings": self.tie_embeddings,
            "embed_dropout": self.embedding_dropout,
            "attention_dropout": self.attention_dropout,
            "resid_dropout": self.residual_dropout,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: byte tokens, 1 M parameters, a window of 32."""
        return cls(
            264, 128, 4, num_heads=4, d_ff=512, window=32, max_positions=1024,
            bos_token_id=256, eos_token_id=257, pad_token_id=258,
        )  # fmt: skip

    @classmethod
    def neo_125m(cls) -> Self:
        """Return GPT-Neo 125M.

        Source: its config.json, as
        https://huggingface.co/KimByeongSu/gpt-neo-125m-cs-finetuning-80000-1 repeats it.
        """
        return cls(50_257, 768, 12, num_heads=12, d_ff=3072)

    @classmethod
    def neo_1_3b(cls) -> Self:
        """Return GPT-Neo 1.3B.

        Source: its config.json, copied at https://huggingface.co/unrahul/gpt-neo-1.3B-OpenVINO-fp16.
        """
        return cls(50_257, 2048, 24, num_heads=16, d_ff=8192)

    @classmethod
    def neo_2_7b(cls) -> Self:
        """Return GPT-Neo 2.7B.

        Source: its config.json, copied at https://huggingface.co/ktangri/gpt-neo-demo.
        """
        return cls(50_257, 2560, 32, num_heads=20, d_ff=10_240)


def _read_attention(fields: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
    """Return the shortest tuple of kinds that, repeated, gives the layers of "attention_types". Raises ConfigError."""
    groups = field(fields, "attention_types", list, [[list(KINDS), 12]])
    kinds: list[Any] = []
    for group in groups:
        if not isinstance(group, list) or len(group) != 2 or not isinstance(group[0], list):
            raise ConfigError(f"config.json: attention_types={groups!r} must be a list of [kinds, repeats]")
        repeats = field({"attention_types": group[1]}, "attention_types", int)
        if not 0 <= repeats * len(group[0]) <= num_layers:
            raise ConfigError(f"config.json: attention_types={groups!r} gives more layers than num_layers={num_layers}")
        kinds += group[0] * repeats
    if len(kinds) != num_layers:
        raise ConfigError(f"config.json: attention_types={groups!r} gives {len(kinds)} layers, num_layers={num_layers}")
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"config.json: attention_types has {wrong[0]!r} (implemented: {', '.join(KINDS)})")
    if field(fields, "attention_layers", list, kinds) != kinds:
        raise ConfigError(
            f"config.json: attention_layers={fields['attention_layers']} and attention_types={groups!r} must give the "
            "same layers: correct one, or take the config.json that belongs to the weights"
        )
    for length in range(1, len(kinds)):
        if all(kind == kinds[layer % length] for layer, kind in enumerate(kinds)):
            return tuple(kinds[:length])
    return tuple(kinds)
