"""Configurations of ResNet (https://arxiv.org/abs/1512.03385, table 1), in the v1.5 form that is trained today."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from scratch_core.config import field, integers, positive, unsupported
from scratch_core.errors import ConfigError
from scratch_core.vision import check_labels, labels_to_hf, read_labels

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
TIMM_CLASS = "timm.models.resnet.ResNet"
TIMM_NAME = re.compile(r"(?:tv_)?resnet(18|34|50|101|152)(?:\.\w+)?")


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Raises ConfigError for sizes that cannot be built."""

    depths: tuple[int, ...]  # blocks of each stage
    widths: tuple[int, ...]  # channels out of each stage
    block: str = "bottleneck"  # or "basic"
    stem_width: int = 64
    num_channels: int = 3
    num_classes: int = 1000
    labels: tuple[str, ...] = ()  # names of the classes; (): LABEL_0 ...
    stride_in_1x1: bool = False  # True: the paper's v1; False: v1.5
    stride_in_first_stage: bool = False
    zero_init_last: bool = False  # blocks start as the identity (Goyal et al. 2017, 1706.02677, section 5.1)
    layout: str = "hf"  # of the checkpoint: "hf", or "timm" for timm and torchvision
    architecture: str = ""  # timm's name of the model, such as "resnet50"

    image_size: ClassVar[None] = None  # images may have any size

    def __post_init__(self):
        positive(self, "stem_width", "num_channels", "num_classes")
        check_labels(self)
        if len(self.depths) != len(self.widths) or not self.depths or min(*self.depths, *self.widths, 1) < 1:
            raise ConfigError(f"depths={self.depths} and widths={self.widths} must be positive, one of each per stage")
        if self.block not in ("basic", "bottleneck"):
            raise ConfigError(f"block={self.block!r} must be 'basic' or 'bottleneck'")
        if self.block == "bottleneck" and any(width % 4 for width in self.widths):
            raise ConfigError(f"widths={self.widths} must be multiples of 4: a bottleneck is a quarter as wide")
        if self.layout not in ("hf", "timm"):
            raise ConfigError(f"layout={self.layout!r} must be 'hf' or 'timm'")
        if self.layout == "timm" and (self.stride_in_1x1 or self.stride_in_first_stage or self.num_channels != 3):
            raise ConfigError(
                f"layout='timm' needs num_channels=3 and no stride_in_1x1 or stride_in_first_stage, not num_channels="
                f"{self.num_channels}, stride_in_1x1={self.stride_in_1x1} and stride_in_first_stage="
                f"{self.stride_in_first_stage}: use layout='hf'"
            )

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return the same model for other classes, named by ``labels``."""
        return dataclasses.replace(self, labels=labels, num_classes=len(labels))

    @property
    def num_layers(self) -> int:
        """Number of blocks of all stages."""
        return sum(self.depths)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a transformers or a timm config.json.

        Raises ConfigError for a missing or malformed field, and for a field that needs something not implemented.
        """
        if "architecture" in fields:
            return cls._from_timm(fields)
        unsupported(fields, hidden_act="relu")
        labels = read_labels(fields)
        return cls(
            depths=integers(fields, "depths", (3, 4, 6, 3)),
            widths=integers(fields, "hidden_sizes", (256, 512, 1024, 2048)),
            block=field(fields, "layer_type", str, "bottleneck"),
            stem_width=field(fields, "embedding_size", int, 64),
            num_channels=field(fields, "num_channels", int, 3),
            num_classes=len(labels),
            labels=labels,
            stride_in_1x1=field(fields, "downsample_in_bottleneck", bool, False),
            stride_in_first_stage=field(fields, "downsample_in_first_stage", bool, False),
        )

    @classmethod
    def _from_timm(cls, fields: Mapping[str, Any]) -> Self:
        """Read ``{"architecture": "resnet50", "num_classes": 1000}``, or timm's ResNet class with its arguments."""
        name = field(fields, "architecture", str)
        unsupported(fields, model_args=({},), global_pool="avg")
        labels = tuple(field(fields, "label_names", list, []))
        common: dict[str, Any] = {
            "num_classes": field(fields, "num_classes", int, len(labels) or 1000),
            "labels": labels,
            "layout": "timm",
            "architecture": name,
        }
        if name == TIMM_CLASS:
            block = field(fields, "block", str)
            channels = integers(fields, "channels")
            widths = tuple(c * (4 if block == "bottleneck" else 1) for c in channels)
            return cls(integers(fields, "layers"), widths, block, **common)
        found = TIMM_NAME.fullmatch(name)
        if not found:
            raise ConfigError(
                f"timm architecture {name!r} is not implemented; known are resnet18, 34, 50, 101, 152 and {TIMM_CLASS}"
            )
        return dataclasses.replace(cls.of_depth(int(found[1])), **common)

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json for the library of the layout."""
        if self.layout == "timm":
            fields: dict[str, Any] = {"architecture": self.architecture or TIMM_CLASS, "num_classes": self.num_classes}
            if self.labels:
                fields["label_names"] = list(self.labels)
            if fields["architecture"] == TIMM_CLASS:
                channels = [width // (4 if self.block == "bottleneck" else 1) for width in self.widths]
                fields |= {"block": self.block, "layers": list(self.depths), "channels": channels}
            return fields
        return {
            "model_type": "resnet",
            "depths": list(self.depths),
            "hidden_sizes": list(self.widths),
            "layer_type": self.block,
            "embedding_size": self.stem_width,
            "num_channels": self.num_channels,
            **labels_to_hf(self),
            "downsample_in_bottleneck": self.stride_in_1x1,
            "downsample_in_first_stage": self.stride_in_first_stage,
            "hidden_act": "relu",
        }

    @classmethod
    def of_depth(cls, depth: int) -> Self:
        """Return ResNet-18, 34, 50, 101 or 152."""
        if depth not in DEPTHS:
            raise ConfigError(f"depth={depth} must be one of {', '.join(map(str, DEPTHS))}")
        if depth < 50:
            return cls(DEPTHS[depth], (64, 128, 256, 512), "basic")
        return cls(DEPTHS[depth], (256, 512, 1024, 2048))

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: grey images, 10 classes, 78,000 parameters."""
        return cls((1, 1), (32, 64), "basic", stem_width=32, num_channels=1, num_classes=10)

    @classmethod
    def resnet18(cls) -> Self:
        """Return ResNet-18."""
        return cls.of_depth(18)

    @classmethod
    def resnet34(cls) -> Self:
        """Return ResNet-34."""
        return cls.of_depth(34)

    @classmethod
    def resnet50(cls) -> Self:
        """Return ResNet-50."""
        return cls.of_depth(50)

    @classmethod
    def resnet101(cls) -> Self:
        """Return ResNet-101."""
        return cls.of_depth(101)

    @classmethod
    def resnet152(cls) -> Self:
        """Return ResNet-152."""
        return cls.of_depth(152)
