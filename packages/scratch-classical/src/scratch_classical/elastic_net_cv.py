r"""Lasso and elastic net with alpha chosen by cross-validation, from sums over the folds.

Every sample is multiplied once (:mod:`.folds`). The error of a coefficient vector w on a test fold needs no second
pass either: with the fold's moments taken around the means of the training fold,

$$ \sum_i \omega_i (y_i - x_i^\top w)^2 = \|y\|^2 - 2 w^\top X^\top y + w^\top X^\top X w \tag{1} $$

An error so small against $\|y\|^2$ that half of its digits are lost is summed over the fold's samples after all.

Shapes: D features, A values of alpha, L values of l1_ratio, F folds.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.model_selection import check_cv
from sklearn.utils.validation import _check_sample_weight

from .arrays import pad, precision, validated
from .base import LinearPredictor
from .coordinate_descent import descend, descend_path
from .elastic_net import alpha_grid, warn_unless_converged
from .folds import Folds, fold_sums
from .moments import Sums, centered, typical_row, typical_target

_centered = jax.jit(centered, static_argnames="fit_intercept")


@jax.jit
def _fold_errors(test: Sums, mean_x: Any, mean_y: Any, shift_x: Any, shift_y: Any, coef_AD: Any) -> Any:
    """Return (the mean squared error of every coefficient vector on a fold, that of zero) from the fold's sums."""
    dx, dy = mean_x - shift_x, mean_y - shift_y
    gram = test.gram - jnp.outer(test.x, dx) - jnp.outer(dx, test.x) + test.weight * jnp.outer(dx, dx)
    cross = test.cross[:, 0] - test.x * dy[0] - dx * test.y[0] + test.weight * dx * dy[0]
    target = test.target[0] - 2 * test.y[0] * dy[0] + test.weight * dy[0] ** 2
    squares = target - 2 * coef_AD @ cross + ((coef_AD @ gram) * coef_AD).sum(1)
    return squares / test.weight, target / test.weight


