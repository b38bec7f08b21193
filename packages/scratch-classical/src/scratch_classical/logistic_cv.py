"""Logistic regression with its penalty chosen by cross-validation; one compiled program serves all fits."""

from collections.abc import Callable
from inspect import signature
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import get_scorer, make_scorer
from sklearn.model_selection import check_cv
from sklearn.utils.metadata_routing import UNUSED

from .arrays import CrossValidator, MatrixLike, precision, require_finite
from .constraints import COUNT, FLAG, FOLDS, SCORING, Constraints, check_each, unset
from .folds import Folds
from .logistic import SHARED_CONSTRAINTS, ClassWeight, LinearClassifier, LogisticRegression
from .logistic_data import LogisticFit
from .routing import CrossValidated, Routed


def _given_classes(scorer: Any, classes: np.ndarray) -> Callable[..., float]:
    """Return the scorer with all classes as ``labels`` if its metric takes them, because a fold may lack a class."""
    metric = getattr(scorer, "_score_func", None)
    accepted = signature(metric).parameters if metric is not None else {}
    if "labels" not in accepted:
        return scorer
    options = {"labels": classes}
    if "pos_label" in accepted and len(classes) == 2:
        options["pos_label"] = classes[1]
    return make_scorer(
        metric,
        response_method=scorer._response_method,
        greater_is_better=scorer._sign > 0,
        **{**options, **scorer._kwargs},
    )


