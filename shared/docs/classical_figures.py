"""Draw the pictures of scratch-classical's README, from data sets that come with scikit-learn.

uv run --all-packages python shared/docs/classical_figures.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scratch_classical import SVC, LassoCV, LogisticRegression, lasso_path
from scratch_classical.plot import plot_decision_boundary, plot_learning_curve, plot_regularization_path
from sklearn.datasets import load_diabetes, load_digits, load_wine
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
NAMES = np.array(["Barolo", "Grignolino", "Barbera"])  # the cultivars; scikit-learn has only their numbers


def save(ax, name):
    ax.figure.savefig(HERE / f"classical_{name}.png", dpi=110)
    plt.close(ax.figure)


def margins():
    """Two cultivars of wine by two of their thirteen measurements."""
    data = load_wine()
    kept = data.target < 2
    columns = [data.feature_names.index(name) for name in ("color_intensity", "proline")]
    X, y = StandardScaler().fit_transform(data.data[kept][:, columns]), NAMES[data.target[kept]]
    ax = plot_decision_boundary(SVC(C=3.0, gamma=0.5).fit(X, y), X, y)
    ax.set(xlabel="colour intensity (standardised)", ylabel="proline (standardised)", title="SVC: boundary and margins")
    save(ax, "margins")


def regions():
    """All three cultivars."""
    data = load_wine()
    columns = [data.feature_names.index(name) for name in ("color_intensity", "flavanoids")]
    X, y = StandardScaler().fit_transform(data.data[:, columns]), NAMES[data.target]
    ax = plot_decision_boundary(LogisticRegression().fit(X, y), X, y)
    ax.set(xlabel="colour intensity (standardised)", ylabel="flavanoids (standardised)")
    ax.set_title("Logistic regression: three regions")
    save(ax, "regions")


def path():
    data = load_diabetes()
    alphas, coefs, _ = lasso_path(data.data, data.target, eps=1e-3)
    chosen = LassoCV(cv=10).fit(data.data, data.target).alpha_
    ax = plot_regularization_path(alphas, coefs, names=data.feature_names, chosen=chosen)
    ax.set(title="Lasso on diabetes: the path")
    save(ax, "path")


def learning_curve():
    X, y = load_digits(return_X_y=True)
    sizes = np.geomspace(0.03, 1, 7)
    ax = plot_learning_curve(LogisticRegression(C=0.1), X / 16, y, sizes=sizes, cv=5)
    ax.set(title="Logistic regression on handwritten digits", ylabel="accuracy")
    save(ax, "learning_curve")


if __name__ == "__main__":
    for draw in (margins, regions, path, learning_curve):
        draw()
