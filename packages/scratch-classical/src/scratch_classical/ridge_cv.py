r"""Ridge regression with alpha chosen by leave-one-out or by folds, without refitting.

Leave-one-out errors need no refits. With the hat matrix $H$, which includes the intercept,

$$ y_i - \hat y_i^{(-i)} = \frac{y_i - \hat y_i}{1 - H_{ii}} \tag{1} $$

With no fewer features than samples $1 - H_{ii}$ would be a difference of two nearly equal numbers. For centred rows $Z$
and targets $v$, multiplied by the roots of their weights, the errors are then

$$ \sqrt{\omega_i} (y_i - \hat y_i^{(-i)}) = \frac{(Mv)_i}{M_{ii}}, \qquad
   M = (Z Z^\top + \alpha I)^{-1} - \frac{u u^\top}{\alpha}, \qquad u_i = \sqrt{\omega_i / n} \tag{2} $$

computed in float64 (without an intercept $u = 0$). With folds, the moments $G, B$ of each training fold
(:mod:`.folds`) give the solution for every alpha through one decomposition $G = V \Lambda V^\top$,

$$ w_\alpha = V (\Lambda + \alpha I)^{-1} V^\top B \tag{3} $$

and all folds are solved in one call. With more features than samples the rows are first written in an orthonormal
basis of their span, which changes neither $\|w\|$ nor any prediction.

Shapes: I samples, D features, K outputs, A values of alpha, F folds.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from sklearn import get_config
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import check_scoring, get_scorer
from sklearn.model_selection import check_cv

from .arrays import Array, CrossValidator, MatrixLike, dense, lay_out, precision, refuse_non_finite
from .base import LinearPredictor
from .constraints import FLAG, FOLDS, POSITIVE, SCORING, Constraints, check_each, one_of
from .folds import fold_sums
from .moments import Moments, Samples, Sums, arranged, centered, centered_rows
from .routing import CrossValidated, Routed
from .squares_fit import fit_moments, fit_squares


@partial(jax.jit, static_argnames="fit_intercept")
def _fold_paths(
    trains: Sums, shift_x: jax.Array, shift_y: jax.Array, alphas_A: jax.Array, fit_intercept: bool
) -> tuple[jax.Array, jax.Array]:
    """Return eq. 3 for every fold and alpha: coef [F, A, K, D] and intercept [F, A, K]."""

    def one(train: Sums) -> tuple[jax.Array, jax.Array]:
        m = centered(train, shift_x, shift_y, fit_intercept)
        values_D, vectors_DD = jnp.linalg.eigh(m.gram)
        # Without a penalty, directions no larger than rounding are dropped, which gives the shortest minimiser.
        noise = len(values_D) * jnp.finfo(values_D.dtype).eps * values_D[-1]
        kept_AD = (alphas_A[:, None] > 0) | (values_D > noise)
        inverse_AD = jnp.where(kept_AD, 1 / jnp.where(kept_AD, jnp.clip(values_D, 0) + alphas_A[:, None], 1), 0)
        coef_AKD = jnp.einsum("DE,AE,EK->AKD", vectors_DD, inverse_AD, vectors_DD.T @ m.cross)
        return coef_AKD, m.mean_y - coef_AKD @ m.mean_x

    return jax.vmap(one)(trains)


def _coordinates(X: np.ndarray, fit_intercept: bool) -> np.ndarray:
    """Return the rows of X in an orthonormal basis of their span; with an intercept relative to the first row."""
    moved = X - X[0] if fit_intercept else X
    basis, _ = jnp.linalg.qr(moved.T)
    return np.asarray(moved @ basis)


@partial(jax.jit, static_argnames="fit_intercept")
def _leave_one_out_tall(samples: Samples, m: Moments, alphas_A: jax.Array, fit_intercept: bool) -> jax.Array:
    """Return the errors of eq. 1 [I, K, A] through the eigenvectors of the moments."""
    values_D, vectors_DD = jnp.linalg.eigh(m.gram)
    values_D = jnp.clip(values_D, 0)
    inverse_DA = 1 / (values_D[:, None] + alphas_A)
    rotated_DK = vectors_DD.T @ m.cross

    def errors(X_RD: jax.Array, y_RK: jax.Array, weight_R: jax.Array) -> jax.Array:
        Z_RD = (X_RD - m.mean_x) @ vectors_DD
        hat_RA = weight_R[:, None] * (Z_RD**2 @ inverse_DA + (1 / m.weight if fit_intercept else 0.0))
        predicted_RKA = jnp.einsum("RD,DK,DA->RKA", Z_RD, rotated_DK, inverse_DA)
        return (y_RK - m.mean_y)[:, :, None] / (1 - hat_RA)[:, None] - predicted_RKA / (1 - hat_RA)[:, None]

    return samples.rows.each(errors, samples.y_IK, samples.weight_I)


@partial(jax.jit, static_argnames="fit_intercept")
def _leave_one_out_wide(samples: Samples, alphas_A: jax.Array, fit_intercept: bool) -> tuple[jax.Array, jax.Array]:
    r"""Return (the errors of eq. 2 [I, K, A], whether the data are finite), with all samples in the tail.

    The inverses come from the eigenvectors of $Z Z^\top$.
    """
    Z_ID, V_IK, _, _, root_I = centered_rows(samples, fit_intercept)
    gram_II = Z_ID @ Z_ID.T
    # Z'u = 0 for the direction u of the intercept. If its eigenvalue stayed zero, its rounding would be divided by
    # alpha. It therefore gets an eigenvalue of ordinary size, and its part is subtracted afterwards.
    u_I = root_I / jnp.linalg.norm(root_I) if fit_intercept else 0 * root_I
    ordinary = jnp.trace(gram_II) / (root_I > 0).sum()
    values_M, U_IM = jnp.linalg.eigh(gram_II + ordinary * jnp.outer(u_I, u_I))
    inverse_MA = 1 / (jnp.clip(values_M, 0)[:, None] + alphas_A)
    diagonal_IA = U_IM**2 @ inverse_MA - u_I[:, None] ** 2 / (ordinary + alphas_A)
    c_IKA = jnp.einsum("IM,MK,MA->IKA", U_IM, U_IM.T @ V_IK, inverse_MA)
    divisor_I1A = (root_I[:, None] * diagonal_IA)[:, None]
    weighted = root_I[:, None, None] > 0
    return jnp.where(weighted, c_IKA / jnp.where(weighted, divisor_I1A, 1), 0), jnp.isfinite(gram_II).all()


class _LeaveOneOut(NamedTuple):
    """Scores of every alpha [1, A] or of every output and alpha [K, A], and what cv_results_ holds [I, K, A]."""

    scores: np.ndarray
    stored: np.ndarray


class RidgeCV(CrossValidated, LinearPredictor):
    """Ridge regression with alpha chosen by leave-one-out errors (eq. 1), or by the folds of ``cv``.

    Parameters and attributes are those of
    https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.RidgeCV.html, with these differences:

    gcv_mode: accepted and not used; the form of the errors depends on the shape of X alone.
    cv: all folds and alphas are solved in one call from sums over the folds, without a grid search.
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "alphas": ["array-like", *POSITIVE],
        "fit_intercept": FLAG,
        "scoring": SCORING,
        "cv": FOLDS,
        "gcv_mode": [one_of("auto", "svd", "eigen"), None],
        "store_cv_results": FLAG,
        "alpha_per_target": FLAG,
    }

    def __init__(
        self,
        alphas: ArrayLike = (0.1, 1.0, 10.0),
        *,
        fit_intercept: bool = True,
        scoring: str | Callable[..., float] | None = None,
        cv: CrossValidator = None,
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

    def fit(self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None, **params: object) -> "RidgeCV":
        """Choose alpha and fit to all of X [I, D] and y [I] or [I, K], in float64.

        With metadata routing ``params`` go to the splitter and the scorer.
        """
        self._validate_params()
        for option in ("store_cv_results", "alpha_per_target"):
            if self.cv is not None and getattr(self, option):
                raise ValueError(f"cv!=None and {option}=True are incompatible: leave out one of them")
        check_each("alphas", self.alphas, "neither" if self.cv is None else "left")  # leave-one-out divides by alpha
        alphas = np.atleast_1d(np.asarray(self.alphas, np.float64))
        routed = self._route("fit", sample_weight, params)
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        X, dtype = dense(X), np.dtype(X.dtype)
        with precision(np.float64):  # with a small alpha float32 would lose most of the digits
            X = X.astype(np.float64)
        sample_weight = None if sample_weight is None else sample_weight.astype(np.float64)
        if self.cv is None:
            scores, stored = self._leave_one_out(X, y, sample_weight, alphas, routed)
            if self.store_cv_results:
                self.cv_results_ = stored[:, 0] if y.ndim == 1 else stored
        else:
            scores = self._fold_scores(np.asarray(X), y, sample_weight, alphas, routed)[None]
        best = scores.argmax(1)
        self.alpha_ = alphas[best] if self.alpha_per_target and y.ndim > 1 else alphas[best[0]]
        chosen = scores.max(1)
        self.best_score_ = chosen if self.alpha_per_target and y.ndim > 1 else chosen[0]
        found = fit_squares(
            X, y, sample_weight, self.alpha_,
            fit_intercept=bool(self.fit_intercept), estimator_name=type(self).__name__,
        )  # fmt: skip
        self.coef_ = (found.coef.ravel() if y.shape[1:] == (1,) else found.coef).astype(dtype)
        self.intercept_ = np.asarray(found.intercept, dtype)[()] if self.fit_intercept else 0.0
        return self

    def _scorer(self) -> Callable[..., float]:
        if self.scoring is None and get_config()["enable_metadata_routing"]:
            return get_scorer("r2").set_score_request(sample_weight=True)
        return check_scoring(_Identity(), scoring=self.scoring)

    def _leave_one_out(
        self, X: Array, y: np.ndarray, sample_weight: np.ndarray | None, alphas: np.ndarray, routed: Routed
    ) -> _LeaveOneOut:
        """Score every alpha, or with ``alpha_per_target`` every output and alpha, by the leave-one-out errors."""
        I, D = X.shape
        wide, fit_intercept = D + 1 >= I, bool(self.fit_intercept)
        with precision(np.float64):
            layout = lay_out(X, whole=wide)
            samples = arranged(layout, X, y, sample_weight, fit_intercept)
            if wide:
                errors, finite = _leave_one_out_wide(samples, alphas, fit_intercept=fit_intercept)
            else:
                solution, m = fit_moments(samples, np.asarray(1, X.dtype), fit_intercept=fit_intercept)
                errors, finite = _leave_one_out_tall(samples, m, alphas, fit_intercept=fit_intercept), solution.finite
            if not finite:
                refuse_non_finite(X, type(self).__name__)
            errors_IKA = layout.restore(np.asarray(errors))
        y_IK = y.reshape(len(y), -1)
        if self.scoring is None:
            squares = errors_IKA**2 if sample_weight is None else errors_IKA**2 * sample_weight[:, None, None]
            scores, stored = -squares.mean(0), squares
            if not self.alpha_per_target:
                scores = scores.mean(0, keepdims=True)
        else:
            stored = y_IK[:, :, None] - errors_IKA
            scorer, outputs = self._scorer(), range(y_IK.shape[1])
            parts = [(stored[:, k], y_IK[:, k]) for k in outputs] if self.alpha_per_target else [(stored, y)]
            scores = np.array(
                [
                    [
                        scorer(_Identity(), predicted[..., a].reshape(target.shape), target, **routed.score)
                        for a in range(len(alphas))
                    ]
                    for predicted, target in parts
                ]
            )
        return _LeaveOneOut(scores, stored)

    def _fold_scores(
        self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None, alphas: np.ndarray, routed: Routed
    ) -> np.ndarray:
        """Return the mean score of every alpha over the folds; one call solves every fold and alpha."""
        scorer = self._scorer()
        folds = list(check_cv(self.cv).split(X, y, **routed.split))
        fit_intercept, dtype = bool(self.fit_intercept), X.dtype
        y_IK = y.reshape(len(y), -1).astype(dtype)
        with precision(dtype):
            if X.shape[1] > X.shape[0]:
                X = _coordinates(X, fit_intercept)
            sums = fold_sums(X, y_IK, sample_weight, folds, fit_intercept)
            if not np.isfinite(np.diagonal(sums.total.gram)).all():
                refuse_non_finite(X, type(self).__name__)
            stacked = Sums(*(np.stack(parts) for parts in zip(*sums.trains)))
            solved = _fold_paths(stacked, sums.shift_x, sums.shift_y, alphas.astype(dtype), fit_intercept=fit_intercept)
        scores_A = np.zeros(len(alphas))
        for (_, test), coef_AKD, intercept_AK in zip(folds, *(np.asarray(v) for v in solved)):
            options = routed.of(X, test)
            for a in range(len(alphas)):
                predicted = X[test] @ coef_AKD[a, :, : X.shape[1]].T + intercept_AK[a]
                scores_A[a] += scorer(_Identity(), predicted.reshape(y[test].shape), y[test], **options)
        return scores_A / len(folds)


class _Identity(RegressorMixin, BaseEstimator):
    """A regressor that predicts its input, so that a scorer can score predictions made elsewhere."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "_Identity":
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return X
