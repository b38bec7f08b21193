r"""Lasso and elastic net with alpha chosen by cross-validation, from sums over the folds.

The sums need one pass over the samples (:mod:`.folds`). The error of a coefficient vector w on a test fold needs no
second pass. With the fold's moments taken around the means of the training fold it is

$$ \sum_i \omega_i (y_i - x_i^\top w)^2 = \|y\|^2 - 2 w^\top X^\top y + w^\top X^\top X w \tag{1} $$

Where the error is so small compared with $\|y\|^2$ that half of its digits are lost, it is summed over the samples of
the fold instead.

Shapes: D features, A values of alpha, L values of l1_ratio, F folds.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from sklearn.model_selection import check_cv
from sklearn.utils import Tags

from .arrays import CrossValidator, MatrixLike, dense, precision, refuse_non_finite, validated_samples, validated_weight
from .base import LinearPredictor
from .constraints import (
    COUNT,
    FLAG,
    FOLDS,
    JOBS,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SELECTION,
    SHARE,
    VERBOSE,
    Constraints,
    check_each,
    one_of,
)
from .coordinate_descent import Descent, descend_path
from .elastic_net_path import alpha_grid, enet_path, lasso_path, warn_unless_converged
from .folds import Folds, FoldSums, fold_sums
from .moments import Moments, Sums, centered
from .routing import CrossValidated

_centered = jax.jit(centered, static_argnames="fit_intercept")


@jax.jit
def _fold_errors(
    test: Sums, train: Moments, shift_x: jax.Array, shift_y: jax.Array, coef_AD: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return (the mean squared error of every coefficient vector on a fold [A], that of zero) from the fold's sums."""
    gram, cross, target, x, y, weight = map(jnp.asarray, test)
    dx, dy = train.mean_x - shift_x, train.mean_y - shift_y
    gram = gram - jnp.outer(x, dx) - jnp.outer(dx, x) + weight * jnp.outer(dx, dx)
    cross = cross[:, 0] - x * dy[0] - dx * y[0] + weight * dx * dy[0]
    target = target[0] - 2 * y[0] * dy[0] + weight * dy[0] ** 2
    squares = target - 2 * coef_AD @ cross + ((coef_AD @ gram) * coef_AD).sum(1)
    return squares / weight, target / weight


class _Selected(NamedTuple):
    """The best penalties, the alphas tried with their errors on the folds, and the fit to all samples.

    coef is [D], and the duality gap is divided by n.
    """

    alpha: float
    l1_ratio: float
    grids_LA: np.ndarray
    errors_LAF: np.ndarray
    coef: np.ndarray
    intercept: np.floating | float
    gap: float
    sweeps: int


