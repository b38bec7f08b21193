"""Configurations of Mistral 7B (https://arxiv.org/abs/2310.06825) and Mistral NeMo (https://mistral.ai/news/mistral-nemo).

The presets have the values of the released models' config.json files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, positive, tokens, unsupported
from scratch_core.errors import ConfigError
from scratch_core.layers import Rope, read_rope, rope_to_hf

ABSENT = {"num_key_value_heads": 8, "sliding_window": 4096, "bos_token_id": 1, "eos_token_id": 2}
"""The values of fields that a config.json leaves out, as in transformers. A field that is null means something else."""


@dataclasses.dataclass(frozen=True)
class MistralConfig:
    """The hyperparameters of Mistral. Raises ConfigError if no model can be built from them."""

    vocab_size: int  # V; vocab_size (the second name is the paper's, here and below)
    d_model: int  # D; dim
    num_layers: int  # L; n_layers
    num_heads: int  # N; n_heads
    num_kv_heads: int  # K; n_kv_heads
    head_dim: int  # H; head_dim. N * H need not be D: in NeMo it is 4096 of 5120
    d_ff: int  # F; hidden_dim
    window: int | None = None  # W; window_size. A query attends to this many positions, its own included; None: all
    rope: Rope = Rope(1_000_000.0)  # noqa: RUF009, frozen like the config
    norm_epsilon: float = 1e-5
    max_positions: int = 32_768
    tie_embeddings: bool = False  # the output head uses the embedding matrix
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
        positive(self, "norm_epsilon", "max_positions")
        if self.window is not None:
            positive(self, "window")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even: rotary features come in pairs")

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json, also of one that spells rotary positions as before transformers 5.

        Without sliding_window, the window is 4096, as in transformers; null means no window. Raises ConfigError
        for a missing or malformed field, and for a value that is not implemented here.
        """
        fields = {**ABSENT, **fields}
        unsupported(fields, is_causal=True, hidden_act="silu", attention_dropout=(0, 0.0))
        kind = "full_attention" if fields["sliding_window"] is None else "sliding_attention"
        if any(each != kind for each in field(fields, "layer_types", list, [])):
            raise ConfigError(
                f"config.json: layer_types={fields['layer_types']} must all be {kind!r} because sliding_window="
                f"{fields['sliding_window']}: models whose layers alternate (Ministral) are not implemented here"
            )
        heads, d_model = field(fields, "num_attention_heads", int), field(fields, "hidden_size", int)
        head_dim = field(fields, "head_dim", int, None)
        if head_dim is None:
            if heads < 1:
                raise ConfigError(f"num_attention_heads={heads} must be greater than 0")
            head_dim = d_model // heads
        return cls(
            vocab_size=field(fields, "vocab_size", int),
            d_model=d_model,
            num_layers=field(fields, "num_hidden_layers", int),
            num_heads=heads,
            num_kv_heads=field(fields, "num_key_value_heads", int, heads),
            head_dim=head_dim,
            d_ff=field(fields, "intermediate_size", int),
            window=field(fields, "sliding_window", int, None),
            rope=read_rope(fields),
            norm_epsilon=field(fields, "rms_norm_eps", float, 1e-6),
            max_positions=field(fields, "max_position_embeddings", int, 131_072),
            tie_embeddings=field(fields, "tie_word_embeddings", bool, False),
            bos_token_id=field(fields, "bos_token_id", int, None),
            eos_token_id=tokens(fields, "eos_token_id"),
            pad_token_id=field(fields, "pad_token_id", int, None),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads."""
        return {
            "model_type": "mistral",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.d_ff,
            "sliding_window": self.window,
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
        """Return a model for the tests and the first run: byte tokens, a window of 64, 0.8 M parameters."""
        return cls(
            264, 128, 4, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=384, window=64,
            rope=Rope(10_000.0), tie_embeddings=True, bos_token_id=256, eos_token_id=257, pad_token_id=258,
        )  # fmt: skip

    @classmethod
    def mistral_7b_v0_1(cls) -> Self:
        """Return Mistral 7B v0.1, the paper's: a window of 4096.

        Source: the paper's table 1, and the config.json, copied at https://huggingface.co/d-matrix/Mistral.
        """
        return cls(
            32_000, 4096, 32, num_heads=32, num_kv_heads=8, head_dim=128, d_ff=14_336,
            window=4096, rope=Rope(10_000.0),
        )  # fmt: skip

    @classmethod
    def mistral_7b_v0_2(cls) -> Self:
        """Return Mistral 7B v0.2: no window, and a larger rotary base.

        Source: its config.json, as https://huggingface.co/HikariLight/Mistral-7B-v0.2_ACI_Psy_SFT_Merged copies it.
        """
        return dataclasses.replace(cls.mistral_7b_v0_1(), window=None, rope=Rope(1_000_000.0))

    @classmethod
    def mistral_7b_v0_3(cls) -> Self:
        """Return Mistral 7B v0.3: v0.2 with 768 more tokens.

        Source: its config.json, copied at https://huggingface.co/AmberYifan/Mistral-7B-v0.3-spin-10k.
        """
        return dataclasses.replace(cls.mistral_7b_v0_2(), vocab_size=32_768)

    @classmethod
    def nemo_12b(cls) -> Self:
        """Return Mistral NeMo 12B: 32 heads of 128 features on a residual stream of 5120.

        Source: its config.json, copied at https://huggingface.co/spow12/MK_Nemo_12B, except for the limit of positions.
        The copy has 1,024,000, like the first files; here it is 131,072, as in later files and the announcement (128k).
        """
        return cls(
            131_072, 5120, 40, num_heads=32, num_kv_heads=8, head_dim=128, d_ff=14_336, max_positions=131_072
        )  # fmt: skip
