"""Freezing by paths, and new heads, for any module."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.fine_tuning import freeze, replace_head
from scratch_core.layers import MLP, LayerNorm, Linear


@dataclasses.dataclass(frozen=True)
class Config:
    labels: tuple[str, ...] = ("a", "b")

    def with_labels(self, labels):
        return dataclasses.replace(self, labels=labels)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.config = Config()
        self.norm = LayerNorm(4)
        self.layers = nnx.List([MLP(4, 8, activation=lambda x: x, rngs=rngs) for _ in range(2)])
        self.classifier = Linear(4, 2, rngs=rngs)


@pytest.fixture
def model():
    return Model(nnx.Rngs(0))


def trained(model, *patterns, keep=()):
    """The paths of the parameters that are still trained."""
    parameters, _ = nnx.split_state(nnx.state(model), freeze(model, *patterns, keep=keep), ...)
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(parameters)}


def test_what_matches_is_frozen_and_what_is_kept_is_not(model):
    assert trained(model, "*", keep=("classifier.*",)) == {"classifier.kernel", "classifier.bias"}
    assert trained(model, "*", keep=("*.bias", "norm.scale")) == {
        "classifier.bias", "layers.0.down.bias", "layers.0.up.bias", "layers.1.down.bias", "layers.1.up.bias",
        "norm.bias", "norm.scale",
    }  # fmt: skip
    assert "layers.0.up.kernel" not in trained(model, "layers.0.*")
    assert "layers.1.up.kernel" in trained(model, "layers.0.*")
    everything = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert trained(model) == everything


@pytest.mark.parametrize(
    ("patterns", "keep", "message"),
    [
        (("*",), ("head.*",), r"\['head.\*'\] match no parameter of Model; its parameters are classifier.bias"),
        (("layer.*",), (), r"\['layer.\*'\] match no parameter"),
        (("*",), (), r"patterns=\['\*'\] freeze every parameter"),
    ],
)
def test_patterns_that_cannot_be_meant_are_errors(model, patterns, keep, message):
    with pytest.raises(ConfigError, match=message):
        freeze(model, *patterns, keep=keep)


def test_a_new_head_has_the_new_classes(model):
    kernel = np.array(model.layers[0].up.kernel[...])
    replace_head(model, ["cat", "dog", "owl"], rngs=nnx.Rngs(1))
    assert model.classifier.kernel.shape == (4, 3)
    assert model.config.labels == ("cat", "dog", "owl")
    np.testing.assert_array_equal(model.layers[0].up.kernel[...], kernel)
    with pytest.raises(ConfigError, match="at least one class"):
        replace_head(model, (), rngs=nnx.Rngs(1))