class ElasticNetCV(CrossValidated, LinearPredictor):
    """The elastic net with alpha (and ``l1_ratio``, if it is a list) chosen by cross-validation.

    The Gram matrix of a training fold is the sum over all folds minus that of its test fold. Parameters and attributes
    are those of
    https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.ElasticNetCV.html, with these differences:

    precompute, copy_X, verbose, n_jobs: accepted and not used; X is never changed.
    selection, random_state, tol: as :class:`ElasticNet` says.
    """

    n_iter_: int
    dual_gap_: float
    _parameter_constraints: ClassVar[Constraints] = {
        "l1_ratio": [*SHARE, "array-like"],
        "eps": POSITIVE,
        "alphas": [*COUNT, "array-like", None],
        "fit_intercept": FLAG,
        "precompute": [one_of("auto"), *FLAG, "array-like"],
        "max_iter": COUNT,
        "tol": NOT_NEGATIVE,
        "cv": FOLDS,
        "copy_X": FLAG,
        "verbose": VERBOSE,
        "n_jobs": JOBS,
        "positive": FLAG,
        "random_state": SEED,
        "selection": SELECTION,
    }
    path = staticmethod(enet_path)

    def __init__(
        self,
        *,
        l1_ratio: ArrayLike = 0.5,
        eps: float = 1e-3,
        alphas: ArrayLike | None = 100,
        fit_intercept: bool = True,
        precompute: bool | str | ArrayLike = "auto",
        max_iter: int = 1000,
        tol: float = 1e-4,
        cv: CrossValidator = None,
        copy_X: bool = True,
        verbose: bool | int = 0,
        n_jobs: int | None = None,
        positive: bool = False,
        random_state: int | np.random.RandomState | None = None,
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

    def fit(
        self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None, **params: object
    ) -> "ElasticNetCV":
        """Choose alpha by cross-validation, then fit to all of X [I, D] and y [I].

        With metadata routing ``params`` go to the splitter.
        """
        self._validate_params()
        if self.alphas is not None and np.ndim(self.alphas) > 0:
            check_each("alphas", self.alphas, "left")
        if np.ndim(self.l1_ratio) > 0:
            check_each("l1_ratio", self.l1_ratio, "both", largest=1.0)
        routed = self._route("fit", sample_weight, params)
        X, y = validated_samples(self, X, y, y_numeric=True)
        X = np.asarray(dense(X))
        sample_weight = validated_weight(sample_weight, X)
        folds = list(check_cv(self.cv).split(X, y, **routed.split))
        y = y.astype(X.dtype)
        with precision(X.dtype):
            sums = fold_sums(X, y[:, None], sample_weight, folds, bool(self.fit_intercept))
            if not (np.isfinite(np.diagonal(sums.total.gram)).all() and np.isfinite(sums.total.cross).all()):
                refuse_non_finite(X, type(self).__name__)
            found = self._select(sums, folds, X, y, sample_weight)
        self.alpha_, self.l1_ratio_ = found.alpha, found.l1_ratio
        several = np.ndim(self.l1_ratio) > 0
        own_grids = several and np.ndim(100 if self.alphas is None else self.alphas) == 0
        self.alphas_ = found.grids_LA if own_grids else found.grids_LA[0]
        self.mse_path_ = found.errors_LAF if several else found.errors_LAF[0]
        self.coef_, self.intercept_ = found.coef, found.intercept
        self.dual_gap_, self.n_iter_ = found.gap, found.sweeps
        warn_unless_converged(np.array([found.gap]), self.tol, y, sample_weight, bool(self.fit_intercept))
        return self

    def _select(
        self, sums: FoldSums, folds: Folds, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None
    ) -> _Selected:
        """Trace the path of every fold, average the errors, and fit to all samples at the best alpha."""
        total, trains, tests, shift_x, shift_y = sums
        dtype, num_features = X.dtype, X.shape[1]
        fit_intercept, positive = bool(self.fit_intercept), bool(self.positive)
        whole = _centered(total, shift_x, shift_y, fit_intercept=fit_intercept)

        def path(m: Moments, alphas_A: np.ndarray, ratio: float, start_D: np.ndarray) -> Descent:
            n_alphas = alphas_A * float(m.weight)
            return descend_path(
                m.gram, m.cross[:, 0], m.target[0],
                (n_alphas * ratio).astype(dtype), (n_alphas * (1 - ratio)).astype(dtype),
                start_D, dtype.type(self.tol), np.int32(self.max_iter), positive=positive,
            )  # fmt: skip

        ratios_L = np.atleast_1d(np.asarray(self.l1_ratio, np.float64))
        alphas = np.asarray(100 if self.alphas is None else self.alphas, np.float64)
        if alphas.ndim == 0:
            cross_D = np.asarray(whole.cross, np.float64)[:, 0]
            grids_LA = np.stack(
                [alpha_grid(cross_D, float(whole.weight), r, self.eps, int(alphas), positive) for r in ratios_L]
            )
        else:
            grids_LA = np.tile(np.sort(alphas)[::-1], (len(ratios_L), 1))
        errors_LAF = np.empty((*grids_LA.shape, len(tests)))
        coefs = {}
        for f, (train, test) in enumerate(zip(trains, tests)):
            m = _centered(train, shift_x, shift_y, fit_intercept=fit_intercept)
            largest_gap = 0.0
            for l, ratio in enumerate(ratios_L.tolist()):
                found = path(m, grids_LA[l], ratio, np.zeros(len(shift_x), dtype))
                coef_AD, largest_gap = found.coef, max(largest_gap, float(np.max(found.gap)))
                errors_A, scale = _fold_errors(test, m, shift_x, shift_y, coef_AD)
                errors_A = np.array(errors_A)
                if (lost_A := errors_A < np.finfo(dtype).eps ** 0.5 * scale).any():
                    picked, mean_x = folds[f][1], np.asarray(m.mean_x)[:num_features]
                    chosen = np.asarray(coef_AD)[lost_A, :num_features]
                    left = (y[picked] - np.asarray(m.mean_y))[:, None] - (X[picked] - mean_x) @ chosen.T
                    weights = None if sample_weight is None else sample_weight[picked]
                    errors_A[lost_A] = np.average(left**2, axis=0, weights=weights)
                errors_LAF[l, :, f] = errors_A
                coefs[l, f] = coef_AD
            of_fold = folds[f][0]
            weights = None if sample_weight is None else sample_weight[of_fold]
            gap = np.array([largest_gap / float(m.weight)])
            warn_unless_converged(gap, self.tol, y[of_fold], weights, fit_intercept)
        average_LA = errors_LAF.mean(-1)
        l, a = (int(i) for i in np.unravel_index(np.argmin(average_LA), average_LA.shape))
        alpha, l1_ratio = float(grids_LA[l, a]), float(ratios_L[l])
        # The average over the folds is close to the minimum, and a good start. Repeating one alpha reuses the compiled
        # path; from the second on each fit starts at the minimum, and the first result is taken.
        start_D = np.mean([np.asarray(coefs[l, f])[a] for f in range(len(tests))], axis=0)
        repeated = path(whole, np.full(grids_LA.shape[1], alpha), l1_ratio, start_D)
        found = Descent(*(v[0] for v in map(np.asarray, repeated)))
        coef = np.array(found.coef)[:num_features]
        mean_x, mean_y = np.asarray(whole.mean_x)[:num_features], np.asarray(whole.mean_y)[0]
        intercept = dtype.type(mean_y - mean_x @ coef) if fit_intercept else 0.0
        gap = float(found.gap) / float(whole.weight)
        return _Selected(alpha, l1_ratio, grids_LA, errors_LAF, coef, intercept, gap, int(found.sweeps))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = False
        return tags


class LassoCV(ElasticNetCV):
    """The lasso with alpha chosen by cross-validation, as in sklearn.linear_model.LassoCV.

    Parameters and attributes are those of
    https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.LassoCV.html, with the differences that
    :class:`ElasticNetCV` lists.
    """

    _parameter_constraints: ClassVar[Constraints] = {
        name: allowed for name, allowed in ElasticNetCV._parameter_constraints.items() if name != "l1_ratio"
    }
    path = staticmethod(lasso_path)

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        alphas: ArrayLike | None = 100,
        fit_intercept: bool = True,
        precompute: bool | str | ArrayLike = "auto",
        max_iter: int = 1000,
        tol: float = 1e-4,
        copy_X: bool = True,
        cv: CrossValidator = None,
        verbose: bool | int = False,
        n_jobs: int | None = None,
        positive: bool = False,
        random_state: int | np.random.RandomState | None = None,
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
