"""Run scikit-learn's own tests of linear_model, svm and neighbors with the classes of scratch-classical in their place.

    uv run --all-packages python shared/tools/sklearn_suite.py
    uv run --all-packages python shared/tools/sklearn_suite.py linear_model/tests/test_ridge.py -k "not sag"

Without arguments it runs every test module of the three subpackages of the installed scikit-learn, which takes about
half an hour on one core; with some, only those modules. Before pytest imports them, the thirteen classes and the two
path functions take the place of scikit-learn's in the subpackages and in the modules that define them. A test counts
if it makes one of our estimators, has one among its parameters or calls one of our path functions, and does not skip
itself. Other tests run too, but prove nothing about us and are left out of every number.

A test that fails is *excluded* if :data:`EXCLUDED` gives a reason for it, and *failed* otherwise. It exits with 1 if a
test failed without a reason, or if the share of tests that pass is below :data:`PROMISED`.
"""

import argparse
import functools
import importlib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import pytest
import scratch_classical
import sklearn.linear_model

PROMISED = 0.88
PLACES = {
    "linear_model": ("_base", "_ridge", "_coordinate_descent", "_logistic"),
    "svm": ("_classes",),
    "neighbors": ("_classification", "_regression"),
}
# (a pattern of the tests, why they fail). Each of these is by choice, or looks into scikit-learn's own code.
EXCLUDED: tuple[tuple[str, str], ...] = (
    (
        r"test_regularization_limits_ridge_gcv\[csr.*svd|test_penalty_deprecated|test_l1_ratio_None_deprecated|"
        r"test_logisticregression(cv)?_warns|test_lr_scoring_warns|test_probability_raises|probA_probB_deprecated|"
        r"test_path_function_deprecated|test_l1_ratio_non_elasticnet",
        "a warning that scikit-learn will change a parameter or an attribute of its own",
    ),
    (
        r"test_neigh_predictions_algorithm_agnosticity",
        "passes n_neighbors only to subclasses of scikit-learn's KNeighborsMixin, or a DistanceMetric object",
    ),
    (
        r"test_neighbors_validate_parameters|test_nan_euclidean_support",
        "a metric that is not offered (haversine, nan_euclidean)",
    ),
    (
        r"semimetric_algo|test_predict_sparse_ball_kd_tree|test_unsupervised_inputs",
        "the limits of trees and their objects; the search is always by blocks, without a tree",
    ),
    (
        r"test_check_solver_option|test_max_iter|test_dtype_match.*liblinear|test_large_sparse_matrix|"
        r"test_liblinear_|test_warm_start_newton_solver|test_newton_cholesky_fallback|test_n_iter$|"
        r"test_ridge_fit_intercept_sparse|test_lbfgs_solver_error|test_positive_and_sparse|"
        r"test_raises_value_error_if_positive_and_sparse|test_sag\.py",
        "a limit, a message, a random result or an iteration count of one solver; a solver's name does not choose the "
        "algorithm",
    ),
    (
        r"test_logistic_cv\[|test_logistic_cv_multinomial_score|test_1d_multioutput_\w+_and_multitask_\w+_cv",
        "compares two fits to more digits than tol, within which a fit may stop anywhere",
    ),
    (
        r"test_svc_raises_error_internal|test_tweak_params|test_get_default_scorer|test_logreg_predict_proba_multinomial|"
        r"test_inplace_data_preprocessing|test_lassoCV_does_not_set_precompute|test_path_unknown_parameter",
        "private attributes and functions, or how scikit-learn passes data on internally",
    ),
    (r"_callback_", "the callbacks of scikit-learn 1.9, which are experimental"),
    (
        r"test_timeout|test_libsvm_convergence_warnings",
        "expects that libsvm needs more steps than max_iter; this solver needs fewer",
    ),
    (r"test_svr_errors", "a kernel function of a wrong shape is refused by fit already, not by predict"),
    (
        r"test_lasso_alpha_warning|test_overridden_gram_matrix|precompute_incorrect_gram|test_check_input_false|"
        r"test_enet_path_positive|test_enet_nonfinite_params|test_enet_copy_X_False_check_input_False",
        "coordinate descent: precompute has no effect, a C-ordered X is computed correctly without checks, X is never "
        "overwritten, alpha=0 converges and positive takes several outputs; another error text",
    ),
    (r"test_ransac\.py", "RANSACRegressor recognises scikit-learn's LinearRegression by its class"),
)
FUNCTIONS = ("enet_path", "lasso_path")


