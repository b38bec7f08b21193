r"""Grad-CAM: where in the image a class was seen.

Source: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, eq. 1 and 2. For the logit $y^c$ of a class and the
last feature map $A$ of $Z$ positions:

$$ \alpha_c = \frac{1}{Z} \sum_{yx} \frac{\partial y^c}{\partial A_{yx}}, \qquad
   L^c_{yx} = \mathrm{relu}\left(\alpha_c \cdot A_{yx}\right) \tag{1} $$

Shapes: B batch, Y rows, X columns, C channels, M classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def grad_cam(head: Callable[[jax.Array], jax.Array], map_BYXC: jax.Array, classes_B: jax.Array) -> jax.Array:
    """Return the heat L_BYX of eq. 1, float32, for the logits ``head(map_BYXC)`` [B, M] of each image's class."""

    def score(map_BYXC: jax.Array) -> jax.Array:
        return jnp.take_along_axis(head(map_BYXC), classes_B[:, None], axis=1).sum().astype(jnp.float32)

    alpha_BC = jax.grad(score)(map_BYXC).astype(jnp.float32).mean(axis=(1, 2))
    return jax.nn.relu(jnp.einsum("BC,BYXC->BYX", alpha_BC, map_BYXC.astype(jnp.float32)))  # eq. 1
