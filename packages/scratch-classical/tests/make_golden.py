# /// script
# requires-python = ">=3.11"
# dependencies = ["scikit-learn>=1.6", "safetensors", "numpy"]
# ///
"""Make goldens like those beside this file, with scikit-learn. The tests never run it.

    uv run packages/scratch-classical/tests/make_golden.py FOLDER

The runs are those of `golden/hyperparameters.json`, on scikit-learn's own data sets: a random quarter held out, the
breast cancer and iris features standardised with the training rows, and 500 of the digits with pixels from 0 to 1.
Another seed gives another split, and so other numbers.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import sklearn
from safetensors.numpy import save_file
from sklearn import datasets, linear_model, neighbors, svm
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

RUNS = json.loads((Path(__file__).parent / "golden" / "hyperparameters.json").read_text())["runs"]


def split(name, seed):
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if name == "digits":
        X, y = X[:500], y[:500]
    parts = train_test_split(X, y, test_size=0.25, random_state=seed, stratify=None if name == "diabetes" else y)
    X_train, X_test, y_train, y_test = parts
    if name in ("breast_cancer", "iris"):
        scaler = StandardScaler().fit(X_train)
        X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)
    return X_train, y_train, X_test, y_test


def objective(model, X, y):
    """Return what the estimator minimises, at its solution."""
    p, coef = model.get_params(), model.coef_
    if isinstance(model, linear_model.LogisticRegression):
        z = X @ coef.T + model.intercept_
        z = np.hstack([0 * z, z]) if z.shape[1] == 1 else z
        top = z.max(1, keepdims=True)
        losses = np.log(np.exp(z - top).sum(1)) + top[:, 0] - z[np.arange(len(y)), y]
        return p["C"] * losses.sum() + 0.5 * (coef**2).sum()
    squares = ((y - X @ coef - model.intercept_) ** 2).sum()
    if isinstance(model, linear_model.ElasticNet):  # the lasso too
        rho = 1.0 if isinstance(model, linear_model.Lasso) else p["l1_ratio"]
        penalty = rho * np.abs(coef).sum() + 0.5 * (1 - rho) * coef @ coef
        return squares / (2 * len(y)) + p["alpha"] * penalty
    return squares + p.get("alpha", 0.0) * coef @ coef


def dual_objectives(model, X, y):
    """Return the maximised dual of each pair of classes, or of the regression."""
    p, gamma = model.get_params(), model._gamma
    options = {} if p["kernel"] == "linear" else {"gamma": gamma}
    if p["kernel"] == "poly":
        options |= {"degree": p["degree"], "coef0": p["coef0"]}
    beta = np.zeros((len(model.dual_coef_), len(X)))
    beta[:, model.support_] = model.dual_coef_
    K = pairwise_kernels(X, metric=p["kernel"], **options)
    if isinstance(model, svm.SVR):
        b = beta[0]
        return y @ b - p["epsilon"] * np.abs(b).sum() - 0.5 * b @ K @ b
    values = []
    for first in range(len(model.classes_)):
        for second in range(first + 1, len(model.classes_)):
            # libsvm keeps a sample's coefficient against the k-th other class in row k, its own class left out.
            b = np.where(y == first, beta[second - 1], np.where(y == second, beta[first], 0.0))
            values.append(np.abs(b).sum() - 0.5 * b @ K @ b)
    return values if len(values) > 1 else values[0]


def outputs(run, data):
    """Return {output: array} of one run."""
    X, y, X_test, _ = data
    spec, found = RUNS[run], {}
    if "y_train_standardised" in spec["outputs"]:
        y = found["y_train_standardised"] = (y - y.mean()) / y.std()
    module = next(m for m in (linear_model, neighbors, svm) if hasattr(m, spec["estimator"]))
    model = getattr(module, spec["estimator"])(**spec["params"]).fit(X, y)
    for output in spec["outputs"]:
        if output in ("predict", "predict_proba", "decision_function"):
            found[output] = getattr(model, output)(X_test)
        elif output == "objective":
            found[output] = objective(model, X, y)
        elif output == "dual_objective":
            found[output] = dual_objectives(model, X, y)
        elif output == "gamma":
            found[output] = model._gamma
        elif output in ("coef", "intercept", "support", "dual_coef", "n_support"):
            found[output] = np.atleast_1d(getattr(model, output + "_"))
    if "kth_gap" in spec["outputs"]:
        k = model.n_neighbors
        found["kneighbors_distances"], found["kneighbors_indices"] = model.kneighbors(X_test)
        further = model.kneighbors(X_test, k + 1)[0]
        found["kth_gap"] = further[:, k] - further[:, k - 1]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tensors = {}
    for name in sorted({spec["dataset"] for spec in RUNS.values()}):
        X_train, y_train, X_test, y_test = data = split(name, args.seed)
        for part, X, y in (("train", X_train, y_train), ("test", X_test, y_test)):
            tensors[f"data.{name}.y_{part}"] = y
            if name == "digits":
                tensors[f"data.digits.X_{part}_times16_uint8"] = X.astype(np.uint8)
            else:
                tensors[f"data.{name}.X_{part}"] = X
        if name == "digits":
            data = X_train / 16.0, y_train, X_test / 16.0, y_test
        for run in (r for r in RUNS if RUNS[r]["dataset"] == name):
            tensors |= {f"{run}.{output}": value for output, value in outputs(run, data).items()}
    for key, value in tensors.items():
        value = np.asarray(value)
        dtype = np.int32 if value.dtype.kind in "iu" and value.dtype != np.uint8 else value.dtype
        tensors[key] = np.array(value, dtype, order="C")
    args.folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.folder / "io.safetensors")
    text = json.dumps({"runs": RUNS, "sklearn": sklearn.__version__}, indent=1, sort_keys=True)
    (args.folder / "hyperparameters.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
