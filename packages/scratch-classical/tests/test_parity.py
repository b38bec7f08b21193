"""Every run of the goldens, made by scikit-learn in float64, is repeated and compared."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import scratch_classical
from scratch_classical.objective import Objective

GOLDEN = Path(__file__).parent / "golden"
RUNS = json.loads((GOLDEN / "hyperparameters.json").read_text())["runs"]


def read_tensors(path):
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    types = {"F64": np.float64, "F32": np.float32, "I32": np.int32, "U8": np.uint8}
    tensors = {}
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(raw[begin:end], types[entry["dtype"]]).reshape(entry["shape"])
    return tensors


TENSORS = read_tensors(GOLDEN / "io.safetensors")


def dataset(name):
    found = {}
    for part in ("train", "test"):
        if name == "digits":
            found["X_" + part] = TENSORS[f"data.digits.X_{part}_times16_uint8"] / 16.0
        else:
            found["X_" + part] = TENSORS[f"data.{name}.X_{part}"]
        found["y_" + part] = TENSORS[f"data.{name}.y_{part}"]
    return found["X_train"], found["y_train"], found["X_test"]


def golden(run, output):
    return TENSORS[f"{run}.{output}"]


def fitted(run):
    spec = RUNS[run]
    X, y, X_test = dataset(spec["dataset"])
    if f"{run}.y_train_standardised" in TENSORS:
        y = golden(run, "y_train_standardised")
    model = getattr(scratch_classical, spec["estimator"])(**spec["params"]).fit(X, y)
    return model, X, y, X_test


def of(estimator):
    return [run for run in RUNS if RUNS[run]["estimator"] in estimator]


@pytest.mark.parametrize("run", of(("LinearRegression", "Ridge", "Lasso", "ElasticNet")))
def test_linear_models_match(run):
    model, X, y, X_test = fitted(run)
    for value, output in ((model.coef_, "coef"), (model.intercept_, "intercept"), (model.predict(X_test), "predict")):
        expected = golden(run, output)
        np.testing.assert_allclose(np.ravel(value), np.ravel(expected), rtol=1e-7, atol=1e-7 * np.abs(expected).max())
    if "coef" in RUNS[run]["outputs"]:
        np.testing.assert_array_equal(model.coef_ == 0, golden(run, "coef") == 0)
    objective = {
        "LinearRegression": lambda p: Objective.least_squares(),
        "Ridge": lambda p: Objective.ridge(p["alpha"]),
        "Lasso": lambda p: Objective.lasso(p["alpha"], len(y)),
        "ElasticNet": lambda p: Objective.elastic_net(p["alpha"], p["l1_ratio"], len(y)),
    }[RUNS[run]["estimator"]](RUNS[run]["params"])
    with scratch_classical.precision(np.float64):
        value = float(objective(model.coef_, model.intercept_, X, y))
    assert value <= golden(run, "objective") * (1 + 1e-9)


@pytest.mark.parametrize("run", of(("LogisticRegression",)))
def test_logistic_regression_matches(run):
    model, X, y, X_test = fitted(run)
    np.testing.assert_allclose(model.coef_, golden(run, "coef"), rtol=0, atol=1e-9)
    np.testing.assert_allclose(model.intercept_, golden(run, "intercept"), rtol=0, atol=1e-9)
    np.testing.assert_allclose(model.decision_function(X_test), golden(run, "decision_function"), rtol=0, atol=1e-8)
    np.testing.assert_allclose(model.predict_proba(X_test), golden(run, "predict_proba"), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(model.predict(X_test), golden(run, "predict"))
    several = len(model.classes_) > 2
    objective = Objective.logistic(RUNS[run]["params"]["C"], multinomial=several)
    coef, intercept = (model.coef_.T, model.intercept_) if several else (model.coef_[0], model.intercept_[0])
    with scratch_classical.precision(np.float64):
        assert float(objective(coef, intercept, X, y)) <= golden(run, "objective") * (1 + 1e-9)


@pytest.mark.parametrize("run", of(("KNeighborsClassifier", "KNeighborsRegressor")))
def test_neighbors_match(run):
    model, _, _, X_test = fitted(run)
    distances, indices = model.kneighbors(X_test)
    np.testing.assert_allclose(distances, golden(run, "kneighbors_distances"), rtol=1e-9, atol=1e-9)
    clear = np.all(np.diff(golden(run, "kneighbors_distances")) > 0, axis=1) & (golden(run, "kth_gap") > 0)
    assert clear.sum() > 10
    np.testing.assert_array_equal(indices[clear], golden(run, "kneighbors_indices")[clear])
    untied = golden(run, "kth_gap") > 0
    for output in ("predict_proba", "predict"):
        if output in RUNS[run]["outputs"]:
            expected = golden(run, output)[untied]
            np.testing.assert_allclose(getattr(model, output)(X_test)[untied], expected, rtol=1e-9, atol=1e-9)


def kernel_of(model, X):
    square = ((X[:, None] - X[None]) ** 2).sum(-1)
    return {
        "linear": lambda: X @ X.T,
        "poly": lambda: (model._gamma * X @ X.T + model.coef0) ** model.degree,
        "rbf": lambda: np.exp(-model._gamma * square),
    }[model.kernel]()


@pytest.mark.parametrize("run", of(("SVC", "SVR")))
def test_support_vector_machines_match(run):
    model, X, y, X_test = fitted(run)
    np.testing.assert_allclose(model._gamma, golden(run, "gamma"), rtol=1e-12)
    if "decision_function" in RUNS[run]["outputs"]:
        expected = golden(run, "decision_function")
        np.testing.assert_allclose(model.decision_function(X_test), expected, rtol=0, atol=1e-7)
    np.testing.assert_allclose(model.predict(X_test), golden(run, "predict"), rtol=0, atol=1e-7)
    np.testing.assert_allclose(model.intercept_, golden(run, "intercept"), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(model.support_, golden(run, "support"))
    np.testing.assert_allclose(model.dual_coef_, golden(run, "dual_coef"), rtol=0, atol=1e-7)
    if "n_support" in RUNS[run]["outputs"]:
        np.testing.assert_array_equal(model.n_support_, golden(run, "n_support"))
    if "coef" in RUNS[run]["outputs"]:
        np.testing.assert_allclose(model.coef_, golden(run, "coef"), rtol=0, atol=1e-7)
    if model.dual_coef_.shape[0] == 1:
        beta = np.zeros(len(X))
        beta[model.support_] = model.dual_coef_[0]
        target, epsilon = (y, model.epsilon) if RUNS[run]["estimator"] == "SVR" else (np.where(y == 1, 1, -1), 0.0)
        dual = target @ beta - epsilon * np.abs(beta).sum() - 0.5 * beta @ kernel_of(model, X) @ beta
        assert dual >= golden(run, "dual_objective") * (1 - 1e-7)
