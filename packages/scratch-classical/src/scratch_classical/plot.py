"""Pictures of fitted models, on matplotlib (the extra ``plot``).

Each function draws on the axes it is given, or on new ones, and returns them.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv

from .arrays import CrossValidator

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Classifier(Protocol):
    """What a picture of regions needs of a fitted classifier; one with two classes may also have decision_function."""

    @property
    def classes_(self) -> ArrayLike: ...

    def predict(self, X: np.ndarray, /) -> np.ndarray: ...


BLUE, RED, GREY = "#2a78d6", "#d1495b", "#5f6368"


def _axes(ax: "Axes | None") -> "Axes":
    """Return the given axes, or new ones without the upper and right line of the frame."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "scratch_classical.plot needs matplotlib, which is not installed: pip install 'scratch-classical[plot]'"
        ) from error
    ax = pyplot.subplots(figsize=(5.5, 4), layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_decision_boundary(
    model: Classifier, X: ArrayLike, y: ArrayLike, ax: "Axes | None" = None, resolution: int = 300
) -> "Axes":
    """Draw the regions of a fitted classifier over two features, with the samples X [I, 2] and their labels y [I].

    If the model has one decision function, its lines at -1, 0 and 1 are drawn. For a support vector machine these are
    the margins and the boundary. Support vectors get a ring, so X must then be the samples of the fit, in their order.
    """
    from matplotlib.colors import ListedColormap

    ax = _axes(ax)
    X, labels = np.asarray(X), np.asarray(y)
    if X.shape[1] != 2:
        raise ValueError(f"plot_decision_boundary draws two features, X has {X.shape[1]}: choose two of its columns")
    classes = np.asarray(model.classes_)
    if not np.isin(labels, classes).all():
        raise ValueError(
            f"y holds {np.unique(labels)}, but the model was fitted to the classes {classes}: pass labels of these"
        )
    low, high = X.min(0), X.max(0)
    room = 0.08 * (high - low + (high == low))
    axis_x, axis_y = (np.linspace(low[d] - room[d], high[d] + room[d], resolution) for d in range(2))
    grid = np.stack([v.ravel() for v in np.meshgrid(axis_x, axis_y)], axis=1).astype(X.dtype)
    colors = [BLUE, RED, "#e9a23b", "#3c9d6b", "#7b5ea7", GREY]
    colors = [colors[k % len(colors)] for k in range(len(classes))]
    region = np.searchsorted(classes, model.predict(grid)).reshape(resolution, resolution)
    levels = np.arange(len(classes) + 1) - 0.5
    ax.contourf(axis_x, axis_y, region, levels=levels, cmap=ListedColormap(colors), alpha=0.15)
    if len(classes) > 2:
        for k in range(len(classes) - 1):
            ax.contour(axis_x, axis_y, region == k, levels=[0.5], colors=GREY, linewidths=0.6)
    elif (decision_function := getattr(model, "decision_function", None)) is not None:
        scores = decision_function(grid).reshape(resolution, resolution)
        lines = ax.contour(axis_x, axis_y, scores, levels=[-1, 0, 1], colors="k", linestyles=["--", "-", "--"])
        lines.set_linewidth([0.8, 1.4, 0.8])
    for k, color in enumerate(colors):
        ax.scatter(
            *X[labels == classes[k]].T, s=18, color=color, edgecolor="white", linewidth=0.4, label=str(classes[k])
        )
    support = getattr(model, "support_", None)
    if support is not None and len(support) and support.max() < len(X):
        ax.scatter(*X[support].T, s=60, facecolor="none", edgecolor="k", linewidth=0.7, label="support vectors")
    ax.legend(loc="best", fontsize=8, framealpha=0.9)
    ax.set(xlabel="feature 0", ylabel="feature 1", title=f"{type(model).__name__}: decision boundary")
    return ax


def plot_regularization_path(
    alphas: ArrayLike,
    coefs: ArrayLike,
    ax: "Axes | None" = None,
    names: Sequence[str] | None = None,
    chosen: float | None = None,
) -> "Axes":
    """Draw every coefficient against alpha, from ``alphas`` [A] and ``coefs`` [D, A] as ``lasso_path`` returns them.

    ``chosen`` is an alpha to mark; ``names`` [D] are the labels of the lines (None: no labels).
    """
    ax = _axes(ax)
    alphas, coefs = np.asarray(alphas), np.asarray(coefs)
    if coefs.ndim != 2 or coefs.shape[1] != len(alphas):
        raise ValueError(f"coefs has shape {coefs.shape}, but must be [features, {len(alphas)} alphas]")
    for d, line in enumerate(coefs):
        ax.plot(alphas, line, linewidth=1.3, label=None if names is None else str(names[d]))
    ax.axhline(0, color=GREY, linewidth=0.6)
    if chosen is not None:
        ax.axvline(chosen, color="k", linestyle="--", linewidth=1, label=f"chosen: {chosen:.3g}")
    ax.set_xscale("log")
    ax.invert_xaxis()
    if names is not None or chosen is not None:
        # The legend stands beside the lines, in the order in which they end.
        handles, labels = ax.get_legend_handles_labels()
        ends = {line.get_label(): np.asarray(line.get_ydata())[-1] for line in ax.get_lines()}
        order = np.argsort([np.inf if label.startswith("chosen") else ends[label] for label in labels])[::-1]
        handles, labels = [handles[k] for k in order], [labels[k] for k in order]
        ax.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    ax.set(xlabel=r"$\alpha$ (stronger penalty to the left)", ylabel="coefficient", title="Regularisation path")
    return ax


def plot_learning_curve(
    model: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    sizes: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 1.0),
    cv: CrossValidator = 5,
    scoring: str | Callable[..., float] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Fit ``model`` to growing shares of the training folds and draw the mean score on them and on the test folds.

    The bands are one standard deviation over the folds.
    """
    ax = _axes(ax)
    X, y = np.asarray(X), np.asarray(y)
    scorer = check_scoring(model, scoring=scoring)
    random = np.random.default_rng(0)
    folds = check_cv(
        cv, y, classifier=getattr(model, "_estimator_type", "") == "classifier" or hasattr(model, "predict_proba")
    )
    scores = []
    for train, test in folds.split(X, y):
        train = random.permutation(train)
        row = []
        for share in sizes:
            part = train[: max(2, round(share * len(train)))]
            fitted = clone(model).fit(X[part], y[part])
            row.append((len(part), scorer(fitted, X[part], y[part]), scorer(fitted, X[test], y[test])))
        scores.append(row)
    values = np.array(scores)
    counts = values[:, :, 0].mean(0)
    for column, name, color in ((1, "training samples", RED), (2, "held-out samples", BLUE)):
        mean, spread = values[:, :, column].mean(0), values[:, :, column].std(0)
        ax.plot(counts, mean, "o-", color=color, markersize=4, label=name)
        ax.fill_between(counts, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
    ax.legend(fontsize=8)
    ax.set(xlabel="samples fitted to", ylabel="score", title=f"{type(model).__name__}: learning curve")
    return ax
