r"""Recomputes the running statistics of batch norms for other parameters than the trained ones, such as an average.

A batch norm keeps moving averages over the batches of training, while the trained parameters change. These averages
do not fit the parameters that a schedule-free method or a moving average evaluates. With those parameters held fixed,
the statistics over batches $k = 1 \dots K$ of equal size, with means $\mu_k$ and variances $\sigma_k^2$, are

$$ \mu = \frac 1K \sum_k \mu_k, \qquad \sigma^2 = \frac 1K \sum_k \left(\sigma_k^2 + (\mu_k - \mu)^2\right) \tag{1} $$

which equal the mean and variance of all values together. As in training, the layers normalise each batch with that
batch's own statistics. Source: Wu and Johnson 2021, https://arxiv.org/abs/2105.07576, section 3.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scratch_core.errors import ConfigError, DataError
from scratch_core.train.step import LossFunction, model_loss


def moving_layers(model: nnx.Module) -> list[Any]:
    """Return the layers whose running statistics change in training, in a fixed order. Frozen layers are left out.

    Each has ``mean`` and ``var`` (nnx.BatchStat), ``momentum`` and ``use_running_average``. It is flax's BatchNorm, or
    a layer for which a momentum of None averages all batches since its ``count`` was 0 with equal weights. Raises
    ConfigError for a layer that keeps statistics in another way.
    """
    layers = []
    for path, module in nnx.iter_modules(model):
        if not any(isinstance(value, nnx.BatchStat) for value in vars(module).values()):
            continue
        if missing := [
            name for name in ("mean", "var", "momentum", "use_running_average") if not hasattr(module, name)
        ]:
            raise ConfigError(
                f"{'.'.join(map(str, path))}: {type(module).__name__} keeps running statistics, but has no "
                f"{missing[0]}: they cannot be computed again; give it mean, var, momentum and use_running_average"
            )
        if not getattr(module, "frozen", False):
            layers.append(module)
    return layers


def recompute_statistics(model: nnx.Module, batches: Iterable[Any], loss_fn: LossFunction = model_loss) -> None:
    """Set the running statistics of ``model`` to those over ``batches`` at its present parameters, eq. 1.

    Use it for a model whose parameters were averaged or replaced after training. ``batches`` have one size; some
    training batches will do. ``loss_fn(model, batch)`` runs the model on one. Dropout is off, nothing else of the
    model changes, and the model is left in evaluation mode. A model without running statistics is not run. Raises
    DataError without a batch and for batches of different shapes, and ConfigError like :func:`moving_layers`.
    """
    model.eval()
    layers = moving_layers(model)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.use_running_average = False
        layer.momentum = 0.0 if isinstance(layer, nnx.BatchNorm) else None
    graphdef, statistics, rest = nnx.split(model, nnx.BatchStat, ...)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
    shapes = None
    for k, batch in enumerate(batches):
        shapes = shapes or jax.tree.map(np.shape, batch)
        if jax.tree.map(np.shape, batch) != shapes:
            raise DataError(
                f"batch {k} of the statistics has the shapes {jax.tree.map(np.shape, batch)}, and batch 0 {shapes}: "
                "give batches of one size"
            )
        statistics = _add(graphdef, loss_fn, np.int32(k), statistics, rest, batch)
    if shapes is None:
        raise DataError("running statistics need at least one batch: give some training batches")
    for layer, found in zip(layers, moving_layers(nnx.merge(graphdef, statistics, rest)), strict=True):
        layer.mean[...], layer.var[...] = found.mean[...], found.var[...]


@partial(jax.jit, static_argnums=(0, 1))
def _add(graphdef: Any, loss_fn: LossFunction, k: jax.Array, statistics: Any, rest: Any, batch: Any) -> Any:
    """Return the statistics over k + 1 batches, given those over the first k and one more batch."""
    statistics = jax.tree.map(lambda x: jnp.where(k == 0, jnp.zeros_like(x), x), statistics)
    model = nnx.merge(graphdef, statistics, rest)
    layers = moving_layers(model)
    before = [(layer.mean[...], layer.var[...]) for layer in layers]
    loss_fn(model, batch)
    for layer, (mean, var) in zip(layers, before, strict=True):
        if isinstance(layer, nnx.BatchNorm):  # with momentum 0 it now holds the statistics of this batch alone
            share, distance = 1 / (k + 1), layer.mean[...] - mean
            layer.mean[...] = mean + share * distance
            layer.var[...] = var + share * (layer.var[...] - var) + share * (1 - share) * distance**2
    return nnx.state(model, nnx.BatchStat)
