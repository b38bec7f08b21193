"""Configurations of MPT (MosaicML 2023, https://www.databricks.com/blog/mpt-7b), which has no paper.

The presets have the values of the released models' config.json files, as each preset's docstring says.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import architectures, field, positive, tokens, unsupported
from scratch_core.errors import ConfigError

FIXED = {"alibi_bias_max": 8, "expansion_ratio": 4}
"""The values that transformers always uses, because it ignores these fields. MosaicML's own code reads them."""


@dataclasses.dataclass(frozen=True)
class MPTConfig:
    """The hyperparameters of MPT. Raises ConfigError if no model can be built from them."""

    vocab_size: int  # V
    d_model: int  # D
    num_layers: int  # L
    num_heads: int  # N
    expansion_ratio: int = 4  # F / D
    max_positions: int = 2048  # only a limit on the length of texts; no parameter depends on it
    alibi_bias_max: int = 8  # the steepest head's slope is 2^-(alibi_bias_max / N), the flattest 2^-alibi_bias_max
    clip_qkv: float | None = None  # bound of each query, key and value feature; None: no bound
    softmax_scale: float | None = None  # factor of the scores; None: 1 / sqrt(H)
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True  # the output head uses the embedding matrix
    embedding_dropout: float = 0.0  # the three dropout rates act only in training
    attention_dropout: float = 0.0  # of attention weights
    residual_dropout: float = 0.0  # of each branch's output
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_heads", "expansion_ratio", "max_positions")
        positive(self, "alibi_bias_max", "norm_epsilon", *(["clip_qkv"] if self.clip_qkv is not None else []))
        if self.d_model % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide d_model={self.d_model}")
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")

    @property
    def head_dim(self) -> int:
        """H, the width of a head."""
        return self.d_model // self.num_heads

    @property
    def d_ff(self) -> int:
        """F, the width of the feed-forward layer."""
        return self.expansion_ratio * self.d_model

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json, whose "attn_config" may be partial.

        Raises ConfigError for a missing or malformed field, and for a value that is not implemented here. Of MosaicML's
        options, those of the released models are implemented. ``learned_pos_emb`` has no effect with ALiBi, and
        ``attn_uses_sequence_id`` has none without the ids of packed texts. A model of MosaicML's code, whose
        "architectures" has "MPTForCausalLM", may have any ``alibi_bias_max`` and ``expansion_ratio``; a model of
        transformers must have the values in FIXED.
        """
        attention = field(fields, "attn_config", dict, {})
        num_heads = field(fields, "n_heads", int)
        unsupported(
            fields,
            is_causal=True,
            no_bias=True,
            norm_type=("low_precision_layernorm", "layernorm"),
            logit_scale=1.0,
            embedding_fraction=1.0,
            final_logit_softcapping=None,
            block_overrides=None,
        )
        unsupported(
            attention,
            alibi=True,
            attn_type="multihead_attention",
            kv_n_heads=num_heads,
            qk_ln=False,
            qk_gn=False,
            prefix_lm=False,
            rope=False,
            sliding_window_size=-1,
            attn_logit_softcapping=None,
        )
        feed_forward = field(fields, "ffn_config", dict, {})
        unsupported(
            feed_forward, ffn_type="mptmlp", ffn_act_fn=({"name": "gelu"}, {"name": "gelu", "approximate": "none"})
        )
        config = cls(
            vocab_size=field(fields, "vocab_size", int),
            d_model=field(fields, "d_model", int),
            num_layers=field(fields, "n_layers", int),
            num_heads=num_heads,
            expansion_ratio=field(fields, "expansion_ratio", int, 4),
            max_positions=field(fields, "max_seq_len", int, 2048),
            alibi_bias_max=field(attention, "alibi_bias_max", int, 8),
            clip_qkv=field(attention, "clip_qkv", float, None) or None,  # 0 is none, as in the reference
            softmax_scale=field(attention, "softmax_scale", float, None),
            norm_epsilon=field(fields, "layer_norm_epsilon", float, 1e-5),
            tie_embeddings=field(fields, "tie_word_embeddings", bool, True),
            embedding_dropout=field(fields, "emb_pdrop", float, 0.0),
            attention_dropout=field(attention, "attn_pdrop", float, 0.0),
            residual_dropout=field(fields, "resid_pdrop", float, 0.0),
            bos_token_id=field(fields, "bos_token_id", int, None),
            eos_token_id=tokens(fields, "eos_token_id"),
            pad_token_id=field(fields, "pad_token_id", int, None),
        )
        if config._differs_in_transformers() and "MPTForCausalLM" not in architectures(fields):
            raise ConfigError(
                f"config.json: {' and '.join(config._differs_in_transformers())} in a model of transformers, which "
                f"always computes with {FIXED}: correct the file, or, if the model is one of MosaicML's code, "
                'which reads both fields, set "architectures": ["MPTForCausalLM"] in it'
            )
        return config

    def _differs_in_transformers(self) -> list[str]:
        """Return, as "name=value", the fields that transformers would ignore."""
        return [f"{name}={getattr(self, name)}" for name, fixed in FIXED.items() if getattr(self, name) != fixed]

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json that every version of transformers reads.

        A model that transformers would compute differently gets the architecture name of MosaicML's code.
        """
        return {
            **({"architectures": ["MPTForCausalLM"]} if self._differs_in_transformers() else {}),
            "model_type": "mpt",
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "n_layers": self.num_layers,
            "n_heads": self.num_heads,
            "expansion_ratio": self.expansion_ratio,
            "max_seq_len": self.max_positions,
            "attn_config": {
                "alibi": True,
                "alibi_bias_max": self.alibi_bias_max,
                # transformers requires the integer 0 for no dropout.
                "attn_pdrop": self.attention_dropout or 0,
                "attn_type": "multihead_attention",
                "clip_qkv": self.clip_qkv,
                "softmax_scale": self.softmax_scale,
            },
            "no_bias": True,
            "norm_type": "low_precision_layernorm",
            "layer_norm_epsilon": self.norm_epsilon,
            "tie_word_embeddings": self.tie_embeddings,
            "emb_pdrop": self.embedding_dropout,
            "resid_pdrop": self.residual_dropout,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: byte tokens, 0.8 M parameters."""
        return cls(264, 128, 4, num_heads=4, bos_token_id=256, eos_token_id=257, pad_token_id=258)

    @classmethod
    def mpt_7b(cls) -> Self:
        """Return MPT-7B. Source: its config.json, copied at https://huggingface.co/crashx/flax-mpt7b."""
        return cls(50_432, 4096, 32, num_heads=32)

    @classmethod
    def mpt_30b(cls) -> Self:
        """Return MPT-30B.

        Source: the table on its page, https://huggingface.co/mosaicml/mpt-30b; for ``attn_config``, which the page
        does not give, the config.json of MPT-30B-Instruct, as https://huggingface.co/Abzu/mpt-30b-instruct-q8 copies
        it.
        """
        return cls(50_432, 7168, 48, num_heads=64, max_positions=8192)
