r"""L-BFGS with an initial matrix that the caller provides.

Source: Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4 and 7.5. With the last M changes
$s_m$ of $\theta$ and $y_m$ of the gradient g, $\rho_m = 1 / s_m^\top y_m$, the step is $-H g$, where

$$ H_{m+1} = (I - \rho_m s_m y_m^\top) H_m (I - \rho_m y_m s_m^\top) + \rho_m s_m s_m^\top \tag{1} $$

is never formed; two loops over the pairs apply it. $H_0$ is usually $\gamma I$ with $\gamma = s^\top y / y^\top y$.
Here it is $\gamma B^{-1}$ with $\gamma = s^\top y / y^\top B^{-1} y$ and B close to the Hessian. B is computed again
after 8, 48, 288, ... steps; the pairs are kept.

It stops when $\max |g| \le$ tol and $\tfrac12 g^\top B^{-1} g$ is below 2.5e-7 of the value. That product estimates
how far the value is above its minimum; the gradient alone says little when B is ill-conditioned.

Shapes: K rows of E parameters, P = K E, M pairs.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

MEMORY = 10  # pairs, as in scikit-learn
GAP = 2.5e-7  # estimated distance to the minimum at which it may stop, relative to the value
FIRST_STEPS, GROWTH = 8, 6  # B is computed again after 8 steps, then each time after 6 times as many

State: TypeAlias = tuple[jax.Array, ...]  # what a loop carries
ValueAndGradient: TypeAlias = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Minimum(NamedTuple):
    """theta [K, E], the number of iterations, and the largest violation of optimality (max |gradient| without L1).

    The minima of A penalties have an axis [A] in front.
    """

    theta: jax.Array
    iterations: jax.Array
    violation: jax.Array


def lbfgs(
    value_and_gradient: ValueAndGradient,
    inverse_at: Callable[[jax.Array], jax.Array],
    start_KE: jax.Array,
    tol: jax.Array,
    max_iter: jax.Array,
) -> Minimum:
    """Minimise a smooth function of theta [K, E] from ``start_KE``.

    ``value_and_gradient(theta)`` returns the value and the gradient [K, E]. ``inverse_at(theta)`` returns $B^{-1}$ for
    every row of theta, as [E, E] or only its diagonal [E].
    """
    K, E = start_KE.shape
    dtype = start_KE.dtype
    eps = jnp.finfo(dtype).eps

    def flat(theta_P: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, gradient_KE = value_and_gradient(theta_P.reshape(K, E))
        return value, gradient_KE.ravel()

    def phase(state: State) -> State:
        inverse = inverse_at(state[0].reshape(K, E))
        limit = jnp.minimum(jnp.where(state[7] == 0, FIRST_STEPS, GROWTH * state[7]), max_iter)

        def apply(g_P: jax.Array) -> jax.Array:
            g_KE = g_P.reshape(K, E)
            return (g_KE @ inverse if inverse.ndim == 2 else g_KE * inverse).ravel()

        def direction(
            g_P: jax.Array, s_MP: jax.Array, y_MP: jax.Array, rho_M: jax.Array, gamma: jax.Array
        ) -> jax.Array:
            def backward(m: jax.Array, carry: State) -> State:
                q_P, alpha_M = carry
                last = MEMORY - 1 - m
                alpha = rho_M[last] * (s_MP[last] @ q_P)
                return q_P - alpha * y_MP[last], alpha_M.at[last].set(alpha)

            def forward(m: jax.Array, r_P: jax.Array) -> jax.Array:
                return r_P + (alpha_M[m] - rho_M[m] * (y_MP[m] @ r_P)) * s_MP[m]

            q_P, alpha_M = jax.lax.fori_loop(0, MEMORY, backward, (g_P, jnp.zeros_like(rho_M)))
            return -jax.lax.fori_loop(0, MEMORY, forward, gamma * apply(q_P))

        def converged(value: jax.Array, g_P: jax.Array) -> jax.Array:
            return (jnp.max(jnp.abs(g_P)) <= tol) & (0.5 * g_P @ apply(g_P) <= GAP * value)

        def too_high(search: State) -> jax.Array:
            t, value, _, old, slope, tries = search
            # A step that is downhill by its gradient must not be refused because of rounding in the value.
            return ~(value <= old + 1e-4 * t * slope + 10 * eps * jnp.abs(old)) & (tries < 31)

        def step(state: State) -> State:
            theta_P, value, g_P, s_MP, y_MP, rho_M, gamma, count, _ = state
            d_P = direction(g_P, s_MP, y_MP, rho_M, gamma)
            slope = g_P @ d_P

            def halve(search: State) -> State:
                t, _, _, old, slope, tries = search
                t = 0.5 * t
                return t, *flat(theta_P + t * d_P), old, slope, tries + 1

            first = jnp.full((), 2, dtype), jnp.full((), jnp.inf, dtype), g_P, value, slope, jnp.zeros((), jnp.int32)
            t, new_value, new_g_P, *_, tries = jax.lax.while_loop(too_high, halve, first)
            s_P, y_P = t * d_P, new_g_P - g_P
            curvature = s_P @ y_P
            usable = curvature > eps * jnp.sqrt((s_P @ s_P) * (y_P @ y_P))
            rho = jnp.where(usable, 1 / jnp.where(usable, curvature, 1), 0)
            expected = y_P @ apply(y_P)
            gamma = jnp.where(usable & (expected > 0), curvature / jnp.where(expected > 0, expected, 1), gamma)
            s_MP, y_MP = jnp.concatenate([s_MP[1:], s_P[None]]), jnp.concatenate([y_MP[1:], y_P[None]])
            rho_M = jnp.concatenate([rho_M[1:], rho[None]])
            failed = tries >= 31
            done = converged(new_value, new_g_P) | failed | (slope == 0)
            theta_P, value, g_P = (
                jnp.where(failed, old, new)
                for old, new in ((theta_P, theta_P + s_P), (value, new_value), (g_P, new_g_P))
            )
            return theta_P, value, g_P, s_MP, y_MP, rho_M, gamma, count + 1, done

        begin = *state[:6], jnp.ones((), dtype), state[7], converged(state[1], state[2])
        return jax.lax.while_loop(lambda s: ~s[-1] & (s[-2] < limit), step, begin)

    theta_P = start_KE.ravel()
    value, g_P = flat(theta_P)
    pairs = jnp.zeros((MEMORY, K * E), dtype), jnp.zeros((MEMORY, K * E), dtype), jnp.zeros(MEMORY, dtype)
    begin = theta_P, value, g_P, *pairs, jnp.ones((), dtype), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    theta_P, _, g_P, *_, count, _ = jax.lax.while_loop(lambda s: ~s[-1] & (s[-2] < max_iter), phase, begin)
    return Minimum(theta_P.reshape(K, E), count, jnp.max(jnp.abs(g_P)))
