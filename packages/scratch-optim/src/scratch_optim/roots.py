r"""Inverse p-th roots of symmetric positive semi-definite matrices, $A^{-1/p}$, in two ways.

* By eigenvalues: $A = U \Lambda U^\top$ gives $A^{-1/p} = U \Lambda^{-1/p} U^\top$. Exact to rounding; slow on
  accelerators.
* By the coupled Newton iteration (Guo and Higham 2006, https://doi.org/10.1137/050643374, eq. 7.1 with the exponent
  negative, as in Anil et al. 2020, https://arxiv.org/abs/2002.09018, section 5.1): only matrix products. With
  $\alpha = -1/p$ and $z = (1 + p) / (2 \lVert A \rVert_F)$:

$$ M_0 = z A, \qquad X_0 = z^{1/p} I \tag{1} $$
$$ T_k = (1 - \alpha) I + \alpha M_k, \qquad X_{k+1} = X_k T_k, \qquad M_{k+1} = T_k^p M_k \tag{2} $$

$M_k$ tends to I and $X_k$ to $A^{-1/p}$, because $X_k^{-p}$ is $A M_k^{-1}$ throughout.

Both add a ridge, $\epsilon$ times the largest eigenvalue, so that the root of a singular matrix exists. Products are
computed in the highest precision that the device has for the dtype.

Shapes: S rows and columns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

TOLERANCE = 1e-6  # error at which the iteration has converged
NEAR = 0.1  # below this, the error falls in each step, except for rounding; above, it may rise
ITERATIONS = 100


def inverse_root_by_eigenvalues(matrix_SS: jax.Array, p: int, *, ridge: float = 1e-6) -> jax.Array:
    r"""Return $(A + \epsilon \lambda_{\max} I)^{-1/p}$ in A's dtype, which is float32 or float64.

    ``ridge`` is $\epsilon$. Eigenvalues that rounding made smaller than the ridge count as the ridge.
    """
    eigenvalues_S, eigenvectors_SS = jnp.linalg.eigh(matrix_SS)
    floor = ridge * eigenvalues_S[-1]
    eigenvalues_S = jnp.maximum(eigenvalues_S, 0) + floor
    return _product(eigenvectors_SS * eigenvalues_S ** (-1 / p), eigenvectors_SS.T)


class _Iteration(NamedTuple):
    """One step of eq. 2; ``error`` is the largest entry of M - I."""

    step: jax.Array
    m_SS: jax.Array
    root_SS: jax.Array
    error: jax.Array
    error_before: jax.Array


def inverse_root_by_newton(matrix_SS: jax.Array, p: int, *, ridge: float = 1e-6) -> tuple[jax.Array, jax.Array]:
    r"""Return $(A + \epsilon \lambda_{\max} I)^{-1/p}$ by eq. 2, and the error of the iteration: how far M is from I.

    A is float32 or float64. The iteration ends at an error of 1e-6, or where rounding keeps the error from falling
    further; the caller decides which error is too large. A non-finite error means that A was not finite.
    """
    S = matrix_SS.shape[0]
    eye_SS = jnp.eye(S, dtype=matrix_SS.dtype)
    damped_SS = matrix_SS + ridge * largest_eigenvalue(matrix_SS) * eye_SS
    z = (1 + p) / (2 * jnp.linalg.norm(damped_SS))
    alpha = -1 / p

    def unfinished(now: _Iteration) -> jax.Array:
        falls = (now.error < now.error_before) | (now.error > NEAR)
        return (now.step < ITERATIONS) & (now.error > TOLERANCE) & falls & jnp.isfinite(now.error)

    def iterate(now: _Iteration) -> _Iteration:
        t_SS = (1 - alpha) * eye_SS + alpha * now.m_SS
        m_SS = _product(_power(t_SS, p), now.m_SS)  # eq. 2
        root_SS = _product(now.root_SS, t_SS)
        return _Iteration(now.step + 1, m_SS, root_SS, jnp.abs(m_SS - eye_SS).max(), now.error)

    m_SS = z * damped_SS  # eq. 1
    error = jnp.abs(m_SS - eye_SS).max()
    start = _Iteration(jnp.zeros((), jnp.int32), m_SS, z ** (1 / p) * eye_SS, error, jnp.full_like(error, jnp.inf))
    end = jax.lax.while_loop(unfinished, iterate, start)
    return end.root_SS, end.error


def largest_eigenvalue(matrix_SS: jax.Array, *, iterations: int = 30) -> jax.Array:
    """Return the largest eigenvalue of a positive semi-definite matrix by power iteration, which may underestimate it.

    The ridge only needs its order of magnitude.
    """
    S = matrix_SS.shape[0]

    def iterate(_: int, v_S: jax.Array) -> jax.Array:
        product_S = matrix_SS @ v_S
        return product_S / jnp.maximum(jnp.linalg.norm(product_S), jnp.finfo(v_S.dtype).tiny)

    # A constant start vector could be orthogonal to the first eigenvector of a structured matrix.
    start_S = jnp.cos(jnp.arange(1, S + 1, dtype=matrix_SS.dtype))
    v_S = jax.lax.fori_loop(0, iterations, iterate, start_S / jnp.linalg.norm(start_S))
    return v_S @ (matrix_SS @ v_S)


def _product(a_SS: jax.Array, b_SS: jax.Array) -> jax.Array:
    return jnp.matmul(a_SS, b_SS, precision=jax.lax.Precision.HIGHEST)


def _power(matrix_SS: jax.Array, p: int) -> jax.Array:
    """Return the p-th power of a matrix, p at least 1, by repeated squaring."""
    if p == 1:
        return matrix_SS
    half_SS = _power(_product(matrix_SS, matrix_SS), p // 2)
    return half_SS if p % 2 == 0 else _product(half_SS, matrix_SS)
