r"""Newton's method for a smooth f of coefficients and intercepts, with or without an L1 penalty on the coefficients.

Each step minimises the quadratic model of f at $\theta$, plus the penalty,

$$ \min_z\; g^\top (z - \theta) + \tfrac12 (z - \theta)^\top H (z - \theta) + \lambda_1 \|z_w\|_1 \tag{1} $$

and goes towards z, halving the step until the objective falls enough (Armijo's rule). Without a penalty eq. 1 is a
linear system. With one, the intercepts are eliminated by the Schur complement and the rest is solved by coordinate
descent, which gives exact zeros (as in glmnet: Friedman, Hastie and Tibshirani 2010,
https://doi.org/10.18637/jss.v033.i01). It stops by the same two criteria as :mod:`.lbfgs`.

Shapes: D features, E = D + 1 (features and intercept), K rows of coefficients, P = E * K.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .coordinate_descent import descend
from .lbfgs import GAP, Minimum, State, ValueAndGradient


def newton(
    value_and_gradient: ValueAndGradient,
    hessian: Callable[[jax.Array], jax.Array],
    start_KE: jax.Array,
    l1: jax.Array,
    tol: jax.Array,
    max_iter: jax.Array,
    sparse: bool,
) -> Minimum:
    """Minimise f from ``start_KE``, plus the L1 penalty if ``sparse``.

    ``value_and_gradient(theta)`` returns f and its gradient [K, E], ``hessian(theta)`` returns H [P, P] in the order
    [E, K].
    """
    K, E = start_KE.shape
    D, dtype = E - 1, start_KE.dtype
    eps = jnp.finfo(dtype).eps

    def penalty(theta_KE: jax.Array) -> jax.Array:
        return l1 * jnp.abs(theta_KE[:, :-1]).sum() if sparse else jnp.zeros((), dtype)

    def violation(theta_KE: jax.Array, g_KE: jax.Array) -> jax.Array:
        if not sparse:
            return jnp.max(jnp.abs(g_KE))
        coef_KD, slope_KD = theta_KE[:, :-1], g_KE[:, :-1]
        at_zero = jnp.maximum(jnp.abs(slope_KD) - l1, 0)
        wrong = jnp.where(coef_KD == 0, at_zero, jnp.abs(slope_KD + l1 * jnp.sign(coef_KD)))
        return jnp.maximum(wrong.max(initial=0), jnp.max(jnp.abs(g_KE[:, -1])))

    def target(theta_KE: jax.Array, g_KE: jax.Array) -> jax.Array:
        """Return the minimiser z of eq. 1 at theta."""
        H_PP, theta_P = hessian(theta_KE), theta_KE.T.ravel()
        right_P = H_PP @ theta_P - g_KE.T.ravel()
        if not sparse:
            return jax.scipy.linalg.solve(H_PP, right_P, assume_a="pos").reshape(E, K).T
        n = D * K  # the intercepts come last
        corner = H_PP[n:, n:]
        across = jax.scipy.linalg.solve(corner, jnp.concatenate([H_PP[n:, :n], right_P[n:, None]], 1), assume_a="pos")
        gram, cross = H_PP[:n, :n] - H_PP[:n, n:] @ across[:, :n], right_P[:n] - H_PP[:n, n:] @ across[:, n]
        bound = cross @ jax.scipy.linalg.solve(gram, cross, assume_a="pos")
        coef = descend(gram, cross, bound, l1, 0.0, theta_P[:n], 1e-3 * tol, 1000).coef
        intercept = across[:, n] - across[:, :n] @ coef
        return jnp.concatenate([coef, intercept]).reshape(E, K).T

    def step(state: State) -> State:
        theta_KE, value, g_KE, count, _, _ = state
        d_KE = target(theta_KE, g_KE) - theta_KE
        slope = (g_KE * d_KE).sum() + penalty(theta_KE + d_KE) - penalty(theta_KE)
        old = value + penalty(theta_KE)

        def attempt(t: jax.Array) -> State:
            new_KE = theta_KE + t * d_KE
            value, g_KE = value_and_gradient(new_KE)
            return t, value, g_KE, value + penalty(new_KE)

        def too_high(state: State) -> jax.Array:
            t, *_, whole = state
            return ~(whole <= old + 1e-4 * t * slope + 10 * eps * jnp.abs(old)) & (t > 1e-9)

        before = jnp.full((), 2, dtype), value, g_KE, jnp.full((), jnp.inf, dtype)
        t, value, g_KE, _ = jax.lax.while_loop(too_high, lambda s: attempt(0.5 * s[0]), before)
        new_KE = theta_KE + t * d_KE
        # Where a step changes nothing but rounding, no further progress is possible.
        stuck = jnp.max(jnp.abs(t * d_KE)) <= 2 * eps * jnp.max(jnp.abs(new_KE))
        wrong = violation(new_KE, g_KE)
        done = (wrong <= tol) & (-0.5 * slope <= GAP * old)  # the model predicted only a small decrease for this step
        return new_KE, value, g_KE, count + 1, wrong, done | stuck | (t <= 1e-9)

    value, g_KE = value_and_gradient(start_KE)
    begin = start_KE, value, g_KE, jnp.zeros((), jnp.int32), violation(start_KE, g_KE), jnp.zeros((), bool)
    theta_KE, *_, count, wrong, _ = jax.lax.while_loop(lambda s: ~s[-1] & (s[3] < max_iter), step, begin)
    return Minimum(theta_KE, count, wrong)
