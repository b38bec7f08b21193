"""Counting the parameters of a configuration without building it, and reading which of them are decayed."""

import dataclasses
import re
from typing import Any

import jax
from flax import nnx

from scratch_core.errors import ConfigError
from scratch_core.pretrained import PretrainedModel
from scratch_core.weights import flatten


class _FixedStream(nnx.RngStream):
    """A random stream that does not count its draws. Under tracing, counting takes time quadratic in their number."""

    def __call__(self) -> jax.Array:
        return self.key[...]


def abstract(model_class: type[PretrainedModel], config: Any) -> PretrainedModel:
    """Return the model of a configuration, with shapes instead of arrays."""

    def create() -> PretrainedModel:
        rngs: Any = nnx.Rngs(0)
        rngs.default = _FixedStream(0, tag="default")
        return model_class(config, rngs=rngs)

    return nnx.eval_shape(create)


def count_parameters(model_class: type[PretrainedModel], config: Any) -> int:
    """Return the number of parameters of a configuration, without allocating them.

    A stack of identical layers is extrapolated from its first three, because tracing eighty takes many seconds.
    """

    def count(config: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract(model_class, config), nnx.Param)))

    if any(field.name == "num_layers" for field in dataclasses.fields(config)) and config.num_layers > 3:
        try:
            one, two, three = (count(dataclasses.replace(config, num_layers=n)) for n in (1, 2, 3))
        except ConfigError:  # this configuration cannot be built with fewer layers
            return count(config)
        if three - two == two - one:
            return one + (config.num_layers - 1) * (two - one)
    return count(config)


def decayed_parameters(model_class: type[PretrainedModel], config: Any) -> list[str]:
    """Return the sorted paths of the parameters with weight decay, with ``*`` for the number of a layer."""
    from scratch_core.train.optimizers import decay_mask

    parameters = nnx.to_pure_dict(nnx.state(abstract(model_class, config), nnx.Param))
    mask = flatten(decay_mask(parameters, model_class.decayed))
    return sorted({re.sub(r"\b\d+\b", "*", path) for path, decayed in mask.items() if decayed})
