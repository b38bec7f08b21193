"""Configurations of a model: which layer, how many, how wide."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from scratch_core.config import field, positive
from scratch_core.errors import ConfigError

CONVS = ("gcn", "gat", "gatv2", "sage", "gin", "gine")
POOLINGS = ("sum", "mean", "max", "attention")
ACTIVATIONS = ("relu", "elu")


@dataclasses.dataclass(frozen=True)
class GNNConfig:
    """Raises ConfigError for a model that cannot be built."""

    in_channels: int  # features of a node
    hidden_channels: int  # width between two layers; with attention, of all heads together
    out_channels: int  # classes; of a link predictor, the width of a node's vector
    num_layers: int = 2
    conv: str = "gcn"  # one of CONVS
    heads: int = 1  # of attention, in all layers but the last
    output_heads: int = 1  # in the last layer, where heads are averaged
    aggr: str = "mean"  # of sage
    edge_dim: int | None = None  # features of an edge, for gine
    activation: str = "relu"  # between the layers
    dropout: float = 0.0  # of the features that a layer reads
    attention_dropout: float = 0.0
    pooling: str = "sum"  # of a graph's nodes, for a graph classifier
    labels: tuple[str, ...] = ()  # names of the classes

    def __post_init__(self):
        positive(self, "in_channels", "hidden_channels", "out_channels", "num_layers", "heads", "output_heads")
        choices = {"conv": CONVS, "pooling": POOLINGS, "activation": ACTIVATIONS, "aggr": ("mean", "max", "sum")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is not implemented: choose one of {', '.join(allowed)}"
                )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")
        if self.conv in ("gat", "gatv2") and self.hidden_channels % self.heads:
            raise ConfigError(f"heads={self.heads} must divide hidden_channels={self.hidden_channels}")
        if self.conv == "gine" and (self.edge_dim is None or self.edge_dim < 1):
            raise ConfigError(f"conv='gine' reads features of edges: edge_dim={self.edge_dim} must be at least 1")
        if self.labels and len(self.labels) != self.out_channels:
            raise ConfigError(f"{len(self.labels)} labels do not fit out_channels={self.out_channels}")

    def with_data(self, in_channels: int, labels: tuple[str, ...], edge_dim: int | None = None) -> Self:
        """Return the same model for other features and classes. Raises ConfigError if gine gets no ``edge_dim``."""
        if self.conv == "gine" and edge_dim is None:
            raise ConfigError("conv='gine' reads features of edges, and this data has none: choose another preset")
        edge_dim = edge_dim if self.conv == "gine" else None
        return dataclasses.replace(
            self, in_channels=in_channels, out_channels=len(labels), labels=labels, edge_dim=edge_dim
        )

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json. Raises ConfigError for a missing or malformed field."""
        values: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            kind = {"labels": (list, tuple), "edge_dim": int}.get(item.name) or type(_EXAMPLE[item.name])
            if item.default is dataclasses.MISSING:
                values[item.name] = field(fields, item.name, kind)
            else:
                values[item.name] = field(fields, item.name, kind, item.default)
        values["labels"] = tuple(map(str, values["labels"]))
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json."""
        return {"model_type": "gnn", **dataclasses.asdict(self), "labels": list(self.labels)}

    @classmethod
    def tiny(cls) -> Self:
        """Return a GCN of two layers for the tests and the first run."""
        return cls(8, 16, 4)

    @classmethod
    def gat(cls) -> Self:
        """Return a GAT of 4 heads of 8."""
        return cls(8, 32, 4, conv="gat", heads=4, activation="elu")

    @classmethod
    def gatv2(cls) -> Self:
        """Return a GATv2 of 4 heads of 8."""
        return cls(8, 32, 4, conv="gatv2", heads=4, activation="elu")

    @classmethod
    def sage(cls) -> Self:
        """Return a GraphSAGE of two layers."""
        return cls(8, 32, 4, conv="sage")

    @classmethod
    def gin(cls) -> Self:
        """Return a GIN of three layers."""
        return cls(8, 32, 4, num_layers=3, conv="gin")

    @classmethod
    def gcn_cora(cls) -> Self:
        """Return the GCN of https://arxiv.org/abs/1609.02907, section 5.2, for Cora."""
        return cls(1433, 16, 7, dropout=0.5)

    @classmethod
    def gat_cora(cls) -> Self:
        """Return the GAT of https://arxiv.org/abs/1710.10903, section 3.3, for Cora."""
        return cls(1433, 64, 7, conv="gat", heads=8, activation="elu", dropout=0.6, attention_dropout=0.6)


_EXAMPLE = dataclasses.asdict(GNNConfig.tiny())
