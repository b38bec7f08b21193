"""scratch-classical against scikit-learn: warm and cold times, their ratio, and the gap of the objective.

    python shared/benchmarks/classical.py [--only ridge,lasso] [--repeats 7] [--no-flag] [--markdown]

Both fit the same numpy arrays to the same tolerance, in turn, on one core: the script starts itself again with one
thread per library and, if the system supports it, pinned to one core. A time is the smallest process time of the
repeats, which is the wall time if nothing else runs on that core. `ratio` is theirs over ours: above 1, ours is faster.
`cold` is our first call, with compilation. `gap` is (our objective - theirs) / |theirs|: negative is better than theirs
(for support vector machines the dual with its sign changed; for neighbours the share of indices that differ).

XLA compiles small loops as calls between kernels. The setting
`--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1000000000` compiles each as one call. It must be
in XLA_FLAGS before JAX starts, so this script sets it, except with --no-flag; the heading shows XLA_FLAGS.
"""

# ruff: noqa: B023  (each case is run before the generator moves on)

import argparse
import os
import subprocess
import sys
import time
import warnings

FLAG = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1000000000"


def restart_on_one_core(use_flag: bool) -> None:
    """Run this script again with one thread everywhere, on the last core that this process may use."""
    env = {**os.environ, "SCRATCH_BENCHMARK": "1", "JAX_PLATFORMS": "cpu"}
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        env[name] = "1"
    flags = env.get("XLA_FLAGS", "")
    env["XLA_FLAGS"] = f"{flags} {FLAG}".strip() if use_flag else flags
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sys.exit(subprocess.call([sys.executable, *sys.argv], env=env))


def regression(n, d, dtype, seed=0, informative=None, condition=None):
    import numpy as np

    random = np.random.default_rng(seed)
    X = random.standard_normal((n, d))
    if condition:
        U, _, Vt = np.linalg.svd(X, full_matrices=False)
        X = (U * np.geomspace(1, 1 / condition, d)) @ Vt * n**0.5
    true = random.standard_normal(d)
    if informative:
        true[informative:] = 0
    y = X @ true + (random.standard_normal(n) if not condition else 1e-3 * random.standard_normal(n))
    return np.ascontiguousarray(X, dtype), y.astype(dtype)


def cases():
    """Yield (name, floor or None, ours, theirs, gap(ours, theirs)); the functions fit and return the model."""
    import numpy as np
    import scratch_classical as ours
    import sklearn.linear_model as linear
    import sklearn.neighbors as neighbors
    import sklearn.svm as svm
    from sklearn.datasets import load_digits, make_classification, make_friedman1

    def squares(X, y, l1=0.0, l2=0.0):
        """Return sum of squares + l1 |w| + l2 |w|^2 of a fitted model, in float64."""

        def value(m):
            error = y.astype(np.float64) - X.astype(np.float64) @ m.coef_.astype(np.float64) - m.intercept_
            w = m.coef_.astype(np.float64)
            return error @ error + l1 * np.abs(w).sum() + l2 * w @ w

        return lambda a, b: (value(a) - value(b)) / abs(value(b))

    for dtype in (np.float64, np.float32):
        bits = f"f{8 * np.dtype(dtype).itemsize}"
        X, y = regression(100_000, 100, dtype)
        yield (f"ridge {bits} 100k x 100", 1.25, lambda: ours.Ridge(1.0).fit(X, y), lambda: linear.Ridge(1.0).fit(X, y),
               squares(X, y, l2=1.0))  # fmt: skip
        yield (f"ols {bits} 100k x 100", 5.0, lambda: ours.LinearRegression().fit(X, y),
               lambda: linear.LinearRegression().fit(X, y), squares(X, y))  # fmt: skip
    X, y = regression(100_000, 100, np.float64, condition=1e6)
    yield ("ols f64 100k x 100, condition 1e6", None, lambda: ours.LinearRegression().fit(X, y),
           lambda: linear.LinearRegression().fit(X, y), squares(X, y))  # fmt: skip

    for dtype in (np.float64, np.float32):
        bits = f"f{8 * np.dtype(dtype).itemsize}"
        X, y = regression(50_000, 100, dtype, seed=1)
        labels = (y + 5 * np.random.default_rng(2).standard_normal(len(y)) > 0).astype(int)

        def logistic(m, X=X, labels=labels):
            z = X.astype(np.float64) @ m.coef_[0] + m.intercept_[0]
            return (np.logaddexp(0, z) - labels * z).sum() + 0.5 * (m.coef_.astype(np.float64) ** 2).sum()

        yield (f"logistic binary {bits} 50k x 100", 1.3, lambda: ours.LogisticRegression().fit(X, labels),
               lambda: linear.LogisticRegression().fit(X, labels),
               lambda a, b: (logistic(a) - logistic(b)) / logistic(b))  # fmt: skip
    X, digits = load_digits(return_X_y=True)
    X = X / 16.0

    def multinomial(m):
        z = X @ m.coef_.T + m.intercept_
        z = z - z.max(1, keepdims=True)
        return (np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), digits]).sum() + 0.5 * (m.coef_**2).sum()

    for tol in (1e-4, 1e-6):
        options = {"tol": tol, "max_iter": 1000}
        yield (f"logistic digits f64, tol {tol:.0e}", 4.0, lambda: ours.LogisticRegression(**options).fit(X, digits),
               lambda: linear.LogisticRegression(**options).fit(X, digits),
               lambda a, b: (multinomial(a) - multinomial(b)) / multinomial(b))  # fmt: skip

    for dtype in (np.float64, np.float32):
        bits = f"f{8 * np.dtype(dtype).itemsize}"
        random = np.random.default_rng(3)
        X, queries = (random.standard_normal((n, 64)).astype(dtype) for n in (50_000, 2_000))
        labels = random.integers(0, 5, len(X))
        mine = ours.KNeighborsClassifier().fit(X, labels)
        theirs = neighbors.KNeighborsClassifier(algorithm="brute").fit(X, labels)
        yield (f"knn {bits} k=5, 50k x 64, 2k queries", 2.0, lambda: mine.kneighbors(queries)[1],
               lambda: theirs.kneighbors(queries)[1], lambda a, b: float((a != b).mean()))  # fmt: skip

    from sklearn.metrics.pairwise import rbf_kernel

    def dual(X, target, epsilon):
        K = []

        def value(m):
            if not K:
                K.append(rbf_kernel(X, X, 1 / (X.shape[1] * X.var())))
            beta = np.zeros(len(X))
            beta[m.support_] = m.dual_coef_[0]
            return target @ beta - epsilon * np.abs(beta).sum() - 0.5 * beta @ K[0] @ beta

        return lambda a, b: (value(b) - value(a)) / abs(value(b))

    for n, C, floor in ((2000, 1, 1.5), (5000, 1, 1.5), (2000, 10, None), (5000, 10, None)):
        X, labels = make_classification(n, 20, n_informative=10, random_state=0, flip_y=0.1)
        yield (f"svc rbf n={n} C={C}", floor, lambda: ours.SVC(C=C).fit(X, labels), lambda: svm.SVC(C=C).fit(X, labels),
               dual(X, np.where(labels == 1, 1.0, -1.0), 0.0))  # fmt: skip
    X, y = make_friedman1(2000, random_state=0, noise=1.0)
    for C, floor in ((1, 2.0), (10, None)):
        yield (f"svr rbf n=2000 C={C}", floor, lambda: ours.SVR(C=C).fit(X, y), lambda: svm.SVR(C=C).fit(X, y),
               dual(X, y, 0.1))  # fmt: skip

    for dtype in (np.float64, np.float32):
        bits = f"f{8 * np.dtype(dtype).itemsize}"
        X, y = regression(10_000, 1000, dtype, seed=4, informative=50)
        centered = y - y.mean()
        largest = np.abs(X.T @ centered).max() / len(y)
        for share, floor in ((0.1, 1.2), (0.01, None), (0.001, None)):
            alpha = float(share * largest)
            yield (f"lasso {bits} 10k x 1k, alpha {share} of largest", floor, lambda: ours.Lasso(alpha).fit(X, y),
                   lambda: linear.Lasso(alpha).fit(X, y), squares(X, y, l1=2 * len(y) * alpha))  # fmt: skip
        yield (f"lasso_path {bits} 10k x 1k, 100 alphas", None, lambda: ours.lasso_path(X, y)[1],
               lambda: linear.lasso_path(X, y, alphas=100)[1],
               lambda a, b: float(np.abs(a - b).max() / np.abs(b).max()))  # fmt: skip
        yield (f"lassocv {bits} 10k x 1k, 5 x 100", 1.2, lambda: ours.LassoCV().fit(X, y),
               lambda: linear.LassoCV().fit(X, y), lambda a, b: (a.alpha_ - b.alpha_) / b.alpha_)  # fmt: skip


