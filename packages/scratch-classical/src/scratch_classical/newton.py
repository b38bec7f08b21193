r"""Newton's method for a smooth f of coefficients and intercepts, with or without an L1 penalty on the coefficients.

Each step minimises the quadratic model of f at $\theta$, plus the penalty,

$$ \min_z\; g^\top (z - \theta) + \tfrac12 (z - \theta)^\top H (z - \theta) + \lambda_1 \|z_w\|_1 \tag{1} $$

and goes towards z until the objective falls enough (Armijo). Without a penalty that is a linear system. With one it
is coordinate descent, so that zeros are exact (as in glmnet: Friedman, Hastie and Tibshirani 2010,
https://doi.org/10.18637/jss.v033.i01), after the intercepts have been eliminated by the Schur complement. It stops by
the same two measures as :mod:`.lbfgs`.

Shapes: D features, E = D + 1 (features and intercept), K rows of coefficients, P = E * K.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .coordinate_descent import descend
from .lbfgs import GAP


def newton(fun: Any, hessian: Any, start_KE: Any, l1: Any, tol: Any, max_iter: Any, sparse: bool) -> tuple[Any, ...]:
    """Return (theta [K, E], iterations, largest violation of optimality); with the L1 penalty if ``sparse``.

    ``fun(theta)`` gives f and its gradient [K, E], ``hessian(theta)`` gives H [P, P] in the order [E, K].
    """
    K, E = start_KE.shape
    D, dtype = E - 1, start_KE.dtype
    eps = jnp.finfo(dtype).eps

    def penalty(theta_KE: Any) -> jax.Array:
        return l1 * jnp.abs(theta_KE[:, :-1]).sum() if sparse else jnp.zeros((), dtype)

    def violation(theta_KE: Any, g_KE: Any) -> jax.Array:
        if not sparse:
            return jnp.max(jnp.abs(g_KE))
        coef_KD, slope_KD = theta_KE[:, :-1], g_KE[:, :-1]
        at_zero = jnp.maximum(jnp.abs(slope_KD) - l1, 0)
        wrong = jnp.where(coef_KD == 0, at_zero, jnp.abs(slope_KD + l1 * jnp.sign(coef_KD)))
        return jnp.maximum(wrong.max(initial=0), jnp.max(jnp.abs(g_KE[:, -1])))

    def target(theta_KE: Any, g_KE: Any) -> jax.Array:
        """Return the minimiser of the quadratic model at theta, plus the L1 norm."""
        H_PP, theta_P = hessian(theta_KE), theta_KE.T.ravel()
        right_P = H_PP @ theta_P - g_KE.T.ravel()
        if not sparse:
            return jax.scipy.linalg.solve(H_PP, right_P, assume_a="pos").reshape(E, K).T
        n = D * K  # the intercepts stand last
        corner = H_PP[n:, n:]
        across = jax.scipy.linalg.solve(corner, jnp.concatenate([H_PP[n:, :n], right_P[n:, None]], 1), assume_a="pos")
        gram, cross = H_PP[:n, :n] - H_PP[:n, n:] @ across[:, :n], right_P[:n] - H_PP[:n, n:] @ across[:, n]
        bound = cross @ jax.scipy.linalg.solve(gram, cross, assume_a="pos")
        coef, _, _ = descend(gram, cross, bound, l1, 0.0, theta_P[:n], 1e-3 * tol, 1000)
        intercept = across[:, n] - across[:, :n] @ coef
        return jnp.concatenate([coef, intercept]).reshape(E, K).T

    def step(state: Any) -> Any:
        theta_KE, value, g_KE, count, _, _ = state
        d_KE = target(theta_KE, g_KE) - theta_KE
        slope = (g_KE * d_KE).sum() + penalty(theta_KE + d_KE) - penalty(theta_KE)
        old = value + penalty(theta_KE)

        def attempt(t: Any) -> Any:
            new_KE = theta_KE + t * d_KE
            value, g_KE = fun(new_KE)
            return t, value, g_KE, value + penalty(new_KE)

        def too_high(state: Any) -> jax.Array:
            t, *_, whole = state
            return ~(whole <= old + 1e-4 * t * slope + 10 * eps * jnp.abs(old)) & (t > 1e-9)

        before = jnp.full((), 2, dtype), value, g_KE, jnp.full((), jnp.inf, dtype)
        t, value, g_KE, _ = jax.lax.while_loop(too_high, lambda s: attempt(0.5 * s[0]), before)
        new_KE = theta_KE + t * d_KE
        # A step that no longer moves anything is the end of the digits.
        stuck = jnp.max(jnp.abs(t * d_KE)) <= 2 * eps * jnp.max(jnp.abs(new_KE))
        wrong = violation(new_KE, g_KE)
        done = (wrong <= tol) & (-0.5 * slope <= GAP * old)  # what the model promised for this step was small
        return new_KE, value, g_KE, count + 1, wrong, done | stuck | (t <= 1e-9)

    value, g_KE = fun(start_KE)
    begin = start_KE, value, g_KE, jnp.zeros((), jnp.int32), violation(start_KE, g_KE), jnp.zeros((), bool)
    theta_KE, *_, count, wrong, _ = jax.lax.while_loop(lambda s: ~s[-1] & (s[3] < max_iter), step, begin)
    return theta_KE, count, wrong
