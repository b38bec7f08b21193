"""Ridge regression with alpha chosen by leave-one-out or by folds, without refitting.

Leave-one-out errors need no refits: with the hat matrix $H$ (that of the intercept included),

$$ y_i - \\hat y_i^{(-i)} = \\frac{y_i - \\hat y_i}{1 - H_{ii}} \\tag{1} $$

With folds, the moments $G, B$ of each training fold (:mod:`.folds`) give the solution for every alpha from one
decomposition $G = V \\Lambda V^\\top$,

$$ w_\\alpha = V (\\Lambda + \\alpha I)^{-1} V^\\top B \\tag{2} $$

and all folds are solved in one call. With more features than samples the rows are first written in an orthonormal
basis of their span, which changes neither $\\|w\\|$ nor any prediction.

Shapes: I samples, D features, K outputs, A values of alpha, F folds.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv

from .arrays import Rows, lay_out, pad, precision, refuse_non_finite
from .base import LinearPredictor
from .folds import fold_sums
from .least_squares import fit_moments, fit_squares
from .moments import Moments, Sums, centered, problem, typical_row, typical_target


@partial(jax.jit, static_argnames="fit_intercept")
def _fold_paths(trains: Sums, shift_x: Any, shift_y: Any, alphas_A: Any, fit_intercept: bool) -> tuple[Any, Any]:
    """Return eq. 2 for every fold and alpha: coef [F, A, K, D] and intercept [F, A, K]."""

    def one(train: Sums) -> tuple[jax.Array, jax.Array]:
        m = centered(train, shift_x, shift_y, fit_intercept)
        values_D, vectors_DD = jnp.linalg.eigh(m.gram)
        inverse_AD = 1 / (jnp.clip(values_D, 0) + alphas_A[:, None])
        coef_AKD = jnp.einsum("DE,AE,EK->AKD", vectors_DD, inverse_AD, vectors_DD.T @ m.cross)
        return coef_AKD, m.mean_y - coef_AKD @ m.mean_x

    return jax.vmap(one)(trains)


def _coordinates(X: np.ndarray, fit_intercept: bool) -> np.ndarray:
    """Return the rows of X in an orthonormal basis of their span, around the first row if there is an intercept."""
    moved = X - X[0] if fit_intercept else X
    basis, _ = jnp.linalg.qr(moved.T)
    return np.asarray(moved @ basis)


@partial(jax.jit, static_argnames="fit_intercept")
def _leave_one_out_tall(rows: Rows, y_IK: Any, weight_I: Any, m: Moments, alphas_A: Any, fit_intercept: bool) -> Any:
    """Return the errors of eq. 1 [I, K, A] through the eigenvectors of the moments."""
    values_D, vectors_DD = jnp.linalg.eigh(m.gram)
    values_D = jnp.clip(values_D, 0)
    inverse_DA = 1 / (values_D[:, None] + alphas_A)
    rotated_DK = vectors_DD.T @ m.cross

    def errors(X_RD: Any, y_RK: Any, weight_R: Any) -> jax.Array:
        Z_RD = (X_RD - m.mean_x) @ vectors_DD
        hat_RA = weight_R[:, None] * (Z_RD**2 @ inverse_DA + (1 / m.weight if fit_intercept else 0.0))
        predicted_RKA = jnp.einsum("RD,DK,DA->RKA", Z_RD, rotated_DK, inverse_DA)
        return (y_RK - m.mean_y)[:, :, None] / (1 - hat_RA)[:, None] - predicted_RKA / (1 - hat_RA)[:, None]

    return rows.each(errors, y_IK, weight_I)


@partial(jax.jit, static_argnames="fit_intercept")
def _leave_one_out_wide(rows: Rows, y_IK: Any, weight_I: Any, m: Moments, alphas_A: Any, fit_intercept: bool) -> Any:
    """Return the errors of eq. 1 [I, K, A] through the eigenvectors of $Z Z^\\top$."""
    root_I1 = jnp.sqrt(weight_I)[:, None]
    Z_ID, V_IK = (rows.tail - m.mean_x) * root_I1, (y_IK - m.mean_y) * root_I1
    values_I, U_II = jnp.linalg.eigh(Z_ID @ Z_ID.T)
    shrink_IA = jnp.clip(values_I, 0)[:, None] / (jnp.clip(values_I, 0)[:, None] + alphas_A)
    hat_IA = U_II**2 @ shrink_IA + (weight_I[:, None] / m.weight if fit_intercept else 0.0)
    predicted_IKA = jnp.einsum("IM,MK,MA->IKA", U_II, U_II.T @ V_IK, shrink_IA)
    scaled = (V_IK[:, :, None] - predicted_IKA) / (1 - hat_IA)[:, None]
    return jnp.where(root_I1[:, :, None] > 0, scaled / jnp.where(root_I1 > 0, root_I1, 1)[:, :, None], 0)


class RidgeCV(LinearPredictor):
    """Ridge regression with alpha chosen by leave-one-out errors (eq. 1), or by the folds of ``cv``.

    Parameters and attributes are those of scikit-learn's class of this name.
    """

    def __init__(
        self,
        alphas: Any = (0.1, 1.0, 10.0),
        *,
        fit_intercept: bool = True,
        scoring: Any = None,
        cv: Any = None,
        gcv_mode: str | None = None,
        store_cv_results: bool = False,
        alpha_per_target: bool = False,
    ) -> None:
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.scoring = scoring
        self.cv = cv
        self.gcv_mode = gcv_mode
        self.store_cv_results = store_cv_results
        self.alpha_per_target = alpha_per_target

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "RidgeCV":
        """Choose alpha and fit to all of X [I, D] and y [I] or [I, K]."""
        if self.cv is not None and (self.store_cv_results or self.alpha_per_target):
            raise ValueError("cv!=None and store_cv_results=True or alpha_per_target=True are incompatible")
        alphas = np.atleast_1d(np.asarray(self.alphas, np.float64))
        if np.any(alphas <= 0):
            raise ValueError(f"alphas={self.alphas} must be positive")
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        if self.cv is None:
            scores_KA = self._leave_one_out_scores(X, y, sample_weight, alphas)
        else:
            scores_KA = self._fold_scores(X, y, sample_weight, alphas)[None]
        if not self.alpha_per_target:
            scores_KA = scores_KA.mean(0, keepdims=True)
        best = scores_KA.argmax(1)
        self.alpha_ = alphas[best] if self.alpha_per_target and y.ndim > 1 else alphas[best[0]]
        chosen = scores_KA.max(1)
        self.best_score_ = chosen if self.alpha_per_target and y.ndim > 1 else chosen[0]
        fit_squares(self, X, y, sample_weight, self.alpha_)
        return self

    def _leave_one_out_scores(self, X: Any, y: np.ndarray, sample_weight: Any, alphas: np.ndarray) -> np.ndarray:
        I, D = X.shape
        with precision(X.dtype):
            layout = lay_out(X, whole=D > I)
            data = problem(layout, X, y, sample_weight, self.fit_intercept)
            *_, finite, m = fit_moments(*data, np.asarray(1, X.dtype), fit_intercept=self.fit_intercept)
            if not finite:
                refuse_non_finite(self, X)
            errors = _leave_one_out_wide if D > I else _leave_one_out_tall
            errors_IKA = errors(*data[:3], m, alphas.astype(X.dtype), fit_intercept=self.fit_intercept)
            errors_IKA = layout.restore(np.asarray(errors_IKA))
        y_IK = y.reshape(len(y), -1)
        if self.scoring is None:
            squares = errors_IKA**2 if sample_weight is None else errors_IKA**2 * sample_weight[:, None, None]
            scores_KA, stored = -squares.mean(0), squares
        else:
            stored = y_IK[:, :, None] - errors_IKA
            scorer = check_scoring(_Identity(), scoring=self.scoring)
            weights = {} if sample_weight is None else {"sample_weight": sample_weight}
            scores_KA = np.array(
                [
                    [scorer(_Identity(), stored[:, k, a], y_IK[:, k], **weights) for a in range(len(alphas))]
                    for k in range(y_IK.shape[1])
                ]
            )
        if self.store_cv_results:
            self.cv_results_ = stored[:, 0] if y.ndim == 1 else stored
        return scores_KA

    def _fold_scores(self, X: np.ndarray, y: np.ndarray, sample_weight: Any, alphas: np.ndarray) -> np.ndarray:
        """Return the mean score of every alpha over the folds, every fold and alpha solved in one call."""
        scorer = check_scoring(_Identity(), scoring=self.scoring)
        folds = list(check_cv(self.cv).split(X, y))
        fit_intercept, dtype = bool(self.fit_intercept), X.dtype
        y_IK = y.reshape(len(y), -1).astype(dtype)
        with precision(dtype):
            if X.shape[1] > X.shape[0]:
                X = _coordinates(X, fit_intercept)
            shift_x, shift_y = typical_row(X, fit_intercept), typical_target(y_IK, fit_intercept)
            total, trains, _ = fold_sums(X, y_IK, sample_weight, folds, shift_x, shift_y)
            if not np.isfinite(np.diagonal(total.gram)).all():
                refuse_non_finite(self, X)
            stacked = Sums(*(np.stack(parts) for parts in zip(*trains)))
            shift_x = pad(shift_x, total.gram.shape[0])
            solved = _fold_paths(stacked, shift_x, shift_y, alphas.astype(dtype), fit_intercept=fit_intercept)
        scores_A = np.zeros(len(alphas))
        for (_, test), coef_AKD, intercept_AK in zip(folds, *(np.asarray(v) for v in solved)):
            weights = {} if sample_weight is None else {"sample_weight": sample_weight[test]}
            for a in range(len(alphas)):
                predicted = X[test] @ coef_AKD[a, :, : X.shape[1]].T + intercept_AK[a]
                scores_A[a] += scorer(_Identity(), predicted.reshape(y[test].shape), y[test], **weights)
        return scores_A / len(folds)


class _Identity(RegressorMixin, BaseEstimator):
    """A regressor that predicts its input, so that a scorer can score leave-one-out predictions."""

    def fit(self, X: Any, y: Any) -> "_Identity":
        return self

    def predict(self, X: Any) -> Any:
        return X