def timed(function):
    begin = time.process_time()
    result = function()
    return time.process_time() - begin, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="comma-separated prefixes of case names")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-flag", action="store_true", help="leave XLA_FLAGS alone")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    if "SCRATCH_BENCHMARK" not in os.environ:
        restart_on_one_core(not args.no_flag)

    import jax
    import numpy
    import scratch_classical  # noqa: F401  (it may add to XLA_FLAGS, which the heading shows)
    import sklearn

    warnings.simplefilter("ignore")
    print(f"scikit-learn {sklearn.__version__}, jax {jax.__version__}, numpy {numpy.__version__}, "
          f"XLA_FLAGS={os.environ.get('XLA_FLAGS') or '(none)'}")  # fmt: skip
    bar = "|" if args.markdown else ""
    print(f"{bar}{'case':<44}{bar}{'ours ms':>9}{bar}{'theirs ms':>10}{bar}{'ratio':>7}{bar}{'floor':>6}{bar}"
          f"{'cold ms':>9}{bar}{'gap':>10}{bar}")  # fmt: skip
    if args.markdown:
        print("|---|--:|--:|--:|--:|--:|--:|")
    missed = []
    wanted = [w for w in args.only.split(",") if w]
    for name, floor, ours, theirs, gap in cases():
        if wanted and not any(name.startswith(w) for w in wanted):
            continue
        cold, _ = timed(ours)
        timed(theirs)
        pairs = [(timed(ours), timed(theirs)) for _ in range(args.repeats)]
        mine, other = min(a[0] for a, _ in pairs), min(b[0] for _, b in pairs)
        difference = gap(pairs[-1][0][1], pairs[-1][1][1])
        ratio = other / mine
        if floor and ratio < floor:
            missed.append(f"{name}: {ratio:.2f} < {floor}")
        shown = "" if floor is None else floor
        print(f"{bar}{name:<44}{bar}{mine * 1e3:9.1f}{bar}{other * 1e3:10.1f}{bar}{ratio:7.2f}{bar}{shown!s:>6}{bar}"
              f"{cold * 1e3:9.0f}{bar}{difference:10.1e}{bar}", flush=True)  # fmt: skip
    print("floors missed: " + ("; ".join(missed) if missed else "none"))


if __name__ == "__main__":
    main()
