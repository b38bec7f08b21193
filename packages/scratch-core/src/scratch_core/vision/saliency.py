r"""Grad-CAM: where in an image a model saw a class, and a picture of it.

Source: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, eq. 1 and 2. For the logit $y^c$ of a class and the
last feature map $A$ of $Z$ positions:

$$ \alpha_c = \frac{1}{Z} \sum_{yx} \frac{\partial y^c}{\partial A_{yx}}, \qquad
   L^c_{yx} = \mathrm{relu}\left(\alpha_c \cdot A_{yx}\right) \tag{1} $$

Shapes: B batch, Y rows, X columns, C channels, M classes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scratch_core.vision.images import pillow


def grad_cam(head: Callable[[jax.Array], jax.Array], map_BYXC: jax.Array, classes_B: jax.Array) -> jax.Array:
    """Return the heat L_BYX of eq. 1, float32, for the logits ``head(map_BYXC)`` [B, M] of each image's class."""

    def score(map_BYXC: jax.Array) -> jax.Array:
        return jnp.take_along_axis(head(map_BYXC), classes_B[:, None], axis=1).sum().astype(jnp.float32)

    alpha_BC = jax.grad(score)(map_BYXC).astype(jnp.float32).mean(axis=(1, 2))
    return jax.nn.relu(jnp.einsum("BC,BYXC->BYX", alpha_BC, map_BYXC.astype(jnp.float32)))  # eq. 1


def overlay(image: Any, heat_YX: np.ndarray) -> Any:
    """Return a Pillow image with a heat map over it: the hottest place is red, the coldest unchanged.

    heat_YX (>= 0) may have any size and scale; it is stretched over the whole image.
    """
    Image = pillow("showing where a model looked")
    image = image.convert("RGB")
    heat_YX = np.asarray(heat_YX, np.float32)
    span = heat_YX.max() - heat_YX.min()
    heat_YX = (heat_YX - heat_YX.min()) / span if span > 0 else np.zeros_like(heat_YX)
    stretched = Image.fromarray((heat_YX * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    strength = np.asarray(stretched, np.float32)[..., None] / 255
    colour = np.concatenate([np.full_like(strength, 255), 160 * (1 - strength), 0 * strength], axis=-1)
    mixed = np.asarray(image, np.float32) * (1 - 0.65 * strength) + colour * 0.65 * strength
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