class Suite:
    """A pytest plugin that puts our classes in place, and notes the outcome of every test that uses them."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.used = False
        self.ours = [v for v in vars(scratch_classical).values() if isinstance(v, type) and hasattr(v, "fit")]
        for place, modules in PLACES.items():
            for name in (f"sklearn.{place}", *(f"sklearn.{place}.{module}" for module in modules)):
                module = importlib.import_module(name)
                for estimator in self.ours:
                    if hasattr(module, estimator.__name__):
                        setattr(module, estimator.__name__, estimator)
        for function in FUNCTIONS:  # not in the module that defines them: other estimators there call scikit-learn's
            setattr(sklearn.linear_model, function, self._noting(getattr(scratch_classical, function)))
        for estimator in self.ours:
            estimator.__new__ = self._noting(lambda cls, *args, **kwargs: object.__new__(cls))

    def _noting(self, function: Any) -> Any:
        """Return the function, which now also notes that it was called."""

        @functools.wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.used = True
            return function(*args, **kwargs)

        return noted

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Before each test, look for our classes among its parameters."""
        given = getattr(item, "callspec", None)
        self.used = given is not None and any(map(self._is_ours, given.params.values()))
        return (yield)

    def _is_ours(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(map(self._is_ours, value))
        value = getattr(value, "func", value)  # of a partial
        return isinstance(value, tuple(self.ours)) or any(value is estimator for estimator in self.ours)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome, if the test used one of ours."""
        if not self.used or (report.outcome == "passed" and report.when != "call"):
            return
        name = report.nodeid.split("sklearn/")[-1]
        self.outcomes[name] = report.outcome
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            self.errors[name] = str(crash.message if crash else report.longrepr)


def reason_of(name: str) -> str | None:
    """Return why this test is excluded, or None."""
    return next((reason for pattern, reason in EXCLUDED if re.search(pattern, name)), None)


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Run scikit-learn's own tests with the classes of scratch-classical.")
    parser.add_argument("modules", nargs="*", help="test modules, such as svm/tests/test_svm.py (default: all)")
    parser.add_argument("-k", dest="expression", default="", help="as pytest's -k")
    arguments = parser.parse_args()
    home = Path(sklearn.__file__).parent
    modules = arguments.modules or [f"{place}/tests" for place in PLACES]
    # Nearly all of the time is compilation, because nearly every test has shapes of its own.
    jax.config.update("jax_disable_most_optimizations", True)
    suite = Suite()
    options = ["-q", "-p", "no:cacheprovider", "--no-header", "--no-summary", "--tb=line", "-k", arguments.expression]
    pytest.main([*options, f"--rootdir={home}", "-c", "/dev/null", *(str(home / m) for m in modules)], plugins=[suite])
    ran = {name: outcome for name, outcome in suite.outcomes.items() if outcome != "skipped"}
    failed = [name for name, outcome in ran.items() if outcome == "failed"]
    excluded = Counter(filter(None, map(reason_of, failed)))
    without = [name for name in failed if reason_of(name) is None]
    print()
    for name in without:
        print(f"failed: {name}: {suite.errors[name][:110]!r}")
    for reason, count in excluded.most_common():
        print(f"excluded: {count:4d}  {reason}")
    passed = len(ran) - len(failed)
    share = passed / len(ran) if ran else 0.0
    print(
        f"scikit-learn {sklearn.__version__}: {len(ran)} tests use these estimators: {passed} passed, {len(without)} "
        f"failed, {len(failed) - len(without)} excluded; {share:.1%} passed, {PROMISED:.0%} are promised"
    )
    return int(bool(without) or share < PROMISED)


if __name__ == "__main__":
    sys.exit(main())