class ElasticNetCV(LinearPredictor):
    """The elastic net with alpha (and ``l1_ratio``, if it is a list) chosen by cross-validation.

    Every sample is multiplied once: the Gram matrices of the test folds are added up, and each training fold's is
    the total minus its own. Parameters and attributes are those of scikit-learn's class of this name.
    """

    n_iter_: Any
    dual_gap_: Any

    def __init__(
        self,
        *,
        l1_ratio: Any = 0.5,
        eps: float = 1e-3,
        alphas: Any = 100,
        fit_intercept: bool = True,
        precompute: Any = "auto",
        max_iter: int = 1000,
        tol: float = 1e-4,
        cv: Any = None,
        copy_X: bool = True,
        verbose: Any = 0,
        n_jobs: int | None = None,
        positive: bool = False,
        random_state: Any = None,
        selection: str = "cyclic",
    ) -> None:
        self.l1_ratio = l1_ratio
        self.eps = eps
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.precompute = precompute
        self.max_iter = max_iter
        self.tol = tol
        self.cv = cv
        self.copy_X = copy_X
        self.verbose = verbose
        self.n_jobs = n_jobs
        self.positive = positive
        self.random_state = random_state
        self.selection = selection

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "ElasticNetCV":
        """Choose alpha by cross-validation, then fit to all of X [I, D] and y [I]."""
        X, y = validated(self, X, y, need_y=True, y_numeric=True)
        X = np.asarray(X)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
        dtype = X.dtype
        folds = list(check_cv(self.cv).split(X, y))
        y = y.astype(dtype)
        with precision(dtype):
            shift_x, shift_y = typical_row(X, self.fit_intercept), typical_target(y[:, None], self.fit_intercept)
            total, trains, tests = fold_sums(X, y[:, None], sample_weight, folds, shift_x, shift_y)
            self._select_and_fit(total, trains, tests, folds, shift_x, shift_y, X, y, sample_weight)
        return self

    def _select_and_fit(
        self,
        total: Sums,
        trains: list[Sums],
        tests: list[Sums],
        folds: Folds,
        shift_x: np.ndarray,
        shift_y: np.ndarray,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: Any,
    ) -> None:
        """Trace the path of every fold, average the errors, and fit to all samples at the best alpha."""
        dtype, num_features = X.dtype, X.shape[1]
        fit_intercept, positive = bool(self.fit_intercept), bool(self.positive)
        shift_x = pad(shift_x, total.gram.shape[0])
        whole = _centered(total, shift_x, shift_y, fit_intercept=fit_intercept)
        ratios_L = np.atleast_1d(np.asarray(self.l1_ratio, np.float64))
        if np.ndim(self.alphas) == 0:
            count = 100 if self.alphas is None else int(self.alphas)
            cross_D = np.asarray(whole.cross, np.float64)[:, 0]
            grids_LA = np.stack(
                [alpha_grid(cross_D, float(whole.weight), r, self.eps, count, positive) for r in ratios_L]
            )
        else:
            grids_LA = np.tile(np.sort(np.asarray(self.alphas, np.float64))[::-1], (len(ratios_L), 1))
        errors_LAF = np.empty((*grids_LA.shape, len(tests)))
        coefs = {}
        for f, (train, test) in enumerate(zip(trains, tests)):
            m = _centered(train, shift_x, shift_y, fit_intercept=fit_intercept)
            for l, (ratio, alphas_A) in enumerate(zip(ratios_L, grids_LA)):
                n_alphas = alphas_A * float(m.weight)
                coef_AD, *_ = descend_path(
                    m.gram, m.cross[:, 0], m.target[0],
                    (n_alphas * ratio).astype(dtype), (n_alphas * (1 - ratio)).astype(dtype),
                    np.zeros(len(shift_x), dtype), dtype.type(self.tol), np.int32(self.max_iter), positive=positive,
                )  # fmt: skip
                errors_A, scale = _fold_errors(test, m.mean_x, m.mean_y, shift_x, shift_y, coef_AD)
                errors_A = np.array(errors_A)
                if (lost_A := errors_A < np.finfo(dtype).eps ** 0.5 * scale).any():
                    picked, mean_x = folds[f][1], np.asarray(m.mean_x)[:num_features]
                    chosen = np.asarray(coef_AD)[lost_A, :num_features]
                    left = (y[picked] - np.asarray(m.mean_y))[:, None] - (X[picked] - mean_x) @ chosen.T
                    weights = None if sample_weight is None else sample_weight[picked]
                    errors_A[lost_A] = np.average(left**2, axis=0, weights=weights)
                errors_LAF[l, :, f] = errors_A
                coefs[l, f] = coef_AD
        average_LA = errors_LAF.mean(-1)
        l, a = (int(i) for i in np.unravel_index(np.argmin(average_LA), average_LA.shape))
        self.l1_ratio_, self.alpha_ = float(ratios_L[l]), float(grids_LA[l, a])
        several = np.ndim(self.l1_ratio) > 0
        self.alphas_ = grids_LA if several and np.ndim(self.alphas) == 0 else grids_LA[0]
        self.mse_path_ = errors_LAF if several else errors_LAF[0]

        # The folds' average is close to the answer.
        start_D = np.mean([np.asarray(coefs[l, f])[a] for f in range(len(tests))], axis=0)
        n_alpha = self.alpha_ * float(whole.weight)
        coef_D, gap, count = descend(
            whole.gram, whole.cross[:, 0], whole.target[0],
            dtype.type(n_alpha * self.l1_ratio_), dtype.type(n_alpha * (1 - self.l1_ratio_)),
            start_D, dtype.type(self.tol), np.int32(self.max_iter), positive=positive,
        )  # fmt: skip
        self.coef_ = np.array(coef_D)[:num_features]
        mean_x, mean_y = np.asarray(whole.mean_x)[:num_features], np.asarray(whole.mean_y)[0]
        self.intercept_ = dtype.type(mean_y - mean_x @ self.coef_) if fit_intercept else 0.0
        self.dual_gap_ = float(gap) / float(whole.weight)
        self.n_iter_ = max(int(count), 1)
        warn_unless_converged(np.array([self.dual_gap_]), self.tol, y, sample_weight, fit_intercept)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = False
        return tags


class LassoCV(ElasticNetCV):
    """The lasso with alpha chosen by cross-validation. Parameters and attributes are those of scikit-learn's class."""

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        alphas: Any = 100,
        fit_intercept: bool = True,
        precompute: Any = "auto",
        max_iter: int = 1000,
        tol: float = 1e-4,
        copy_X: bool = True,
        cv: Any = None,
        verbose: Any = False,
        n_jobs: int | None = None,
        positive: bool = False,
        random_state: Any = None,
        selection: str = "cyclic",
    ) -> None:
        super().__init__(
            l1_ratio=1.0,
            eps=eps,
            alphas=alphas,
            fit_intercept=fit_intercept,
            precompute=precompute,
            max_iter=max_iter,
            tol=tol,
            cv=cv,
            copy_X=copy_X,
            verbose=verbose,
            n_jobs=n_jobs,
            positive=positive,
            random_state=random_state,
            selection=selection,
        )