class LogisticRegressionCV(CrossValidated, LinearClassifier):
    """Logistic regression with C (and ``l1_ratio``) chosen by cross-validation.

    In each fold C runs from small to large, and every fit starts from the one before it. Parameters and attributes are
    those of https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.LogisticRegressionCV.html, with
    these differences:

    use_legacy_attributes: False stores the results as arrays, every other value in the older form with dictionaries.
    scoring: "warn", the default, and None stand for "accuracy".
    l1_ratios: "warn", the default, and None stand for 0.
    solver, tol, dual, verbose, n_jobs, random_state: as :class:`LogisticRegression` says.
    """

    _parameter_constraints: ClassVar[Constraints] = {
        **SHARED_CONSTRAINTS,
        "Cs": [*COUNT, "array-like"],
        "l1_ratios": ["array-like", None, unset("warn")],
        "cv": FOLDS,
        "scoring": [*SCORING, unset("warn")],
        "refit": FLAG,
        "use_legacy_attributes": [*FLAG, unset("warn")],
    }

    def __init__(
        self,
        *,
        Cs: ArrayLike = 10,
        l1_ratios: ArrayLike | None = "warn",
        fit_intercept: bool = True,
        cv: CrossValidator = None,
        dual: bool = False,
        penalty: str | None = "deprecated",
        scoring: str | Callable[..., float] | None = "warn",
        solver: str = "lbfgs",
        tol: float = 1e-4,
        max_iter: int = 100,
        class_weight: ClassWeight = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        refit: bool = True,
        intercept_scaling: float = 1.0,
        random_state: int | np.random.RandomState | None = None,
        use_legacy_attributes: bool | str = "warn",
    ) -> None:
        self.Cs = Cs
        self.l1_ratios = l1_ratios
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.dual = dual
        self.penalty = penalty
        self.scoring = scoring
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.refit = refit
        self.intercept_scaling = intercept_scaling
        self.random_state = random_state
        self.use_legacy_attributes = use_legacy_attributes

    # ``score`` passes sample_weight to the scorer, and only if the scorer asks for it.
    __metadata_request__score: ClassVar = {"sample_weight": UNUSED}

    def fit(
        self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None, **params: object
    ) -> "LogisticRegressionCV":
        """Choose C by cross-validation, then fit to all of X [I, D] and labels y [I].

        With metadata routing ``params`` go to the splitter and the scorer.
        """
        self._validate_params()
        X, indices, weight = self._encode(X, y, sample_weight, self.class_weight)
        X = np.asarray(X)
        require_finite(X, type(self).__name__)
        routed = self._route("fit", sample_weight, params)
        labels = self.classes_[indices]
        unset = self.l1_ratios is None or isinstance(self.l1_ratios, str)
        ratios_L = np.atleast_1d(0.0 if unset else self.l1_ratios).astype(float)
        if self.penalty == "l1":
            ratios_L = np.ones(1)
        elif self.penalty == "elasticnet" and unset:
            raise ValueError(
                f"penalty='elasticnet' needs l1_ratios, a list of numbers; l1_ratios is {self.l1_ratios!r}"
            )
        check_each("l1_ratios", ratios_L, "both", largest=1.0)
        Cs = np.asarray(self.Cs, float)
        if Cs.ndim == 0:
            Cs = np.logspace(-4, 4, int(Cs))
        check_each("Cs", Cs, "neither")
        ascending = np.argsort(Cs)
        folds = list(check_cv(self.cv, labels, classifier=True).split(X, labels, **routed.split))
        weight_FI = np.stack([weight * np.bincount(train, minlength=len(X)) for train, _ in folds])
        options = self.tol, self.max_iter, self.solver
        with precision(X.dtype):
            data = self._lay_out(X, indices)
            paths = [
                data.fit_path(fold, Cs[ascending], ratio, *options) for fold in weight_FI for ratio in ratios_L
            ]  # fmt: skip
            shape, order = (len(folds), len(ratios_L), len(Cs)), np.argsort(ascending)
            # [F, L, A, ...] with A in the order of Cs
            fits = LogisticFit(*(np.stack(v).reshape(*shape, *v[0].shape[1:])[:, :, order] for v in zip(*paths)))
            coefs, intercepts, counts, violation = fits
            scores = self._fold_scores(X, labels, folds, fits, routed)
            if self.refit:
                l, a = np.unravel_index(np.argmax(scores.mean(0)), scores.shape[1:])
                C, ratio = Cs[a], ratios_L[l]
                data.start(coefs[:, l, a].mean(0), intercepts[:, l, a].mean(0))
                # Repeating one C reuses the compiled path; from the second on each fit starts at the minimum.
                refit = LogisticFit(*(v[0] for v in data.fit_path(weight, np.full(len(Cs), C), ratio, *options)))
                self.coef_, self.intercept_ = refit.coef, refit.intercept
                violation = np.append(violation, refit.violation)
            else:
                best = [np.unravel_index(np.argmax(s), s.shape) for s in scores]
                C, ratio = np.mean([Cs[a] for _, a in best]), np.mean([ratios_L[l] for l, _ in best])
                self.coef_ = np.mean([coefs[f, l, a] for f, (l, a) in enumerate(best)], axis=0)
                self.intercept_ = np.mean([intercepts[f, l, a] for f, (l, a) in enumerate(best)], axis=0)
        self._check_minimum(X, self.coef_, int(counts.max()), violation)
        thetas = np.concatenate([coefs, intercepts[..., None]], axis=-1) if self.fit_intercept else coefs
        self._store(Cs, ratios_L, float(C), float(ratio), thetas.astype(np.float64), scores, counts)
        return self

    def score(self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None, **params: object) -> float:
        """Return the score by ``scoring`` on X [I, D] and labels y [I]; ``params`` as in :meth:`fit`."""
        routed = self._route("score", sample_weight, params)
        return self._scorer()(self, X, y, **routed.score)

    def _scorer(self) -> Callable[..., float]:
        return get_scorer("accuracy" if self.scoring is None or self.scoring == "warn" else self.scoring)

    def _fold_scores(
        self, X: np.ndarray, labels: np.ndarray, folds: Folds, fits: LogisticFit, routed: Routed
    ) -> np.ndarray:
        """Return the score of every fold's models [F, L, A] on the samples that the fold left out."""
        scorer = _given_classes(self._scorer(), self.classes_)
        scores = np.zeros(fits.coef.shape[:3])
        model = LogisticRegression()
        model.classes_, model.n_features_in_ = self.classes_, X.shape[1]
        for place in np.ndindex(*scores.shape):
            test = folds[place[0]][1]
            model.coef_, model.intercept_ = fits.coef[place], fits.intercept[place]
            scores[place] = scorer(model, X[test], labels[test], **routed.of(X, test))
        return scores

    def _store(
        self,
        Cs: np.ndarray,
        ratios_L: np.ndarray,
        C: float,
        ratio: float,
        paths: np.ndarray,
        scores: np.ndarray,
        counts: np.ndarray,
    ) -> None:
        """Set the attributes of the cross-validation, in the newer or the older form."""
        self.Cs_ = Cs
        listed = not isinstance(self.l1_ratios, str) and self.l1_ratios is not None
        if self.use_legacy_attributes is False:
            self.l1_ratios_ = ratios_L
            self.C_, self.l1_ratio_, self.n_iter_ = C, ratio, counts
            self.coefs_paths_, self.scores_ = paths, scores
            return
        K = paths.shape[3]
        self.l1_ratios_ = ratios_L if listed else np.array([None])
        self.C_ = np.full(K, C)
        self.l1_ratio_ = np.full(K, ratio) if listed or not self.refit else np.array([None] * K)
        keep = slice(None) if listed else 0
        F = len(paths)
        path_per_class = {
            self.classes_[1 if K == 1 else k]: paths[:, :, :, k].transpose(0, 2, 1, 3) if listed else paths[:, 0, :, k]
            for k in range(K)
        }
        self.coefs_paths_ = path_per_class
        self.scores_ = {
            self.classes_[1 if K == 1 else k]: scores.transpose(0, 2, 1) if listed else scores[:, keep]
            for k in range(K)
        }
        self.n_iter_ = counts.transpose(0, 2, 1)[None] if listed else counts[:, 0].reshape(1, F, -1)
