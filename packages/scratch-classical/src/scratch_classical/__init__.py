"""Linear models, nearest neighbours and support vector machines in JAX, behind scikit-learn's interface."""

from . import xla_flags  # noqa: F401  (first: it sets XLA_FLAGS before JAX's backend starts)
from .arrays import precision, use_compilation_cache
from .coordinate_descent import solve_elastic_net, solve_elastic_net_path, solve_lasso
from .elastic_net import ElasticNet, Lasso
from .elastic_net_cv import ElasticNetCV, LassoCV
from .elastic_net_path import enet_path, lasso_path
from .least_squares import solve_least_squares, solve_ridge
from .linear import LinearRegression, Ridge
from .logistic import LogisticRegression
from .logistic_cv import LogisticRegressionCV
from .logistic_derivatives import solve_logistic_regression, solve_logistic_regression_path
from .neighbor_search import search_by_differences
from .neighbors import KNeighborsClassifier, KNeighborsRegressor
from .objective import Objective
from .ridge_cv import RidgeCV
from .smo import kernel_matrix, solve_svm, solve_svm_flat
from .svm import SVC
from .svr import SVR

__all__ = [
    "SVC",
    "SVR",
    "ElasticNet",
    "ElasticNetCV",
    "KNeighborsClassifier",
    "KNeighborsRegressor",
    "Lasso",
    "LassoCV",
    "LinearRegression",
    "LogisticRegression",
    "LogisticRegressionCV",
    "Objective",
    "Ridge",
    "RidgeCV",
    "enet_path",
    "kernel_matrix",
    "lasso_path",
    "precision",
    "search_by_differences",
    "solve_elastic_net",
    "solve_elastic_net_path",
    "solve_lasso",
    "solve_least_squares",
    "solve_logistic_regression",
    "solve_logistic_regression_path",
    "solve_ridge",
    "solve_svm",
    "solve_svm_flat",
    "use_compilation_cache",
]
