r"""Running statistics at other parameters than the trained ones: those that an average of parameters is evaluated with.

A batch norm keeps moving averages of what it saw while the trained parameters moved. They do not belong to the
parameters that a schedule-free method or a moving average evaluates. With these held fixed, the statistics over the
batches $k = 1 \dots K$, all of one size, of means $\mu_k$ and variances $\sigma_k^2$ are

$$ \mu = \frac 1K \sum_k \mu_k, \qquad \sigma^2 = \frac 1K \sum_k \left(\sigma_k^2 + (\mu_k - \mu)^2\right) \tag{1} $$

which are those of all values at once. Each layer is given what the layers before it make of a batch with that batch's
own statistics, as in training. Source: Wu and Johnson 2021, https://arxiv.org/abs/2105.07576, section 3.
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
    """Return the layers whose running statistics move in training, in a fixed order: frozen ones are left out.

    They have ``mean`` and ``var`` (nnx.BatchStat), ``momentum`` and ``use_running_average``: flax's BatchNorm, or one
    for which a momentum of None means all batches since its ``count`` was 0, with equal weights. Raises ConfigError
    for a layer that keeps statistics in another way.
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

    For a model whose parameters were averaged or replaced after training. ``batches`` are of one size, such as some of
    those that were trained on; ``loss_fn(model, batch)`` runs the model on one. Dropout is off, nothing else of the
    model changes, and it is left in evaluation mode. A model without running statistics is not run at all. Raises
    DataError without a batch and for batches of several shapes, ConfigError as :func:`moving_layers`.
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
        raise DataError("running statistics need at least one batch: give some of those that were trained on")
    for layer, found in zip(layers, moving_layers(nnx.merge(graphdef, statistics, rest)), strict=True):
        layer.mean[...], layer.var[...] = found.mean[...], found.var[...]


@partial(jax.jit, static_argnums=(0, 1))
def _add(graphdef: Any, loss_fn: LossFunction, k: jax.Array, statistics: Any, rest: Any, batch: Any) -> Any:
    """Return the statistics over k + 1 batches, of those over the k before and one more."""
    statistics = jax.tree.map(lambda x: jnp.where(k == 0, jnp.zeros_like(x), x), statistics)
    model = nnx.merge(graphdef, statistics, rest)
    layers = moving_layers(model)
    before = [(layer.mean[...], layer.var[...]) for layer in layers]
    loss_fn(model, batch)
    for layer, (mean, var) in zip(layers, before, strict=True):
        if isinstance(layer, nnx.BatchNorm):  # it holds those of this batch alone now
            share, distance = 1 / (k + 1), layer.mean[...] - mean
            layer.mean[...] = mean + share * distance
            layer.var[...] = var + share * (layer.var[...] - var) + share * (1 - share) * distance**2
    return nnx.state(model, nnx.BatchStat)
