"""Configurations of Swin Transformer V2 (https://arxiv.org/abs/2111.09883, section 4.1).

The presets carry the widths, depths and windows of the released models. "12to16" was trained with windows of 12
on 192 x 192 pixels, and fine-tuned with windows of 16 on 256 x 256.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, integers, positive, unsupported
from scratch_core.errors import ConfigError
from scratch_core.vision import check_labels, labels_to_hf, pair, read_labels, read_size, size_to_hf


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Raises ConfigError for sizes that cannot be built."""

    d_model: int = 96  # C, the width of the first stage; it doubles at each later stage
    depths: tuple[int, ...] = (2, 2, 6, 2)  # blocks of each stage
    num_heads: tuple[int, ...] = (3, 6, 12, 24)  # N of each stage
    window_size: int = 8  # M, rows and columns of a window
    pretrained_window_sizes: tuple[int, ...] = (
        0,
        0,
        0,
        0,
    )  # windows that the position network was trained with; 0: window_size
    image_size: int | tuple[int, int] = 256  # rows, columns; windows are chosen for this size
    patch_size: int | tuple[int, int] = 4
    num_channels: int = 3
    num_classes: int = 1000
    labels: tuple[str, ...] = ()  # names of the classes; (): LABEL_0 ...
    mlp_ratio: float = 4.0  # feed-forward width / width
    qkv_bias: bool = True  # of queries and values; keys never have one
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.1  # of the last block; earlier blocks have less

    def __post_init__(self):
        positive(self, "d_model", "window_size", "num_channels", "num_classes", "mlp_ratio", "norm_epsilon")
        check_labels(self)
        stages = len(self.depths)
        if not stages or len(self.num_heads) != stages or len(self.pretrained_window_sizes) != stages:
            raise ConfigError(
                f"depths={self.depths}, num_heads={self.num_heads} and pretrained_window_sizes="
                f"{self.pretrained_window_sizes} must have one number for each stage"
            )
        for i, (depth, heads) in enumerate(zip(self.depths, self.num_heads)):
            if depth < 1 or heads < 1 or self.width(i) % heads:
                raise ConfigError(
                    f"num_heads={heads} must divide the width {self.width(i)} of stage {i}, and its depth {depth} must "
                    "be at least 1"
                )
        if min(pair(self.patch_size)) < 1 or min(self.resolution(stages - 1)) < 1:
            raise ConfigError(f"image_size={self.image_size} must be at least {2 ** (stages - 1)} patches on each side")
        if int(self.mlp_ratio * self.d_model) < 1:
            raise ConfigError(f"mlp_ratio={self.mlp_ratio} times d_model={self.d_model} must be at least 1")
        for name in ("dropout", "attention_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")

    def width(self, stage: int) -> int:
        """Return the width of a stage."""
        return self.d_model * 2**stage

    def resolution(self, stage: int) -> tuple[int, int]:
        """Return rows and columns of a stage at ``image_size``; an odd size is rounded down."""
        rows, columns = (size // patch for size, patch in zip(pair(self.image_size), pair(self.patch_size)))
        return rows // 2**stage, columns // 2**stage

    def window(self, stage: int) -> int:
        """Return the window size of a stage, which is never larger than its map."""
        return min(self.window_size, self.resolution(stage)[0])

    def shift(self, stage: int, block: int) -> int:
        """Return the shift of a block's windows: half a window in every second block, 0 if the map is one window."""
        one_window = self.resolution(stage)[0] <= self.window(stage)
        return 0 if block % 2 == 0 or one_window else self.window_size // 2

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return the same model for other classes, named by ``labels``."""
        return dataclasses.replace(self, labels=labels, num_classes=len(labels))

    @property
    def num_layers(self) -> int:
        """Number of blocks of all stages."""
        return sum(self.depths)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json.

        Raises ConfigError for a missing or malformed field, and for a field that needs something not implemented.
        """
        unsupported(fields, hidden_act="gelu", use_absolute_embeddings=False)
        labels = read_labels(fields)
        depths = integers(fields, "depths", (2, 2, 6, 2))
        return cls(
            d_model=field(fields, "embed_dim", int, 96),
            depths=depths,
            num_heads=integers(fields, "num_heads", (3, 6, 12, 24)),
            window_size=field(fields, "window_size", int, 7),
            # transformers writes four of them by default, for any number of stages:
            pretrained_window_sizes=integers(fields, "pretrained_window_sizes", (0,) * len(depths))[: len(depths)],
            image_size=read_size(fields, "image_size", 224),
            patch_size=read_size(fields, "patch_size", 4),
            num_channels=field(fields, "num_channels", int, 3),
            num_classes=len(labels),
            labels=labels,
            mlp_ratio=field(fields, "mlp_ratio", float, 4.0),
            qkv_bias=field(fields, "qkv_bias", bool, True),
            norm_epsilon=field(fields, "layer_norm_eps", float, 1e-5),
            dropout=field(fields, "hidden_dropout_prob", float, 0.0),
            attention_dropout=field(fields, "attention_probs_dropout_prob", float, 0.0),
            drop_path=field(fields, "drop_path_rate", float, 0.1),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json."""
        return {
            "model_type": "swinv2",
            "embed_dim": self.d_model,
            "depths": list(self.depths),
            "num_layers": len(self.depths),
            "num_heads": list(self.num_heads),
            "hidden_size": self.width(len(self.depths) - 1),
            "window_size": self.window_size,
            "pretrained_window_sizes": list(self.pretrained_window_sizes),
            "image_size": size_to_hf(self.image_size),
            "patch_size": size_to_hf(self.patch_size),
            "num_channels": self.num_channels,
            **labels_to_hf(self),
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
            "hidden_act": "gelu",
            "use_absolute_embeddings": False,
            "layer_norm_eps": self.norm_epsilon,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "drop_path_rate": self.drop_path,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: 16 x 16 grey images, 10 classes, 0.1 M parameters."""
        return cls(
            32, (2, 2), (2, 4), 4, (0, 0), image_size=16, patch_size=2, num_channels=1, num_classes=10,
            mlp_ratio=2.0, drop_path=0.0,
        )  # fmt: skip

    @classmethod
    def t_w8(cls) -> Self:
        """Return Swin V2-T, windows of 8 on 256 x 256 pixels."""
        return cls(drop_path=0.2)

    @classmethod
    def t_w16(cls) -> Self:
        """Return Swin V2-T, windows of 16 on 256 x 256."""
        return dataclasses.replace(cls.t_w8(), window_size=16)

    @classmethod
    def s_w8(cls) -> Self:
        """Return Swin V2-S, windows of 8 on 256 x 256."""
        return cls(depths=(2, 2, 18, 2), drop_path=0.3)

    @classmethod
    def s_w16(cls) -> Self:
        """Return Swin V2-S, windows of 16 on 256 x 256."""
        return dataclasses.replace(cls.s_w8(), window_size=16)

    @classmethod
    def b_w8(cls) -> Self:
        """Return Swin V2-B, windows of 8 on 256 x 256."""
        return cls(128, (2, 2, 18, 2), (4, 8, 16, 32), drop_path=0.5)

    @classmethod
    def b_w16(cls) -> Self:
        """Return Swin V2-B, windows of 16 on 256 x 256."""
        return dataclasses.replace(cls.b_w8(), window_size=16)

    @classmethod
    def b_w12(cls) -> Self:
        """Return Swin V2-B as pretrained on 21,841 classes: windows of 12 on 192 x 192."""
        return dataclasses.replace(cls.b_w8(), window_size=12, image_size=192, num_classes=21_841, drop_path=0.2)

    @classmethod
    def b_w12to16(cls) -> Self:
        """Return Swin V2-B, pretrained at windows of 12, fine-tuned at 16 on 256 x 256."""
        return cls.b_w12()._fine_tuned(16, 256)

    @classmethod
    def b_w12to24(cls) -> Self:
        """Return Swin V2-B, pretrained at windows of 12, fine-tuned at 24 on 384 x 384."""
        return cls.b_w12()._fine_tuned(24, 384)

    @classmethod
    def l_w12(cls) -> Self:
        """Return Swin V2-L as pretrained on 21,841 classes: windows of 12 on 192 x 192."""
        return dataclasses.replace(cls.b_w12(), d_model=192, num_heads=(6, 12, 24, 48))

    @classmethod
    def l_w12to16(cls) -> Self:
        """Return Swin V2-L, pretrained at windows of 12, fine-tuned at 16 on 256 x 256."""
        return cls.l_w12()._fine_tuned(16, 256)

    @classmethod
    def l_w12to24(cls) -> Self:
        """Return Swin V2-L, pretrained at windows of 12, fine-tuned at 24 on 384 x 384."""
        return cls.l_w12()._fine_tuned(24, 384)

    def _fine_tuned(self, window_size: int, size: int) -> Self:
        seen = tuple(self.window(stage) for stage in range(len(self.depths)))
        return dataclasses.replace(
            self, window_size=window_size, image_size=size, pretrained_window_sizes=seen, num_classes=1000
        )
