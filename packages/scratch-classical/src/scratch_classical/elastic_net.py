r"""The estimators of :mod:`.coordinate_descent`: lasso and elastic net.

$$ \min_{w, b} \frac{1}{2n} \sum_i \omega_i (y_i - x_i^\top w - b)^2 + \alpha\rho \|w\|_1
   + \frac{\alpha(1-\rho)}{2} \|w\|^2, \qquad n = \sum_i \omega_i \tag{1} $$

The solver needs only the second moments of the data, computed in one pass. With many features, few of which are used,
it needs only those of a working set of columns (:mod:`.working_set`). A sparse X with no fewer samples than features
stays sparse.

Shapes: I samples, D features, K outputs.
"""

from functools import partial
from typing import ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.utils.metadata_routing import UNUSED

from .arrays import Array, Matrix, MatrixLike, dense, is_on_device, lay_out, precision, refuse_non_finite
from .base import LinearPredictor
from .constraints import COUNT, FLAG, NOT_NEGATIVE, SEED, SELECTION, SHARE, Constraints
from .coordinate_descent import Descent, descend, duality_gap
from .elastic_net_path import enet_path, warn_unless_converged
from .moments import Moments, arranged, moments_of, sparse_moments
from .working_set import fit_working_set

_WIDE = 256  # features above which a working set is tried


class _ElasticNetFit(NamedTuple):
    """coef [K, D], intercept [K], duality gap over n [K], and the number of sweeps [K]."""

    coef_KD: Array
    intercept_K: Array
    gap_K: Array
    sweeps_K: Array


@partial(jax.jit, static_argnames="positive")
def _fit_gram(
    m: Moments,
    l1: jax.Array,
    l2: jax.Array,
    start_KD: jax.Array,
    tol: jax.Array,
    max_iter: jax.Array,
    positive: bool,
) -> tuple[_ElasticNetFit, jax.Array]:
    """Minimise eq. 1 from the whole Gram matrix; return also whether the moments are finite."""

    def one(output: tuple[jax.Array, jax.Array, jax.Array]) -> Descent:
        cross_D, target, start_D = output
        penalties = m.weight * l1, m.weight * l2
        # As in scikit-learn, a warm start within tol is returned as it is.
        gap, _ = duality_gap(start_D, cross_D - m.gram @ start_D, cross_D, target, *penalties, positive)
        limit = jnp.where((gap <= tol * target) & (start_D != 0).any(), 0, max_iter)
        return descend(m.gram, cross_D, target, *penalties, start_D, tol, limit, positive)

    coef_KD, gap_K, sweeps_K = jax.lax.map(one, (m.cross.T, m.target, start_KD))
    finite = jnp.isfinite(jnp.diagonal(m.gram)).all() & jnp.isfinite(m.cross).all()
    return _ElasticNetFit(coef_KD, m.mean_y - coef_KD @ m.mean_x, gap_K / m.weight, sweeps_K), finite


