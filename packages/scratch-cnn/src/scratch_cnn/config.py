"""Configurations of LeNet-5 (http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf, section II.B)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from scratch_core.config import field, positive
from scratch_core.errors import ConfigError
from scratch_core.vision import check_labels, labels_to_hf, read_labels

# Table I of the paper: which of the 6 maps of S2 each of the 16 maps of C3 reads.
CONNECTIONS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LeNet5Config:
    """Raises ConfigError for a model that cannot be built. The input is always 32 x 32."""

    activation: str = "relu"  # or "tanh": 1.7159 tanh(2/3 x), as in the paper
    pooling: str = "max"  # or "subsampling": trainable, as in the paper
    connection_table: bool = False  # True: C3 reads the maps of the paper's table I; False: all maps
    output: str = "linear"  # or "rbf": distances from fixed 7 x 12 pictures of the digits, as in the paper
    num_channels: int = 1
    num_classes: int = 10
    labels: tuple[str, ...] = ()  # names of the classes; (): LABEL_0 ...

    image_size: ClassVar[int] = 32

    def __post_init__(self):
        positive(self, "num_channels", "num_classes")
        check_labels(self)
        for name, known in (("activation", ("relu", "tanh")), ("pooling", ("max", "subsampling"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")
        if self.output not in ("linear", "rbf") or (self.output == "rbf" and self.num_classes != 10):
            raise ConfigError(
                f"output={self.output!r} must be 'linear', or 'rbf' for 10 digits; num_classes={self.num_classes}"
            )

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return the same model for other classes, named by ``labels``, with a linear output.

        An "rbf" output has pictures of the ten digits only.
        """
        return dataclasses.replace(self, output="linear", labels=labels, num_classes=len(labels))

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json. Raises ConfigError for a malformed field."""
        labels = read_labels(fields)
        return cls(
            activation=field(fields, "activation", str, "relu"),
            pooling=field(fields, "pooling", str, "max"),
            connection_table=field(fields, "connection_table", bool, False),
            output=field(fields, "output", str, "linear"),
            num_channels=field(fields, "num_channels", int, 1),
            num_classes=len(labels),
            labels=labels,
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json."""
        return {
            "model_type": "lenet5",
            "activation": self.activation,
            "pooling": self.pooling,
            "connection_table": self.connection_table,
            "output": self.output,
            "num_channels": self.num_channels,
            **labels_to_hf(self),
        }

    @classmethod
    def paper(cls) -> Self:
        """Return LeNet-5 as in the paper."""
        return cls("tanh", "subsampling", connection_table=True, output="rbf")

    @classmethod
    def modern(cls) -> Self:
        """Return LeNet-5 as it is taught today: ReLU, max pooling, softmax."""
        return cls()

    @classmethod
    def tiny(cls) -> Self:
        """Return the modern version, which is small enough for the tests and the first run: 61,706 parameters."""
        return cls()
