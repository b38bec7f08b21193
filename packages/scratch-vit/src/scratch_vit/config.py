"""Configurations of ViT (https://arxiv.org/abs/2010.11929, table 1; Ti and S: https://arxiv.org/abs/2012.12877)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, positive, unsupported
from scratch_core.errors import ConfigError
from scratch_core.vision import check_labels, labels_to_hf, pair, read_labels, read_size, size_to_hf


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Raises ConfigError for sizes that cannot be built."""

    d_model: int  # D
    num_layers: int  # L
    num_heads: int  # N
    d_ff: int  # F
    image_size: int | tuple[int, int] = 224  # rows, columns that the learned positions are for
    patch_size: int | tuple[int, int] = 16  # P
    num_channels: int = 3  # C
    num_classes: int = 1000  # M
    labels: tuple[str, ...] = ()  # names of the classes; (): LABEL_0 ...
    qkv_bias: bool = True
    norm_epsilon: float = 1e-12
    dropout: float = 0.0  # after the embedding and after each branch
    attention_dropout: float = 0.0  # of attention weights
    drop_path: float = 0.0  # of whole branches of the last layer; earlier layers have less; not in config.json

    def __post_init__(self):
        positive(self, "d_model", "num_layers", "num_heads", "d_ff", "num_channels", "num_classes", "norm_epsilon")
        check_labels(self)
        if self.d_model % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide d_model={self.d_model}")
        if min(pair(self.patch_size)) < 1 or min(self.grid) < 1:
            raise ConfigError(f"image_size={self.image_size} must be at least patch_size={self.patch_size}")
        for name in ("dropout", "attention_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return the same model for other classes, named by ``labels``."""
        return dataclasses.replace(self, labels=labels, num_classes=len(labels))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; pixels beyond the last whole patch are ignored."""
        rows, columns = (size // patch for size, patch in zip(pair(self.image_size), pair(self.patch_size)))
        return rows, columns

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json.

        Raises ConfigError for a missing or malformed field, and for a field that needs something not implemented.
        """
        unsupported(fields, hidden_act="gelu")
        labels = read_labels(fields)
        return cls(
            d_model=field(fields, "hidden_size", int, 768),
            num_layers=field(fields, "num_hidden_layers", int, 12),
            num_heads=field(fields, "num_attention_heads", int, 12),
            d_ff=field(fields, "intermediate_size", int, 3072),
            image_size=read_size(fields, "image_size", 224),
            patch_size=read_size(fields, "patch_size", 16),
            num_channels=field(fields, "num_channels", int, 3),
            num_classes=len(labels),
            labels=labels,
            qkv_bias=field(fields, "qkv_bias", bool, True),
            norm_epsilon=field(fields, "layer_norm_eps", float, 1e-12),
            dropout=field(fields, "hidden_dropout_prob", float, 0.0),
            attention_dropout=field(fields, "attention_probs_dropout_prob", float, 0.0),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json."""
        return {
            "model_type": "vit",
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.d_ff,
            "hidden_act": "gelu",
            "image_size": size_to_hf(self.image_size),
            "patch_size": size_to_hf(self.patch_size),
            "num_channels": self.num_channels,
            **labels_to_hf(self),
            "qkv_bias": self.qkv_bias,
            "layer_norm_eps": self.norm_epsilon,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: 16 x 16 grey images, 10 classes, 0.1 M parameters."""
        # Without biases: a key's bias has a gradient of zero, and Adam would turn its rounding errors into steps.
        return cls(
            64, 4, 4, 128, image_size=16, patch_size=4, num_channels=1, num_classes=10, norm_epsilon=1e-6,
            qkv_bias=False,
        )  # fmt: skip

    @classmethod
    def ti16(cls) -> Self:
        """Return ViT-Ti/16."""
        return cls(192, 12, 3, 768)

    @classmethod
    def ti32(cls) -> Self:
        """Return ViT-Ti/32."""
        return dataclasses.replace(cls.ti16(), patch_size=32)

    @classmethod
    def s16(cls) -> Self:
        """Return ViT-S/16."""
        return cls(384, 12, 6, 1536)

    @classmethod
    def s32(cls) -> Self:
        """Return ViT-S/32."""
        return dataclasses.replace(cls.s16(), patch_size=32)

    @classmethod
    def b16(cls) -> Self:
        """Return ViT-B/16."""
        return cls(768, 12, 12, 3072)

    @classmethod
    def b32(cls) -> Self:
        """Return ViT-B/32."""
        return dataclasses.replace(cls.b16(), patch_size=32)

    @classmethod
    def l16(cls) -> Self:
        """Return ViT-L/16."""
        return cls(1024, 24, 16, 4096)

    @classmethod
    def l32(cls) -> Self:
        """Return ViT-L/32."""
        return dataclasses.replace(cls.l16(), patch_size=32)