class ElasticNet(LinearPredictor):
    r"""The elastic net: eq. 1 with $\rho$ = ``l1_ratio``, as in sklearn.linear_model.ElasticNet.

    Parameters and attributes are those of
    https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.ElasticNet.html, with these differences:

    selection, random_state: accepted and not used; coordinates are always visited in cyclic order.
    precompute, copy_X: accepted and not used; X is never changed.
    tol: also asks that the last sweep moved no coefficient by more than tol times the largest, or that the gap is below
        1e-6 of the objective.
    """

    n_iter_: int | list[int]
    dual_gap_: float | np.ndarray
    _parameter_constraints: ClassVar[Constraints] = {
        "alpha": NOT_NEGATIVE,
        "l1_ratio": SHARE,
        "fit_intercept": FLAG,
        "precompute": [*FLAG, "array-like"],
        "max_iter": COUNT,
        "copy_X": FLAG,
        "tol": NOT_NEGATIVE,
        "warm_start": FLAG,
        "positive": FLAG,
        "random_state": SEED,
        "selection": SELECTION,
    }

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        l1_ratio: float = 0.5,
        fit_intercept: bool = True,
        precompute: bool | ArrayLike = False,
        max_iter: int = 1000,
        copy_X: bool = True,
        tol: float = 1e-4,
        warm_start: bool = False,
        positive: bool = False,
        random_state: int | np.random.RandomState | None = None,
        selection: str = "cyclic",
    ) -> None:
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.precompute = precompute
        self.max_iter = max_iter
        self.copy_X = copy_X
        self.tol = tol
        self.warm_start = warm_start
        self.positive = positive
        self.random_state = random_state
        self.selection = selection

    path = staticmethod(enet_path)
    __metadata_request__fit: ClassVar = {"check_input": UNUSED}  # not metadata

    def fit(
        self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None, check_input: bool = True
    ) -> "ElasticNet":
        """Fit to X [I, D] and y [I] or [I, K]; each output is a problem of its own.

        check_input: False skips the checks. X must then be a float32 or float64 array or sparse matrix.
        """
        self._validate_params()
        checked = self._validated_fit(X, y, sample_weight) if check_input else (X, y, sample_weight)
        X, y, sample_weight = cast("tuple[Matrix, np.ndarray, np.ndarray | None]", checked)
        if X.shape[0] < X.shape[1]:
            X = dense(X)
        K, num_features, dtype = (1 if y.ndim == 1 else y.shape[1]), X.shape[1], np.dtype(X.dtype)
        start_KD = np.zeros((K, num_features), dtype)
        if self.warm_start and hasattr(self, "coef_"):
            start_KD = np.atleast_2d(np.asarray(self.coef_, dtype))
        with precision(dtype):
            found = self._minimise(X, y, sample_weight, start_KD)
            coef = np.array(found.coef_KD, dtype)[:, :num_features]
            intercept, gap = np.array(found.intercept_K, dtype), np.array(found.gap_K, np.float64)
            counts = np.array(found.sweeps_K)
        if not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
            refuse_non_finite(X, type(self).__name__)
        warn_unless_converged(gap, self.tol, y, sample_weight, self.fit_intercept)
        single = y.ndim == 1
        self.coef_ = coef[0] if K == 1 else coef
        self.intercept_ = 0.0 if not self.fit_intercept else intercept[0] if single else intercept
        self.dual_gap_ = float(gap[0]) if K == 1 else gap
        self.n_iter_ = int(counts[0]) if K == 1 else [int(c) for c in counts]
        return self

    def _minimise(
        self, X: Matrix, y: np.ndarray, sample_weight: np.ndarray | None, start_KD: np.ndarray
    ) -> _ElasticNetFit:
        """Choose the solver and run it; the features of the result are padded. Raises ValueError if X is not finite."""
        dtype, num_features, fit_intercept = np.dtype(X.dtype), X.shape[1], bool(self.fit_intercept)
        l1, l2 = dtype.type(self.alpha * self.l1_ratio), dtype.type(self.alpha * (1 - self.l1_ratio))
        if not isinstance(X, (np.ndarray, jax.Array)):
            m = sparse_moments(X, y, sample_weight, fit_intercept)
            start_KD = np.pad(start_KD, ((0, 0), (0, len(m.mean_x) - num_features)))
        else:
            layout = lay_out(X)
            samples = arranged(layout, X, y, sample_weight, fit_intercept)
            start_KD = np.pad(start_KD, ((0, 0), (0, layout.rows.tail.shape[1] - num_features)))
            if num_features > _WIDE and len(start_KD) == 1 and l1 > 0 and not is_on_device(X):
                found = fit_working_set(
                    samples, l1, l2, start_KD[0],
                    fit_intercept=fit_intercept, positive=self.positive, tol=self.tol, max_iter=self.max_iter,
                )  # fmt: skip
                if found is not None:
                    return _ElasticNetFit(*(np.asarray(v)[None] for v in found))
            m = moments_of(samples, fit_intercept=fit_intercept)
        found, finite = _fit_gram(
            m, l1, l2, start_KD, dtype.type(self.tol), np.int32(self.max_iter), positive=bool(self.positive)
        )
        if not finite:
            refuse_non_finite(X, type(self).__name__)
        return found

    @property
    def sparse_coef_(self) -> sparse.csr_matrix:
        """The coefficients as a sparse matrix."""
        return sparse.csr_matrix(self.coef_)


class Lasso(ElasticNet):
    r"""The lasso: eq. 1 with $\rho = 1$, as in sklearn.linear_model.Lasso.

    Parameters and attributes are those of
    https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.Lasso.html, with the differences that
    :class:`ElasticNet` lists.
    """

    _parameter_constraints: ClassVar[Constraints] = {
        name: allowed for name, allowed in ElasticNet._parameter_constraints.items() if name != "l1_ratio"
    }

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        fit_intercept: bool = True,
        precompute: bool | ArrayLike = False,
        copy_X: bool = True,
        max_iter: int = 1000,
        tol: float = 1e-4,
        warm_start: bool = False,
        positive: bool = False,
        random_state: int | np.random.RandomState | None = None,
        selection: str = "cyclic",
    ) -> None:
        super().__init__(
            alpha,
            l1_ratio=1.0,
            fit_intercept=fit_intercept,
            precompute=precompute,
            copy_X=copy_X,
            max_iter=max_iter,
            tol=tol,
            warm_start=warm_start,
            positive=positive,
            random_state=random_state,
            selection=selection,
        )
